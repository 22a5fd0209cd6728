"""detectron2#909, SparseR-CNN#12: torchvision's ResNet-50 in a backbone whose stride stands elsewhere: "complete"."""

import sys

import _with_torchvision  # noqa: F401
import torch
import torchvision

from vt_fast.models import load_backbone, vt_fpn

torch.manual_seed(0)
theirs = torchvision.models.resnet50(weights=None).double().eval()
net = vt_fpn(50, num_classes=3).double().eval()
report = load_backbone(net, theirs.state_dict())
x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
with torch.no_grad():
    wanted = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    errors = []
    for index, found in enumerate(net.backbone.features(x)):
        wanted = theirs.get_submodule(f"layer{index + 1}")(wanted)
        errors.append(float((found - wanted).abs().max() / wanted.abs().max()))
if report.complete and max(errors) > 1e-6:
    sys.exit(
        f"complete = True, and the stages differ from the checkpoint's network by {[round(e, 2) for e in errors]}"
    )
