"""The rows of the paper's ImageNet tables: what it prints, and the arguments that make each network.

The paper does not list its configurations. Those here were inferred from its own counts (the "fit"); for
VT-ResNet-50 and 101 none is known that meets the print: there the counts are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from vt_fast.models.counting import macs, parameters
from vt_fast.models.resnet import ResNet
from vt_fast.models.vt_resnet import VTResNet

#: The side of the images that the paper counts on.
IMAGE = 224
# Nothing but weights of convolutions and projections, each run where the paper has it.
PAPER = {"norm": False, "bias": False, "backend": "reference"}


@dataclass(frozen=True)
class Row:
    """One row of the paper's tables.

    Args:
        name: of the configuration, without the depth.
        depth: of the ResNet.
        printed_macs: as the paper prints it, in millions; with its own misprint or range.
        printed_parameters: as the paper prints it, in millions.
        fit_macs: those of our configuration, in millions; None where none is known to meet the print.
        fit_parameters: the same of parameters, BatchNorm's left out.
        options: of :class:`VTResNet`; None for the plain ResNet.
    """

    name: str
    depth: int
    printed_macs: str
    printed_parameters: str
    fit_macs: float | None = None
    fit_parameters: float | None = None
    options: Mapping[str, Any] | None = field(default_factory=lambda: MappingProxyType({}))

    def build(self, **options: Any) -> nn.Module:
        """The network that the row counts: no norm on tokens, no bias but the classifier's, unfolded.

        Args:
            **options: of :class:`VTResNet`, before the row's own.

        Example:
            >>> ROWS["VT-R18, filter + recurrent"].build(num_classes=10).fc.out_features
            10
        """
        if self.options is None:
            return ResNet(self.depth, **{"num_classes": 1000, **options})
        return VTResNet(self.depth, **{**PAPER, **self.options, **options})

    def count(self) -> tuple[float, float]:
        """Multiply-accumulates and parameters of `build()`, both in millions, counted and not looked up.

        Example:
            >>> [round(number, 2) for number in ROWS["VT-R18, filter + recurrent"].count()]
            [1578.95, 11.64]
        """
        with torch.device("meta"):
            model, image = self.build(), torch.empty(1, 3, IMAGE, IMAGE)
        return macs(model, image) / 1e6, parameters(model) / 1e6


def _rows() -> dict[str, Row]:
    recurrent: dict[str, Any] = {}
    v1 = {"tokenizer": "v1", "position": "conv"}
    # Name, options, then for depth 18 and for depth 34: printed MACs and parameters, those of the fit.
    ablations: list[
        tuple[str, dict[str, Any], tuple[str, str, float, float], tuple[str, str, float, float]]
    ] = [
        (
            "filter + recurrent",
            recurrent,
            ("1579", "11.6", 1578.95, 11.64),
            ("3299", "21.8", 3299.01, 21.84),
        ),
        (
            "without recurrent tokenizer",
            {"tokenizer": "filter"},
            ("1564", "11.1", 1564.1, 11.09),
            ("3369 (read 3269)", "20.7", 3269.4, 20.74),
        ),
        (
            "pooling tokenizer",
            {"tokenizer": "pooling"},
            ("1549", "11.0", 1549.7, 11.03),
            ("3246", "20.6", 3245.3, 20.64),
        ),
        (
            "clustering tokenizer",
            {"tokenizer": "clustering"},
            ("1579", "11.6", 1578.95, 11.64),
            ("3299", "21.8", 3299.0, 21.83),
        ),
        (
            "token relation None",
            {"relation": "none"},
            ("1528", "8.5", 1527.8, 8.49),
            ("3222", "17.1", 3222.3, 17.12),
        ),
        (
            "token relation GraphConv",
            {"relation": "graph"},
            ("1528", "8.5", 1528.4, 8.49),
            ("3223", "17.1", 3223.1, 17.12),
        ),
        (
            "L = 32",
            {"num_tokens": 32},
            ("1711", "11.6", 1711.0, 11.64),
            ("3514", "21.8", 3514.1, 21.84),
        ),
        (
            "L = 64",
            {"num_tokens": 64},
            ("1979", "11.6", 1979.7, 11.65),
            ("3952", "21.8", 3951.5, 21.85),
        ),
        (
            "without projector",
            {"projector": False},
            ("1497", "9.3", 1497.2, 9.33),
            ("3158", "17.3", 3158.0, 17.33),
        ),
        (
            "v1 tokens and position code",
            v1,
            ("1569 or 1570", "11.7", 1569.8, 11.69),
            ("3280", "21.9", 3279.9, 21.89),
        ),
        (
            "v1 tokens and position code, without projector",
            {**v1, "projector": False},
            ("1498", "9.4", 1498.1, 9.38),
            ("3159", "17.4", 3158.9, 17.39),
        ),
    ]
    rows = [
        Row("plain ResNet", depth, *printed, options=None)
        for depth, printed in {
            18: ("1814", "11.7"),
            34: ("3664", "21.8"),
            50: ("4089", "25.5"),
            101: ("7802", "44.4"),
        }.items()
    ]
    for name, options, *columns in ablations:
        for depth, column in zip((18, 34), columns, strict=True):
            rows.append(Row(name, depth, *column, options=MappingProxyType(options)))
    rows.append(Row("filter + recurrent", 50, "3412", "21.4"))
    rows.append(Row("filter + recurrent", 101, "7129", "41.5"))
    return {f"{'R' if row.options is None else 'VT-R'}{row.depth}, {row.name}": row for row in rows}


#: All rows by name.
ROWS: Mapping[str, Row] = MappingProxyType(_rows())
