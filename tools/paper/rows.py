"""The rows of the paper's tables: what it prints, and the network that each row counts.

The paper does not list its configurations. These were inferred from its counts. No configuration is known
that meets the counts printed for VT-ResNet-50 and 101: those rows have the options of VT-ResNet-18.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vt_fast.models import FPN, VTFPN, ResNet, VTResNet, fpn, vt_fpn

IMAGENET = "ImageNet, 224 x 224: millions of MACs"
SEGMENTATION = "Segmentation: billions of MACs"
IMAGE = (1, 3, 224, 224)
# Weights of convolutions and projections alone, every projection where the paper has it.
COUNTED = {"token_norm": None, "bias": False, "backend": "reference"}
# Image sizes of COCO-stuff and LIP, with the number of classes that the paper's counts imply.
COCO, LIP = (800, 1216), (473, 473)
CLASSES = {COCO: 54, LIP: 20}
# The maps of ResNet-50 and 101.
CHANNELS, STRIDES = (256, 512, 1024, 2048), (4, 8, 16, 32)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        table: its heading.
        name: of the row.
        build: makes the network as the paper writes it; keywords override its options.
        inputs: shapes of the tensors in the argument of its forward: an image, or the maps that a neck takes.
        unit: how many MACs the printed unit stands for.
        printed_macs: as the paper prints them, in that unit; may hold a misprint or two numbers.
        printed_parameters: as the paper prints them, in millions; empty where it does not.
        known: whether this configuration meets the printed counts.
    """

    table: str
    name: str
    build: Callable[..., nn.Module]
    inputs: tuple[Shape, ...]
    unit: float
    printed_macs: str
    printed_parameters: str = ""
    known: bool = True

    def argument(self, device: torch.device | str = "meta") -> Tensor | list[Tensor]:
        """The argument of the network's forward, without values."""
        tensors = [torch.empty(shape, device=device) for shape in self.inputs]
        return tensors[0] if tensors[0].shape[1] == 3 else tensors


def _imagenet() -> list[Row]:
    v1 = {"tokenizer": "static", "position": "conv"}
    # Name, options, then MACs and parameters printed for depth 18 and for depth 34.
    ablations: list[tuple[str, dict[str, Any], tuple[str, str], tuple[str, str]]] = [
        ("filter + recurrent", {}, ("1579", "11.6"), ("3299", "21.8")),
        (
            "without recurrent tokenizer",
            {"later_tokenizer": "filter"},
            ("1564", "11.1"),
            ("3369 (read 3269)", "20.7"),
        ),
        ("pooling tokenizer", {"tokenizer": "pooling"}, ("1549", "11.0"), ("3246", "20.6")),
        ("clustering tokenizer", {"tokenizer": "clustering"}, ("1579", "11.6"), ("3299", "21.8")),
        ("token relation None", {"relation": "none"}, ("1528", "8.5"), ("3222", "17.1")),
        ("token relation GraphConv", {"relation": "graph"}, ("1528", "8.5"), ("3223", "17.1")),
        ("L = 32", {"num_tokens": 32}, ("1711", "11.6"), ("3514", "21.8")),
        ("L = 64", {"num_tokens": 64}, ("1979", "11.6"), ("3952", "21.8")),
        ("without projector", {"projector": False}, ("1497", "9.3"), ("3158", "17.3")),
        ("v1 tokens and position code", v1, ("1569 or 1570", "11.7"), ("3280", "21.9")),
        (
            "v1 tokens and position code, without projector",
            {**v1, "projector": False},
            ("1498", "9.4"),
            ("3159", "17.4"),
        ),
    ]
    resnets = {18: ("1814", "11.7"), 34: ("3664", "21.8"), 50: ("4089", "25.5"), 101: ("7802", "44.4")}
    rows = [
        Row(IMAGENET, f"R{depth}, plain ResNet", partial(ResNet, depth, 1000), (IMAGE,), 1e6, *printed)
        for depth, printed in resnets.items()
    ]

    def row(depth: int, name: str, options: Mapping[str, Any], printed: tuple[str, str], known: bool) -> Row:
        build = partial(VTResNet, depth, **{**COUNTED, **options})
        return Row(IMAGENET, f"VT-R{depth}, {name}", build, (IMAGE,), 1e6, *printed, known)

    for name, options, *columns in ablations:
        rows += [
            row(depth, name, options, column, True) for depth, column in zip((18, 34), columns, strict=True)
        ]
    for depth, printed in {50: ("3412", "21.4"), 101: ("7129", "41.5")}.items():
        rows.append(row(depth, "filter + recurrent", {}, printed, False))
    return rows


def _segmentation() -> list[Row]:
    neck, vt_neck = partial(FPN, CHANNELS), partial(VTFPN, CHANNELS, backend="reference")
    rows = [
        _row("FPN neck", COCO, neck, "55.1"),
        _row("FPN neck", LIP, neck, "12.8"),
        _row("VT-FPN neck", COCO, vt_neck, "8.5"),
        _row("VT-FPN neck", LIP, vt_neck, "2.0"),
    ]
    for kind, make, printed in (
        ("FPN", fpn, {COCO: ("159", "231"), LIP: ("37.1", "54.4")}),
        ("VT-FPN", partial(vt_fpn, backend="reference"), {COCO: ("113", "185"), LIP: ("26.4", "43.6")}),
    ):
        rows += [
            _row(f"R{depth} {kind}", size, partial(make, depth, CLASSES[size]), macs)
            for size, column in printed.items()
            for depth, macs in zip((50, 101), column, strict=True)
        ]
    return rows


def _row(name: str, size: tuple[int, int], build: Callable[..., nn.Module], printed: str) -> Row:
    """A row of the segmentation table, for images of this size."""
    height, width = size
    maps = tuple(
        (1, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    )
    inputs = maps if name.endswith("neck") else ((1, 3, height, width),)
    return Row(SEGMENTATION, f"{name}, {height} x {width}", build, inputs, 1e9, printed)


#: All rows by name.
ROWS: Mapping[str, Row] = MappingProxyType({row.name: row for row in (*_imagenet(), *_segmentation())})
