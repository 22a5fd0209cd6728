"""``python -m benchmarks models``: the paper's networks against those that they replace.

ResNets and FPN, and the parts of them that the paper replaces. Sides: ``convolutions``, which are replaced;
``reference``, the paper's equations; ``compile reference``, where torch.compile compiles the paper's part of
the network; ``vt_fast``; ``vt_fast frozen``, which keeps operands (:func:`vt_fast.nn.freeze`); and of a neck
its laterals alone, which both necks have.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.devices import Device
from benchmarks.modules import INFERENCE, TRAINING, Comparison, ModuleProblem, Side, paper
from benchmarks.processes import Plan, cpus_of
from benchmarks.results import REPLACED
from benchmarks.shapes import GPU_DTYPES, LAYOUTS
from benchmarks.timing import QUICK, Budget
from vt_fast.models import FPN, VTFPN, ResNet, VTResNet, fpn, vt_fpn

MODE = "models"
KINDS = ("stage", "neck", "classifier", "segmentation")
PASSES = (INFERENCE, TRAINING)
LATERALS = "laterals alone"
PEERS = ("reference", "compile reference", "convolutions", LATERALS)
# Nothing leaves the rotation, however far behind.
BUDGET = Budget(3.0, least=7, most=50, few=5, patience=30.0, behind=math.inf, far_behind=math.inf)
# Images of COCO and LIP, and the classes that are told apart in them.
_CLASSES = {(800, 1216): 54, (473, 473): 20, (64, 96): 20}


def cases(quick: bool = False) -> Iterator[dict[str, Any]]:
    """All cases by their names, as :func:`problem` takes them.

    Example:
        >>> len(list(cases())), next(cases())
        (16, {'network': 'stage', 'depth': 18, 'image': [8, 3, 224, 224]})
    """
    if quick:
        depths, squares, scenes = [18], [[1, 3, 64, 64]], [[1, 3, 64, 96]]
    else:
        # The stage's map is 14 x 14 or 16 x 16. Whole classifiers have the first size alone.
        depths, squares = [18, 34, 50, 101], [[8, 3, 224, 224], [4, 3, 256, 256]]
        scenes = [[1, 3, 800, 1216], [1, 3, 473, 473]]
    of = {
        "stage": (depths, squares),
        "neck": ([50], scenes),
        "classifier": (depths, squares[:1]),
        "segmentation": ([50], scenes),
    }
    for kind in KINDS:
        for depth, image in itertools.product(*of[kind]):
            yield {"network": kind, "depth": depth, "image": image}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The mode's options."""
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=["channels_last"])
    add_common_arguments(parser, PASSES, PEERS)


def add_common_arguments(
    parser: argparse.ArgumentParser, passes: Sequence[str], peers: Sequence[str]
) -> None:
    """Options of all modes that compare modules."""
    parser.add_argument("--dtype", nargs="+", choices=GPU_DTYPES, default=["fp32"])
    parser.add_argument("--pass", nargs="+", choices=passes, default=list(passes), dest="passes")
    text = f"of {', '.join(peers)}; default: all, in a quick run those that are not compiled"
    parser.add_argument("--peers", nargs="*", choices=peers, metavar="NAME", help=text)
    parser.add_argument("--threads", type=int, metavar="T", help="of a CPU; default: all that may be used")


def plans(options: argparse.Namespace) -> list[Plan]:
    """One process measures all networks."""
    chosen = [case for case in cases(options.quick) if case["network"] in options.kind]
    specs = [{**case, "layout": layout} for case in chosen for layout in options.layout]
    return plan(options, "network", specs, BUDGET)


def plan(options: argparse.Namespace, kind: str, specs: list[dict[str, Any]], budget: Budget) -> list[Plan]:
    """One process that compares modules in all dtypes."""
    common = {"kind": kind, "quick": options.quick, "passes": options.passes, "peers": options.peers}
    return [
        Plan(
            problems=[{**common, **spec, "dtype": dtype} for spec in specs for dtype in options.dtype],
            cpus=cpus_of(options.threads),
            device=options.device,
            budget=QUICK if options.quick else budget,
            quick=options.quick,
        )
    ]


def problem(spec: dict[str, Any], device: Device) -> ModuleProblem:
    """A network as :mod:`benchmarks.runner` measures it."""
    name, found = comparison(spec["network"], spec["depth"], spec["image"])
    return ModuleProblem(found, MODE, name, "x".join(map(str, spec["image"])), spec, device)


def comparison(kind: str, depth: int, image: Sequence[int]) -> tuple[str, Comparison]:
    """The name and the sides of a network, or a part of it, on images of a size.

    All depths have the module of VT-ResNet-18 and 34, so that they differ in size alone.
    """
    with torch.device("meta"):
        channels = ResNet(depth).channels
    classes = _CLASSES.get((image[2], image[3]), 1000)
    if kind == "stage":
        # For a classifier, hence the result is the tokens.
        ours = Side(lambda: VTResNet(depth, variant="v2").stage, lambda host, x: host(x)[1])
        replaced = Side(lambda: ResNet(depth).get_submodule("layer4"))
        given, small = (_maps(size, channels)[2:3] for size in (image, (2, 3, 112, 112)))
        return f"ResNet-{depth}'s last stage", paper(ours, replaced, given, small, frozen=True)
    if kind == "neck":
        ours = Side(lambda: VTFPN(channels), lambda host, *maps: host(maps))
        replaced = ours._replace(make=lambda: FPN(channels))
        given, small = (_maps(size, channels) for size in (image, (2, 3, 96, 64)))
        found = paper(ours, replaced, given, small, frozen=True)
        # What is left of the neck where tokens cost nothing.
        laterals = Side(lambda: VTFPN(channels).inner_blocks, _each, role=REPLACED)
        return f"FPN on ResNet-{depth}", found._replace(sides={**found.sides, LATERALS: laterals})
    if kind == "classifier":
        ours = Side(lambda: VTResNet(depth, classes, variant="v2"))
        replaced = Side(lambda: ResNet(depth, classes))
        return f"ResNet-{depth}", paper(ours, replaced, [image], [(2, 3, 64, 64)], "stage", frozen=True)
    ours, replaced = Side(lambda: vt_fpn(depth, classes)), Side(lambda: fpn(depth, classes))
    return f"ResNet-{depth} FPN", paper(ours, replaced, [image], [(2, 3, 64, 96)], "neck", frozen=True)


def _each(blocks: Any, *maps: torch.Tensor) -> list[torch.Tensor]:
    return [block(x) for block, x in zip(blocks, maps, strict=True)]


def _maps(image: Sequence[int], channels: Sequence[int]) -> list[Sequence[int]]:
    """Of strides 4, 8, 16 and 32, sizes rounded up."""
    batch, _, height, width = image
    sizes = ((-(-height // (4 << level)), -(-width // (4 << level))) for level in range(len(channels)))
    return [(batch, count, *size) for count, size in zip(channels, sizes, strict=True)]
