"""The networks that table 8 compares with, as rows of the paper's tables.

Gates and units beside ResNets are as their papers describe them. The print has some of their counts from
these papers, which count in other ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn

from tools.paper.rows import IMAGE, Row, Source
from tools.torchvision import load_torchvision
from vt_fast.models.attention import NETWORKS

COMPARATORS = "Networks that table 8 compares with, ImageNet, 224 x 224: billions of MACs"


def _network(name: str, **options: Any) -> Callable[..., nn.Module]:
    """Windows are gathered and projections stay on the pixels, so that counters see all products."""
    if name.startswith(("lr_", "sasa_", "san19_")):
        options["unfold"] = True
    if name.startswith(("a2_", "glore_")):
        options["backend"] = "reference"
    return partial(_built, name, options)


def _built(name: str, fixed: Mapping[str, Any], **options: Any) -> nn.Module:
    if name.startswith(("se_", "cbam_")):
        load_torchvision()
    return NETWORKS[name](**{**fixed, **options})


def _rows() -> list[Row]:
    norm = "parameters with BatchNorm"
    original = f"stride in the first 1x1 convolution; {norm}"
    # Name, its network and options, printed MACs and parameters, source, whether with BatchNorm, note.
    rows: list[tuple[str, str, dict[str, Any], str, str, Source, bool, str]] = [
        ("R18 + SE", "se_resnet18", {}, "1.814", "11.8", "stated", False, ""),
        ("R34 + SE", "se_resnet34", {}, "3.664", "22.0", "stated", True, norm),
        ("R50 + SE", "se_resnet50", {"stride_in_1x1": True}, "3.860", "28.1", "fit", True, original),
        ("R101 + SE", "se_resnet101", {"stride_in_1x1": True}, "7.575", "49.3", "fit", True, original),
        ("R18 + CBAM", "cbam_resnet18", {}, "1.815", "11.8", "stated", False, ""),
        ("R34 + CBAM", "cbam_resnet34", {}, "3.664", "22.9 (read 22.0)", "stated", True,
         f"22.9 is a misprint: CBAM is hardly larger than SE; {norm}"),
        ("R50 + CBAM", "cbam_resnet50", {"stride_in_1x1": True}, "3.864", "28.1", "fit", True, original),
        ("R101 + CBAM", "cbam_resnet101", {"stride_in_1x1": True}, "7.581", "49.3", "fit", True, original),
        ("LR-R18", "lr_resnet18", {}, "2.5", "14.4", "unexplained", False,
         "here two bottlenecks in each stage; basic blocks have fewer parameters"),
        ("LR-R50", "lr_resnet50", {}, "4.3", "23.3", "fit", False, "widths times 100 / 64, projected values"),
        ("LR-R101", "lr_resnet101", {}, "7.79", "42.0", "unexplained", False, "here as LR-R50"),
        ("AA-R34", "aa_resnet34", {}, "3.55", "20.7", "stated", True,
         f"which maps are pooled is not stated; {norm}"),
        ("AA-R50", "aa_resnet50", {}, "4.1", "25.6 (read 25.8)", "stated", True,
         f"as AA-R34; 25.6 is a misprint, it is the size of a plain R50; {norm}"),
        ("AA-R101", "aa_resnet101", {}, "8.05", "45.4", "stated", True, f"as AA-R34; {norm}"),
        ("Stand-alone R50", "sasa_resnet50", {}, "3.6", "18.0", "stated", False, "7 x 7 windows, 8 heads"),
        ("SAN19", "san19_patchwise", {}, "3.3", "20.5", "stated", True, f"patchwise; {norm}"),
        ("SAN19, pairwise", "san19_pairwise", {}, "", "", "ours", True, f"not in the table; {norm}"),
        ("A2-R50", "a2_resnet50", {}, "", "", "stated", False, "accuracy alone is printed; 5 units"),
        ("GloRe-R50", "glore_resnet50", {}, "5.2", "30.5", "stated", True, f"3 units of 256 nodes; {norm}"),
        ("GloRe-R200", "glore_resnet200", {}, "16.9", "70.6", "fit", True,
         f"3 units in the third stage, 2 in the second; {norm}"),
    ]  # fmt: skip
    return [
        Row(COMPARATORS, title, _network(name, **options), (IMAGE,), 1e9, macs, size, source,
            "8" if macs or title == "A2-R50" else "", note, batch_norm)
        for title, name, options, macs, size, source, batch_norm, note in rows
    ]  # fmt: skip


#: These rows by name.
ROWS: Mapping[str, Row] = MappingProxyType({row.name: row for row in _rows()})
