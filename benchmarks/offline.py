"""What the Triton kernels compile to, for GPUs that are not there, and how long the model says that it takes.

Calls of the ops on meta tensors tell which kernels would be launched, and how. Each is compiled for each
target, and what the compiler made of it is a row of a table: registers, spills, shared memory, how wide
loads are, whether they are asynchronous, whether matrix instructions are used.

    python -m benchmarks.offline                  # all calls, all targets; refreshes the committed table
    python -m benchmarks.offline --check          # a cover of them, against the list of what may spill
    python -m benchmarks.offline --choose sm_90   # choose settings anew, by compiling and the model
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from tqdm import tqdm

from benchmarks import choosing, offline_options
from benchmarks.cases import UNIT_STRIDES
from benchmarks.compiled import SHARED, TARGETS, Compiled, Launch, examined
from benchmarks.model import DEVICES, WALKS, predicted
from benchmarks.offline_calls import recorded
from vt_fast.backends.triton.samples import KERNELS, Shape
from vt_fast.backends.triton.schedule import Traits, standing_in

TABLE = Path(__file__).parent / "results" / "offline.json"
# Which kernels may spill, as patterns of "op target dtype layout BxNxCxL", and why.
EXCUSES = Path(__file__).parent / "offline_excuses.json"

SHAPES: tuple[Shape, ...] = (
    (256, 196, 256, 16),
    (256, 196, 1024, 16),
    (8, 60800, 256, 8),
    (1, 1048576, 1024, 16),
)
COVER: tuple[Shape, ...] = ((256, 196, 1024, 16), (8, 60800, 256, 8))
# Float16 is to a compiler what bfloat16 is.
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(arguments: list[str] | None = None) -> int:
    """Compile, print what is wrong, and write the table. 1 where --check finds what is not excused."""
    options = _parser().parse_args(arguments)
    if options.choose:
        for target in options.choose:
            print(f"written to {choosing.choose(target, options.op, options.kind, options.trials)}")
        return 0
    targets = options.target or (["sm_90", "gfx942"] if options.check else list(TARGETS))
    jobs = [
        Job(op, target, dtype, order, shape)
        for target, op, dtype, order, shape in itertools.product(
            targets, options.op, DTYPES, UNIT_STRIDES, COVER if options.check else SHAPES
        )
    ]
    # Processes of their own, as Triton compiles one kernel at a time; fresh ones, as torch has threads.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        rows = list(tqdm(pool.map(examine, jobs), total=len(jobs), unit="kernel"))
        calls = [
            offline_options.Options(op, words, dtype, target)
            for target, (op, words), dtype in itertools.product(
                targets, offline_options.COVER, [torch.bfloat16] if options.check else DTYPES.values()
            )
            if op in options.op
        ]
        checked = tqdm(pool.map(offline_options.faults, calls), total=len(calls), unit="call")
        broken = list(itertools.chain.from_iterable(checked))
    excuses: dict[str, str] = json.loads(EXCUSES.read_text())
    bad = [row for row in rows if row["fault"]]
    unexcused = [row for row in bad if not any(fnmatch(row["label"], pattern) for pattern in excuses)]
    for row in bad:
        excused = "FAULT" if row in unexcused else "excused"
        print(f"{excused}: {row['label']} [{row['setting']}]: {row['fault']}")
    print(f"{len(rows)} kernels, {len(bad)} with a fault, {len(unexcused)} of them without an excuse")
    for fault in broken:
        print(f"FAULT: {fault}")
    print(f"{len(calls)} calls with options, {len(broken)} faults")
    if not options.check:
        options.output.write_text(_text(rows))
    return bool(unexcused or broken) and options.check


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__)
    parser.add_argument("--check", action="store_true", help="a cover alone, and no table")
    parser.add_argument("--choose", nargs="+", choices=TARGETS, help="write tables of settings")
    parser.add_argument("--target", nargs="+", choices=TARGETS, help="default: all; with --check two")
    parser.add_argument("--op", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument(
        "--kind", nargs="+", choices=["16", "ieee", "tf32"], default=["16"], help="with --choose; default: 16"
    )
    parser.add_argument(
        "--trials",
        type=Path,
        metavar="FILE",
        help="with --choose: what other versions of Triton spill, to which this one's trials are added",
    )
    parser.add_argument("--output", type=Path, default=TABLE)
    return parser


class Job(NamedTuple):
    """A call to be compiled for a target."""

    op: str
    target: str
    dtype: str
    layout: str
    shape: Shape

    @property
    def label(self) -> str:
        """For people, and for excuses."""
        return " ".join([*self[:4], "x".join(map(str, self.shape))])


def examine(job: Job) -> dict[str, Any]:
    """A row of the table: the call's main kernel."""
    dtype = DTYPES[job.dtype]
    with standing_in(Traits(job.target, DEVICES[job.target].processors, SHARED[job.target])):
        found = recorded(job.op, dtype, UNIT_STRIDES[job.layout], job.shape)
    launch = next(each for each in found if each.kernel in WALKS)
    compiled = examined(launch, job.target)
    row: dict[str, Any] = {
        "label": job.label,
        **job._asdict(),
        "shape": "x".join(map(str, job.shape)),
        "setting": launch.setting,
        "programs": launch.programs,
        **asdict(compiled),
        "fault": compiled.fault(job.target),
    }
    if compiled.error is None:
        row |= _estimate(launch, compiled, job.shape, dtype, job.target)
    return row


def _estimate(
    launch: Launch, compiled: Compiled, shape: Shape, dtype: torch.dtype, target: str
) -> dict[str, Any]:
    """What the model says, in microseconds, and the least time by the bytes that must be moved."""
    device = DEVICES[target]
    found = predicted(device, launch, compiled, shape, "16" if dtype.itemsize == 2 else "ieee")
    walk = WALKS[launch.kernel]
    map_bytes = shape[0] * shape[1] * shape[2] * dtype.itemsize
    terms = {
        name: round(getattr(found, name) * 1e6, 1) for name in ("memory", "cache", "products", "waiting")
    }
    return {
        "model_us": round(found.seconds * 1e6, 1),
        "model_terms_us": terms,
        "floor_us": round((walk.reads + walk.writes) * map_bytes / device.memory * 1e6, 1),
        "programs_each": found.programs_each,
        "in_flight_bytes_each": found.in_flight,
    }


def _text(rows: list[dict[str, Any]]) -> str:
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    sys.exit(main())
