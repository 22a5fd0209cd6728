"""Kyubyong/transformer#103, keras-io#593: what do the tokens of a padded batch look at? forward has a mask, the maps none."""

import sys

import torch

from vt_fast.nn import FilterTokenizer, VisualTransformerStack

x, mask = torch.randn(2, 8, 6, 6), torch.ones(2, 6, 6, dtype=torch.bool)
mask[1, :, 3:] = False
bad = []
for net in (FilterTokenizer(8, 4), VisualTransformerStack(8, 2, num_tokens=4)):
    net(x, mask=mask)
    try:
        net.attention_maps(x, mask=mask)
    except TypeError as error:
        bad.append(str(error))
sys.exit("\n".join(bad) or None)
