"""The paper's own counts: VT-ResNet-18's last stage, from constructor arguments alone."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vt_fast import nn
from vt_fast.nn import VisualTransformer, VisualTransformerStack

# ResNet-18 without its last stage and its classifier: 1814.07 M multiply-accumulates in all, of which the
# last stage is one 3x3 from 256 channels, three from 512 and a 1x1, on 7 x 7 pixels.
TRUNK = 1814.07 - 49 * (9 * 256 * 512 + 3 * 9 * 512 * 512 + 256 * 512) / 1e6 - 512 * 1000 / 1e6
CLASSIFIER = 1024 * 1000 / 1e6

COMMON = {"token_channels": 1024, "group_width": 64, "norm": False}
ATTENTION = {**COMMON, "token_groups": 4}


def stack(**options):
    common = COMMON if "relation" in options else ATTENTION
    return VisualTransformerStack.build(
        2, 256, out_channels=512, last_projector=False, **{**common, **options}
    )


def pair(first, second):
    build = VisualTransformer.build
    return VisualTransformerStack(
        [build(256, **{**ATTENTION, **first}), build(512, **{**ATTENTION, "project": False, **second})]
    )


ROWS = {
    "filter + recurrent": (lambda: stack(), 1579),
    "without recurrent tokenizer": (lambda: stack(later="filter"), 1564),
    "pooling tokenizer": (lambda: stack(first="pooling", later="pooling"), 1549),
    "token relation none": (lambda: stack(relation="none"), 1528),
    "token relation GraphConv": (lambda: stack(relation="graph"), 1528),
    "L = 32": (lambda: stack(num_tokens=32), 1711),
    "L = 64": (lambda: stack(num_tokens=64), 1979),
    "without projector": (lambda: pair({"project": False}, {"tokenizer": None}), 1497),
    "v1 tokens and position code": (
        lambda: pair(
            {"out_channels": 512, "tokenizer": "static", "position": nn.ConvPositionCode(14, 49)},
            {"tokenizer": "dynamic", "heads": 16},
        ),
        1569,
    ),
}


def mega_macs(module):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.randn(1, 256, 14, 14))
    return counter.get_total_flops() / 2e6


@pytest.mark.parametrize("name", ROWS)
def test_multiply_accumulates(name):
    """As the paper prints them, rounded either way (it truncates some and rounds others)."""
    make, printed = ROWS[name]
    module = make()
    module.backend = "reference"
    written = mega_macs(module)
    assert printed - 0.5 <= TRUNK + written + CLASSIFIER < printed + 1
    module.backend = "torch"
    assert mega_macs(module) < written
