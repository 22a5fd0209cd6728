"""The table of predicted times."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import results
from benchmarks.shapes import GPU_SHAPES
from tools.cuda import counting, resources
from tools.cuda.counting import Plan
from tools.cuda.gpus import GPUS, Gpu
from tools.cuda.machine_code import Kernel
from tools.cuda.model import STEPS, in_flight, predict

FOLDER = Path(__file__).parent
TRITON = FOLDER.parent / "triton" / "offline.csv"
LAYOUTS = ("channels_last", "nchw")
# By the names of native_build.cuda.
TYPES = {"Bf16": 2, "Fp32": 4}
# B, N, C and L: those of the benchmark, and others with few, many and odd numbers of pixels.
SHAPES = (
    *(shape.sizes for shape in GPU_SHAPES),
    (32, 3136, 512, 16),
    (256, 49, 512, 16),
    (256, 49, 1024, 16),
    (8, 12769, 512, 16),
)
COLUMNS = (
    "op", "dtype", "layout", "shape", "kernel", "blocks_each", "in_flight_kb", "floor_us", "total_us",
    "floor_over_total", "bound", "memory_us", "busy_us", "unit", "waiting_us", "parts_us", "triton_us",
)  # fmt: skip

Row = dict[str, Any]


def table(architecture: str) -> Path:
    """The committed table of an architecture."""
    return FOLDER / f"model-sm_{architecture}.csv"


def rows(architecture: str) -> list[Row]:
    """A row for each op, dtype, layout and shape.

    Raises:
        ValueError: the model does not know the GPU, or there is no table of its kernels.
    """
    if architecture not in GPUS or not resources.table(architecture).exists():
        known = ", ".join(name for name in GPUS if resources.table(name).exists())
        raise ValueError(f"`arch` must be one of {known}, got {architecture!r}")
    gpu = GPUS[architecture]
    _, compiled = results.read(resources.table(architecture))
    calls = list(itertools.product(LAYOUTS, SHAPES))
    found: list[Row] = []
    for op, dtype in itertools.product(STEPS, TYPES):
        own = [row for row in compiled if row["op"] == op and row["dtype"] == dtype.lower() and row["layout"]]
        if not own:
            continue
        facts = {_kernel(row): row for row in own}
        registers = {kernel: int(row["registers"]) for kernel, row in facts.items()}
        sizes = [(storage(layout, dtype, shape[1]), *shape) for layout, shape in calls]
        plans = counting.plans(op, dtype, gpu, registers, sizes)
        for (layout, shape), plan in zip(calls, plans, strict=True):
            row = {"op": op, "dtype": dtype.lower(), "layout": layout, "shape": "x".join(map(str, shape))}
            found.append(
                row | ({} if plan is None else _predicted(gpu, row, shape, plan, facts[plan.kernel]))
            )
    return _beside_triton(found, f"sm_{architecture.rstrip('a')}")


def storage(layout: str, dtype: str, pixels: int) -> str:
    """What the kernels call the layout of a dense map, as csrc/torch/cuda_calls.h chooses it."""
    if layout == "channels_last":
        return "last"
    return "shifted" if dtype == "Fp32" or pixels % 4 else "first"


def _kernel(row: Row) -> Kernel:
    return Kernel(row["kernel"], row["layout"], *(int(row[name]) for name in ("mt", "nt", "tp")))


def _predicted(gpu: Gpu, row: Row, shape: tuple[int, int, int, int], plan: Plan, facts: Row) -> Row:
    itemsize = 4 if row["dtype"] == "fp32" else 2
    kernel = plan.kernel
    predicted = predict(gpu, row["op"], shape, itemsize, plan, (int(facts["tile"]), int(facts["counted"])))
    sizes = f"MT={kernel.mt} NT={kernel.nt} TP={kernel.tp} warps={plan.warps} stages={plan.stages}"
    under_way = plan.blocks_each * in_flight(plan, STEPS[row["op"]], itemsize)
    return {
        "kernel": sizes + (f" ranks={plan.ranks}" if plan.ranks > 1 else ""),
        "blocks_each": plan.blocks_each,
        "in_flight_kb": under_way // 1024,
        "floor_over_total": round(predicted.floor / predicted.total, 2),
        "bound": predicted.bound,
        "unit": predicted.unit,
        **{
            f"{name}_us": round(getattr(predicted, name) * 1e6, 1)
            for name in ("floor", "total", "memory", "busy", "waiting", "parts")
        },
    }


def _beside_triton(found: Sequence[Row], gpu: str) -> list[Row]:
    """With the predictions of tools/triton, which are of another model."""
    keys = ("op", "dtype", "layout", "shape")
    times = {
        tuple(row[key] for key in keys): row["total_us"]
        for row in results.read(TRITON)[1]
        if row["gpu"] == gpu
    }
    return [row | {"triton_us": times.get(tuple(row[key] for key in keys), "")} for row in found]


def render(found: Iterable[Row]) -> str:
    """A line for each row."""
    names = ("kernel", "blocks_each", "floor_us", "total_us", "floor_over_total", "bound", "triton_us")
    lines = [
        [" ".join(row[name] for name in COLUMNS[:4]), *(row.get(name, "") for name in names)] for row in found
    ]
    headings = ["call", "kernel", "blocks", "floor us", "time us", "floor / time", "bound by", "Triton us"]
    return "A model, not a measurement.\n" + str(tabulate(lines, headings, disable_numparse=True))
