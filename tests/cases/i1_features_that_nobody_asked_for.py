"""segmentation_models#373, transformers#30633: out_indices of a backbone keep, run and leave without gradient the rest."""

import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from vt_fast.models import VTResNetFeatures

features = VTResNetFeatures(18, out_indices=(0,))
with FlopCounterMode(display=False) as counter:
    features(torch.randn(2, 3, 64, 64))[0].sum().backward()
unused = [name for name, value in features.named_parameters() if value.grad is None]
with FlopCounterMode(display=False) as first:
    features.backbone.layer1(features.backbone.stem(torch.randn(2, 3, 64, 64))).sum().backward()
if unused:
    sys.exit(
        f"{len(unused)} parameters without gradient (DistributedDataParallel stops at the second step), "
        f"{counter.get_total_flops() / first.get_total_flops():.1f} times the work"
    )
