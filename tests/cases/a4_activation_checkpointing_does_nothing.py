"""pytorch#82293: apply_activation_checkpointing on the blocks of a stack. No recompute, nothing saved."""

import sys

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from vt_fast.nn import VisualTransformer, VisualTransformerStack


class Loop(torch.nn.Module):
    """The control: the same blocks, called."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def forward(self, x):
        tokens = None
        for block in self.blocks:
            x, tokens = block(x, tokens)
        return x, tokens


def kept(net):
    apply_activation_checkpointing(net, check_fn=lambda part: isinstance(part, VisualTransformer))
    count = 0

    def pack(value):
        nonlocal count
        count += value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        net(torch.randn(2, 32, 12, 12, requires_grad=True))
    return count


stack = kept(VisualTransformerStack(32, 4, num_tokens=4))
loop = kept(Loop(VisualTransformerStack(32, 4, num_tokens=4).blocks))
if stack > 1.5 * loop:
    sys.exit(
        f"stack keeps {stack} numbers for the backward, the same checkpointed blocks called one by one {loop}"
    )
