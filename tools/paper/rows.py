"""The rows of the paper's tables: what it prints, and the network that each row counts.

The paper does not list its configurations. These were inferred from its counts, and :attr:`Row.source` says
how far that went. The networks that table 8 compares with are in :mod:`tools.paper.comparators`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vt_fast.models import FPN, VTFPN, ResNet, VTResNet, fpn, vt_fpn

IMAGENET = "ImageNet, 224 x 224: millions of MACs"
REDUCTIONS = "Reductions by VT-ResNets: counts of the ResNet divided by those of the VT-ResNet"
SEGMENTATION = "Segmentation: billions of MACs"
IMAGE = (1, 3, 224, 224)
# Weights of convolutions and projections alone, every projection where the paper has it.
COUNTED = {"token_norm": None, "bias": False, "backend": "reference"}
# Image sizes of COCO-stuff and LIP, with the number of classes that the paper's counts imply.
COCO, LIP = (800, 1216), (473, 473)
CLASSES = {COCO: 54, LIP: 20}
TABLES = {COCO: "9", LIP: "10"}
# The maps of ResNet-50 and 101.
CHANNELS, STRIDES = (256, 512, 1024, 2048), (4, 8, 16, 32)

Shape = tuple[int, ...]
#: Where a configuration is from: "stated" by the paper, by name; "fit", inferred from printed counts, which
#: it meets; "ours", another choice that meets them less well; "unexplained": none is known that meets them.
Source = Literal["stated", "fit", "ours", "unexplained"]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        table: the heading that it stands under.
        name: of the row.
        build: makes the network as the paper writes it; keywords override its options.
        inputs: shapes of the tensors in the argument of its forward: an image, or the maps that a neck takes.
        unit: how many MACs the printed unit stands for.
        printed_macs: as the paper prints them, in that unit; may hold a misprint or two numbers; empty where
            it does not.
        printed_parameters: as the paper prints them, in millions; empty where it does not.
        source: see :data:`Source`.
        tables: numbers of the paper's tables that print this row; empty for its text and its first version.
        note: what a reader must know, above all why the counts differ.
        batch_norm: whether the printed parameters are with those of BatchNorm.
        against: makes a network whose counts are to be divided by those of the row's network. The row then
            holds quotients.
    """

    table: str
    name: str
    build: Callable[..., nn.Module]
    inputs: tuple[Shape, ...]
    unit: float
    printed_macs: str
    printed_parameters: str = ""
    source: Source = "fit"
    tables: str = ""
    note: str = ""
    batch_norm: bool = False
    against: Callable[..., nn.Module] | None = None

    def argument(self, device: torch.device | str = "meta") -> Tensor | list[Tensor]:
        """The argument of the network's forward, without values."""
        tensors = [torch.empty(shape, device=device) for shape in self.inputs]
        return tensors[0] if len(tensors) == 1 else tensors


