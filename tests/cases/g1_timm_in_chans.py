"""timm PR #1527, MAE-pytorch#34: train.py and validate.py of timm, and users of features_only, always pass in_chans."""

import sys

import _with_timm  # noqa: F401
import timm

bad = []
for options in (
    {"in_chans": 3},
    {"features_only": True, "in_chans": 3, "out_indices": (1, 2)},
    {"in_chans": 1},
):
    try:
        timm.create_model("vt_resnet18", **options)
    except TypeError as error:
        bad.append(f"create_model('vt_resnet18', {options}): {error}")
sys.exit("\n".join(bad) or None)
