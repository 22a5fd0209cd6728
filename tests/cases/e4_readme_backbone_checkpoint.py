"""The same through examples/README.md: a resnet50 trained by train_classification.py as --backbone-checkpoint."""

import sys
import tempfile
from pathlib import Path

import torch

import vt_fast

sys.path.insert(0, str(Path(vt_fast.__file__).parents[1] / "examples"))
from recipe import models

torch.manual_seed(0)
classifier = models.make("resnet50", 10).eval()
path = Path(tempfile.mkdtemp()) / "weights.pt"
torch.save(classifier.state_dict(), path)
net = models.make("vt_fpn_resnet50", 3, num_tokens=2, token_channels=32).eval()
models.load_backbone(net, path)
x = torch.randn(1, 3, 64, 64)
for module in (classifier, net.backbone):  # random blocks start as their shortcuts: give the branches a part
    for name, value in module.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.ones_(value)
with torch.no_grad():
    wanted, found = classifier.features(x)[-1], net.backbone.features(x)[-1]
error = float((found - wanted).abs().max() / wanted.abs().max())
if error > 1e-4:
    sys.exit(
        f"loaded without a warning; the backbone's last map differs from the classifier's by {error:.0%} of its largest"
    )
