"""``python -m benchmarks counters``: the hardware's counters of our kernels on an NVIDIA GPU.

What limits a kernel that misses its floor: bytes beyond the compulsory ones, too little in flight (what warps
wait for, how many there are), or products.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import cases, nsight, running
from benchmarks.counter_records import Counted, CounterRun, save
from benchmarks.running import UsageError

MODE = "counters"
_OPS = [name for op in cases.OPS for name in (op, f"{op}_backward")]
# Of a call: ncu runs each kernel some ten times, and saves and restores what it writes.
_SECONDS = 60.0
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    labels = [shape.label for shape in cases.GPU_SHAPES]
    parser.add_argument("--op", nargs="+", choices=_OPS, default=_OPS)
    parser.add_argument("--shape", nargs="+", metavar="BxNxCxL", default=labels[:3])
    parser.add_argument("--dtype", nargs="+", choices=_BYTES, default=["bf16"])
    parser.add_argument("--layout", nargs="+", choices=cases.UNIT_STRIDES, default=list(cases.UNIT_STRIDES))
    parser.add_argument("--results", type=Path, default=running.RESULTS, metavar="FOLDER")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: a file in --results")


def main(options: argparse.Namespace) -> int:
    """Profile, print a table and save everything; 1 if something went wrong.

    Raises:
        UsageError: it cannot be done here.
    """
    for shape in options.shape:
        if len(shape.split("x")) != 4 or not all(size.isdigit() and int(size) for size in shape.split("x")):
            raise UsageError(f"--shape must be BxNxCxL, got {shape}")
    about = running.machine_of(running.CUDA)
    reason = nsight.unusable()
    if reason is not None:
        raise UsageError(f"no counters can be read here: {reason}")
    jobs = list(itertools.product(options.op, options.dtype, options.layout, options.shape))
    settings = {MODE: True, "device": running.CUDA, "jobs": len(jobs)}
    run = CounterRun(about, settings, [])
    start = time.monotonic()
    try:
        run.launches = _profiled(jobs)
    except RuntimeError as error:
        run.problems.append(str(error))
    settings["elapsed_seconds"] = time.monotonic() - start
    path = running.file_of(options, MODE, about, full=True)
    save(run, path)
    print(render(run))
    print(f"written to {path}")
    return 1 if run.problems or not run.launches else 0


def _profiled(jobs: list[tuple[str, str, str, str]]) -> list[Counted]:
    from vt_fast.backends.triton.samples import KERNELS  # needs Triton

    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "launched"
        words = [
            word
            for op, dtype, layout, shape in jobs
            for word in (op, dtype, cases.UNIT_STRIDES[layout], shape)
        ]
        command = [sys.executable, "-m", "benchmarks.counted", str(listed), *words]
        kernels = [*KERNELS.values(), "deltas", "combine"]
        profiles = nsight.profile(command, kernels, Path(folder) / "log", _SECONDS * len(jobs))
        launched = [json.loads(line) for line in listed.read_text().splitlines()]
    named = [each["kernel"] for each in launched]
    if [each.kernel for each in profiles] != named:
        raise RuntimeError(f"ncu has profiled {[each.kernel for each in profiles]}, launched were {named}")
    layouts = {word: name for name, word in cases.UNIT_STRIDES.items()}
    return [
        Counted(
            **each | {"layout": layouts[each["layout"]]},
            compulsory_bytes=_compulsory(each["kernel"], each["shape"], each["dtype"]),
            metrics=profile.metrics,
        )
        for each, profile in zip(launched, profiles, strict=True)
    ]


def _compulsory(kernel: str, shape: str, dtype: str) -> int | None:
    from benchmarks.model import WALKS  # needs Triton

    if kernel not in WALKS:
        return None
    batch, pixels, channels, _ = map(int, shape.split("x"))
    return (WALKS[kernel].reads + WALKS[kernel].writes) * batch * pixels * channels * _BYTES[dtype]


_HEADINGS = (
    "kernel", "of", "setting", "us", "moved / floor", "memory", "L2", "SM", "warps", "registers", "waits for",
)  # fmt: skip


def render(run: CounterRun) -> str:
    """A line for each launch; memory, L2, SM and warps in percent of the most there can be."""
    lines = [_HEADINGS, *(_line(each) for each in run.launches)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    text = [
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*text, *(f"Problem: {problem}" for problem in run.problems)])


def _line(each: Counted) -> tuple[str, ...]:
    metrics = each.metrics
    moved = metrics.get("dram__bytes_read.sum", 0.0) + metrics.get("dram__bytes_write.sum", 0.0)
    waits = [f"{name} {cycles:.1f}" for name, cycles in nsight.stalls(metrics)[:2]]

    def shown(name: str, scale: float = 1.0, digits: int = 0) -> str:
        value = metrics.get(name)
        return "-" if value is None else f"{value * scale:.{digits}f}"

    return (
        each.kernel,
        f"{each.shape} {each.dtype} {each.layout}",
        each.setting,
        shown("gpu__time_duration.sum", 1e6, 1),
        "-" if not each.compulsory_bytes else f"{moved / each.compulsory_bytes:.2f}",
        shown("dram__throughput.avg.pct_of_peak_sustained_elapsed"),
        shown("lts__throughput.avg.pct_of_peak_sustained_elapsed"),
        shown("sm__throughput.avg.pct_of_peak_sustained_elapsed"),
        shown("sm__warps_active.avg.pct_of_peak_sustained_active"),
        shown("launch__registers_per_thread"),
        ", ".join(waits) or "-",
    )
