"""mmpretrain#534, timm#2682, timm's --grad-checkpointing and --layer-decay: methods that timm calls on its models."""

import sys

import _with_timm  # noqa: F401
import timm

bad = []
for what, call in {
    "create_model(num_classes=0, global_pool='')": lambda: timm.create_model(
        "vt_resnet18", num_classes=0, global_pool=""
    ),
    "reset_classifier(5, 'avg')": lambda: timm.create_model("vt_resnet18").reset_classifier(5, "avg"),
    "set_grad_checkpointing()": lambda: timm.create_model("vt_resnet18").set_grad_checkpointing(),
    "group_matcher(coarse=True)": lambda: timm.create_model("vt_resnet18").group_matcher(coarse=True),
}.items():
    try:
        call()
    except (TypeError, AttributeError) as error:
        bad.append(f"{what}: {error}")
sys.exit("\n".join(bad) or None)
