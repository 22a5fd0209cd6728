"""pytorch#12013, PR #166318, mmdetection#5917: a batch of no boxes. Every layer of PyTorch returns an empty result."""

import sys

import torch

import vt_fast
from vt_fast.models import ResNet, VTResNet
from vt_fast.nn import VisualTransformerStack

ResNet(18, num_classes=3).eval()(torch.zeros(0, 3, 64, 64))
torch.nn.functional.scaled_dot_product_attention(*(torch.zeros(0, 4, 8) for _ in range(3)))
bad = []
for call in (
    lambda: vt_fast.tokenize(torch.zeros(0, 8, 5, 5), torch.zeros(4, 8)),
    lambda: VisualTransformerStack(8, 2, num_tokens=4)(torch.zeros(0, 8, 5, 5)),
    lambda: VTResNet(18, num_classes=3).eval()(torch.zeros(0, 3, 64, 64)),
):
    try:
        call()
    except ValueError as error:
        bad.append(str(error))
sys.exit("\n".join(bad) or None)