def _imagenet() -> list[Row]:
    v1 = {"tokenizer": "static", "position": "conv"}
    # Name, options, tables, then MACs and parameters printed for depth 18 and for depth 34.
    ablations: list[tuple[str, dict[str, Any], str, tuple[str, str], tuple[str, str]]] = [
        ("filter + recurrent", {}, "2, 4, 6, 7", ("1579", "11.6"), ("3299", "21.8")),
        (
            "without recurrent tokenizer",
            {"later_tokenizer": "filter"},
            "4",
            ("1564", "11.1"),
            ("3369 (read 3269)", "20.7"),
        ),
        ("pooling tokenizer", {"tokenizer": "pooling"}, "3", ("1549", "11.0"), ("3246", "20.6")),
        ("clustering tokenizer", {"tokenizer": "clustering"}, "3", ("1579", "11.6"), ("3299", "21.8")),
        ("token relation None", {"relation": "none"}, "5", ("1528", "8.5"), ("3222", "17.1")),
        ("token relation GraphConv", {"relation": "graph"}, "5", ("1528", "8.5"), ("3223", "17.1")),
        ("L = 32", {"num_tokens": 32}, "6", ("1711", "11.6"), ("3514", "21.8")),
        ("L = 64", {"num_tokens": 64}, "6", ("1979", "11.6"), ("3952", "21.8")),
        ("without projector", {"projector": False}, "7", ("1497", "9.3"), ("3158", "17.3")),
        ("v1 tokens and position code", v1, "", ("1569 or 1570", "11.7"), ("3280", "21.9")),
        (
            "v1 tokens and position code, without projector",
            {**v1, "projector": False},
            "",
            ("1498", "9.4"),
            ("3159", "17.4"),
        ),
    ]
    resnets = {
        18: ("1814", "11.7", "2"),
        34: ("3664", "21.8", "2"),
        50: ("4089", "25.5", "8"),
        101: ("7802", "44.4", "8"),
    }
    rows = [
        _classifier(f"R{depth}, plain ResNet", partial(ResNet, depth, 1000), (macs, size), tables, "stated")
        for depth, (macs, size, tables) in resnets.items()
    ]
    notes = {
        "pooling tokenizer": "pooling in every module, unlike the ICCV text",
        "clustering tokenizer": "the k-means is not counted",
        "v1 tokens and position code": "code on the first tokenizer",
    }
    for name, options, tables, *columns in ablations:
        rows += [
            _classifier(
                f"VT-R{depth}, {name}", _vt(depth, **options), column, tables, note=notes.get(name, "")
            )
            for depth, column in zip((18, 34), columns, strict=True)
        ]
    code = _vt(18, position="conv")
    rows.append(_classifier("VT-R18, filter + recurrent + position code", code, ("1580", "11.7"), "3, 5"))
    return rows + _table8()


def _table8() -> list[Row]:
    """The VT-ResNets of table 8, and what else was printed for or built as these."""
    v1 = {"tokenizer": "static", "position": "conv"}
    no_fit = "no natural configuration meets both counts"
    return [
        _classifier("VT-R18, table 8", _vt(18, **v1), ("1569", "11.7"), "8", note="v1 tokens, as above"),
        _classifier(
            "VT-R34, table 8",
            _vt(34, **v1),
            ("3236", "19.2"),
            "8",
            "unexplained",
            f"{no_fit}; here as VT-R18",
        ),
        _classifier("VT-R50, v1 module, L = 4", _vt(50), ("3412", "21.4"), "8"),
        _classifier(
            "VT-R101, v1 module, L = 4",
            _vt(101),
            ("7129", "41.5"),
            "8",
            "unexplained",
            f"{no_fit}; here as VT-R50. 41.5 is probably a misprint or another net",
        ),
        _classifier(
            "VT-R101, v1 module, L = 4, first version",
            _vt(101),
            ("7127", "40.33"),
            "",
            "unexplained",
            "the slides of the first version print these; here as VT-R50",
        ),
        _classifier(
            "VT-R50, v2 module, L = 16",
            _vt(50, variant="v2"),
            ("3412", "21.4"),
            "8",
            "ours",
            'variant="v2": the module of VT-R18',
        ),
        _classifier(
            "VT-R101, v2 module, L = 16",
            _vt(101, variant="v2"),
            ("7129", "41.5"),
            "8",
            "ours",
            'variant="v2": the module of VT-R18',
        ),
    ]


def _vt(depth: int, **options: Any) -> Callable[..., nn.Module]:
    return partial(VTResNet, depth, **{**COUNTED, **options})


def _classifier(
    name: str,
    build: Callable[..., nn.Module],
    printed: tuple[str, str],
    tables: str,
    source: Source = "fit",
    note: str = "",
) -> Row:
    macs, parameters = printed
    return Row(IMAGENET, name, build, (IMAGE,), 1e6, macs, parameters, source, tables, note)


