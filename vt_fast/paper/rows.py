"""What there is to be counted: the networks of both kinds, in one form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vt_fast.models import paper_rows, paper_rows_fpn


@dataclass(frozen=True)
class Network:
    """One row of a table.

    Args:
        table: its heading.
        name: of the row.
        build: makes the network, with the reference's backend where it has one.
        argument: makes what it is called with, on a device.
        unit: MACs in one of those that the row is printed in.
        printed_macs: as the paper prints them, in that unit; may hold a misprint or a range.
        printed_parameters: as the paper prints them, in millions; empty where it does not.
        known: whether our configuration is known to meet the print.
    """

    table: str
    name: str
    build: Callable[[], nn.Module]
    argument: Callable[[str], Any]
    unit: float
    printed_macs: str
    printed_parameters: str
    known: bool


IMAGENET = f"ImageNet, {paper_rows.IMAGE} x {paper_rows.IMAGE}: millions of MACs"
SEGMENTATION = "Segmentation: billions of MACs"


def networks() -> list[Network]:
    """All rows of the paper's tables.

    Example:
        >>> len(networks()) > 30
        True
    """
    return [*_imagenet(), *_segmentation()]


def _imagenet() -> list[Network]:
    def image(device: str) -> torch.Tensor:
        return torch.empty(1, 3, paper_rows.IMAGE, paper_rows.IMAGE, device=device)

    return [
        Network(
            IMAGENET,
            name,
            row.build,
            image,
            1e6,
            row.printed_macs,
            row.printed_parameters,
            row.options is None or row.fit_macs is not None,
        )
        for name, row in paper_rows.ROWS.items()
    ]


def _segmentation() -> list[Network]:
    return [
        Network(SEGMENTATION, row.name, row.build, row.argument, 1e9, row.paper, "", True)
        for row in paper_rows_fpn.ROWS
    ]
