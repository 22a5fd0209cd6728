"""pytorch#69353, #78109: torch.nn.utils.prune on layers whose forward is never called. Second step fails."""

import sys

import torch
from torch.nn.utils import prune

from vt_fast.nn import GroupedLinear, VisualTransformerStack

net = VisualTransformerStack(32, 2, num_tokens=4)
for part in net.modules():
    if isinstance(part, GroupedLinear):
        prune.l1_unstructured(part, "weight", amount=0.3)
x = torch.randn(2, 32, 6, 6)
try:
    for _ in range(2):
        y, tokens = net(x)
        (y.square().mean() + tokens.square().mean()).backward()
except RuntimeError as error:
    sys.exit(f"second step: {str(error)[:75]}")