class _LastStage(nn.Module):
    """The last stage of a network: the tokens or the map that it makes of the map before it."""

    def __init__(self, build: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        net = build(**options)
        self.stage: nn.Module = net.get_submodule("stage" if isinstance(net, VTResNet) else "layer4")

    def forward(self, x: Tensor) -> Tensor:
        found = self.stage(x)
        tokens: Tensor = found if isinstance(found, Tensor) else found[1]
        return tokens


def _reductions() -> list[Row]:
    """Table 1: the v1 module in all four, with as many tokens as the printed quotients fit."""
    options: dict[int, dict[str, Any]] = {
        18: {"variant": "v1", "token_groups": 1},
        34: {"variant": "v1", "num_tokens": 8, "later_position": "none"},
        50: {},
        101: {},
    }
    # Reductions of MACs and parameters: of the whole network, of the last stage.
    printed = {
        18: (("1.14", "0.91"), ("2.4", "0.9")),
        34: (("1.16", "1.21"), ("5.0", "1.5")),
        50: (("1.20", "1.19"), ("6.1", "1.26")),
        101: (("1.09", "1.19"), ("6.9", "1.26")),
    }
    notes = {
        (18, 0): "L = 16, code on all tokenizers, K, Q, V not grouped",
        (18, 1): "2.4 unexplained",
        (34, 0): "L = 8, code on the first tokenizer",
        (50, 0): "L = 4, code on all tokenizers",
        (101, 0): "as R50; 1.19 unexplained, it is R50's",
        (101, 1): "6.9 unexplained",
    }
    rows = []
    for depth, both in printed.items():
        vt, plain = _vt(depth, **options[depth]), partial(ResNet, depth, 1000)
        shape = (1, 256 if depth < 50 else 1024, 14, 14)
        for index, numbers in enumerate(both):
            build: Callable[..., nn.Module] = partial(_LastStage, vt) if index else vt
            against: Callable[..., nn.Module] = partial(_LastStage, plain) if index else plain
            part = "last stage" if index else "whole network"
            note = notes.get((depth, index), "")
            rows.append(
                Row(
                    REDUCTIONS,
                    f"VT-R{depth}, {part}",
                    build,
                    (shape if index else IMAGE,),
                    1,
                    *numbers,
                    source="unexplained" if "unexplained" in note else "fit",
                    tables="1",
                    note=note,
                    against=against,
                )
            )
    return rows


def _segmentation() -> list[Row]:
    neck, vt_neck = partial(FPN, CHANNELS), partial(VTFPN, CHANNELS, backend="reference")
    v1_neck = partial(vt_neck, variant="v1")
    rows = [
        _row("FPN neck", COCO, neck, "55.1", "stated"),
        _row("FPN neck", LIP, neck, "12.8", "stated"),
        _row("VT-FPN neck, v1 transformer", COCO, v1_neck, "8.5", "fit", "8 groups"),
        _row("VT-FPN neck, v1 transformer", LIP, v1_neck, "2.0", "fit", "8 groups"),
        _row("VT-FPN neck", COCO, vt_neck, "8.5", "ours"),
        _row("VT-FPN neck", LIP, vt_neck, "2.0", "ours"),
    ]
    vt, v1 = partial(vt_fpn, backend="reference"), partial(vt_fpn, backend="reference", variant="v1")
    vt_printed = {COCO: ("113", "185"), LIP: ("26.4", "43.6")}
    kinds: tuple[
        tuple[str, Callable[..., nn.Module], dict[tuple[int, int], tuple[str, str]], Source], ...
    ] = (
        ("FPN", fpn, {COCO: ("159", "231"), LIP: ("37.1", "54.4")}, "stated"),
        ("VT-FPN, v1 transformer", v1, vt_printed, "fit"),
        ("VT-FPN", vt, vt_printed, "ours"),
    )
    for kind, make, printed, source in kinds:
        rows += [
            _row(f"R{depth} {kind}", size, partial(make, depth, CLASSES[size]), macs, source)
            for size, column in printed.items()
            for depth, macs in zip((50, 101), column, strict=True)
        ]
    return rows


def _row(
    name: str,
    size: tuple[int, int],
    build: Callable[..., nn.Module],
    printed: str,
    source: Source,
    note: str = "",
) -> Row:
    """A row of the segmentation table, for images of this size."""
    height, width = size
    maps = tuple(
        (1, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    )
    inputs = maps if "neck" in name else ((1, 3, height, width),)
    title = f"{name}, {height} x {width}"
    return Row(
        SEGMENTATION, title, build, inputs, 1e9, printed, source=source, tables=TABLES[size], note=note
    )


#: All rows by name.
ROWS: Mapping[str, Row] = MappingProxyType(
    {row.name: row for row in (*_imagenet(), *_reductions(), *_segmentation())}
)
