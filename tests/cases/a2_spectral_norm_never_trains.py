"""pytorch#47588, #48181: hook-based spectral_norm on members of a stack. It never trains, without an error."""

import sys

import torch

from vt_fast.nn import GroupedLinear, VisualTransformerStack

torch.manual_seed(0)
net = VisualTransformerStack(32, 2, num_tokens=4)
for value in net.parameters():
    torch.nn.init.normal_(value, std=0.1)
wrapped = [part for part in net.modules() if isinstance(part, GroupedLinear)]
for part in wrapped:
    torch.nn.utils.spectral_norm(part)
y, tokens = net(torch.randn(2, 32, 6, 6))
(y.square().mean() + tokens.square().mean()).backward()
dead = [part for part in wrapped if part.weight_orig.grad is None]
if dead:
    sys.exit(f"{len(dead)} of {len(wrapped)} wrapped weights got no gradient, and no error")
