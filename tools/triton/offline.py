"""The table of what the kernels compile to for each GPU, and the check of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import triton
from tqdm import tqdm

from benchmarks import results
from tools.triton import optional_calls
from tools.triton.calls import SHAPES, UNIT_STRIDES, Call
from tools.triton.compiled import compiled, unless_miscompiled
from tools.triton.gpus import GPUS
from tools.triton.model import predict
from vt_fast.backends.triton.samples import KERNELS
from vt_fast.backends.triton.schedule import standing_in

TABLE = Path(__file__).with_name("offline.csv")
# Kernels that may have a fault, by the reason why.
EXCUSES = Path(__file__).with_name("excuses.json")
# Of 16-bit dtypes one is enough: to the compiler they are alike.
DTYPES = ("bf16", "fp32")
# What --check compiles.
CHECKED_GPUS, CHECKED_SHAPES, CHECKED_DTYPES = ("sm_90", "gfx942"), SHAPES[1:3], ("bf16",)

_Result = TypeVar("_Result")


def row(architecture: str, call: Call) -> dict[str, Any]:
    """A row of the table: the call's main kernel, compiled for a GPU. Times are in microseconds."""
    gpu = GPUS[architecture]
    with standing_in(gpu.traits):
        launch = call.main_launch(unless_miscompiled(gpu))
    kernel = compiled(launch, gpu)
    made = {
        "gpu": architecture,
        **call.words,
        "setting": launch.setting,
        "programs": launch.programs,
        **kernel._asdict(),
        "fault": kernel.fault(gpu),
    }
    if kernel.error is not None:
        return made
    times = predict(gpu, launch, kernel, call)._asdict()
    each = {name: times.pop(name) for name in ("programs_each", "in_flight")}
    return made | {f"{name}_us": round(value * 1e6, 1) for name, value in times.items()} | each


def label(row: dict[str, Any]) -> str:
    """What a row is of, as in the excuses."""
    return " ".join(row[name] for name in ("op", "gpu", "dtype", "layout", "shape"))


def run(gpus: Sequence[str], ops: Sequence[str], *, check: bool, output: Path) -> int:
    """Compile, print faults, and write the table; with ``check`` return 1 for faults without an excuse."""
    shapes = CHECKED_SHAPES if check else SHAPES
    combined = itertools.product(gpus, ops, DTYPES, UNIT_STRIDES, shapes)
    jobs = [(gpu, Call(op, dtype, layout, shape)) for gpu, op, dtype, layout, shape in combined]
    optional = [
        (gpu, op, options, dtype)
        for gpu, (op, options), dtype in itertools.product(
            gpus, optional_calls.COVER, CHECKED_DTYPES if check else DTYPES
        )
        if op in ops
    ]
    with processes() as pool:
        rows = list(progress(pool.map(row, *zip(*jobs, strict=True)), len(jobs), "kernel"))
        found = pool.map(optional_calls.rows, *zip(*optional, strict=True))
        with_options = list(itertools.chain.from_iterable(progress(found, len(optional), "call")))
    excused = {name for names in json.loads(EXCUSES.read_text()).values() for name in names}
    if results.read(TABLE)[0]["triton"] != triton.__version__:  # settings were chosen for that one
        excused |= {label(each) for each in rows if each["spills"]}
    faulty = [each for each in rows if each["fault"]]
    unexcused = [each for each in faulty if label(each) not in excused]
    for each in faulty:
        status = "FAULT" if each in unexcused else "excused"
        print(f"{status}: {label(each)} [{each['setting']}]: {each['fault']}")
    print(f"{len(rows)} kernels, {len(faulty)} with a fault, {len(unexcused)} of them without an excuse")
    broken = [each for each in with_options if each["fault"]]
    for each in broken:
        print(f"FAULT: {optional_calls.label(each)}: {each['fault']}")
    print(f"{len(optional)} calls with options, {len(broken)} faults")
    if not check:
        write(output, rows)
        write(optional_table(output), [each for each in with_options if kept(each)])
    return int(check and bool(unexcused or broken))


def optional_table(table: Path) -> Path:
    """The file beside a table with the kernels of calls with options."""
    return table.with_stem(f"{table.stem}-optional")


def kept(row: dict[str, Any]) -> bool:
    """Whether a row of a call with options is tabled: of one GPU, and of a kernel that reads the map."""
    return row["gpu"] == "sm_90" and row["kernel"] in KERNELS.values()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table."""
    columns = dict.fromkeys(name for each in rows for name in each)
    results.write(path, {"triton": triton.__version__}, list(columns), rows)


def processes() -> ProcessPoolExecutor:
    """Processes to compile in: Triton compiles one kernel at a time. Spawned, as torch has threads."""
    return ProcessPoolExecutor(mp_context=get_context("spawn"))


def progress(results: Iterable[_Result], total: int, unit: str) -> Iterable[_Result]:
    """Results as they come, with a progress bar."""
    shown: Iterable[_Result] = tqdm(results, total=total, unit=unit)
    return shown
