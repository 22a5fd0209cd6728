"""Runs a command under NVIDIA's Nsight Compute, ``ncu``, and reads what it prints."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# All versions have these; the names of others, which come in sections, depend on the chip.
_METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)
_SECTIONS = (
    "SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "Occupancy", "LaunchStats",
    "WarpStateStats",
)  # fmt: skip
_UNITS = {
    "nsecond": 1e-9, "ns": 1e-9, "usecond": 1e-6, "us": 1e-6, "msecond": 1e-3, "ms": 1e-3, "second": 1.0,
    "s": 1.0, "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9,
}  # fmt: skip


class Profile(NamedTuple):
    """A kernel's name and its counters; times are in seconds, sizes in bytes."""

    kernel: str
    metrics: dict[str, float]


def profile(command: Sequence[str], kernels: Iterable[str], log: Path, seconds: float) -> list[Profile]:
    """Run a command and return the profiles of these kernels, of launches between start and stop.

    The GPU's clocks stay as they are; its caches are emptied before each run of a kernel.

    Raises:
        RuntimeError: it failed; the message ends with the last lines of its output.
    """
    ncu = [
        "ncu",
        *("--profile-from-start", "off", "--kernel-name", f"regex:^({'|'.join(kernels)})$"),
        *("--clock-control", "none", "--cache-control", "all", "--print-units", "base"),
        *(word for section in _SECTIONS for word in ("--section", section)),
        *("--metrics", ",".join(_METRICS), "--csv", "--page", "raw", "--log-file", str(log)),
    ]
    status, printed = _run([*ncu, *command], seconds)
    text = log.read_text() if log.exists() else ""
    if status != 0:
        lines = [line for line in f"{text}\n{printed}".splitlines() if line.strip()]
        raise RuntimeError(f"ncu failed with status {status}: {' | '.join(lines[-4:])}")
    return parse(text)


def _run(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit status and output. A timeout or an interrupt ends ncu and the command that it runs."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"ncu did not finish in {seconds:.0f} s") from None
            raise
    return process.returncode, printed


def parse(text: str) -> list[Profile]:
    r"""Read what ``--csv --page raw`` prints: names, units, and a line for each launch.

    Raises:
        RuntimeError: there is no such table.

    Example:
        >>> table = '"ID","Kernel Name","gpu__time_duration.sum"\n"","","ns"\n"0","combine","1,500"'
        >>> parse("==PROF== Connected\n" + table)
        [Profile(kernel='combine', metrics={'gpu__time_duration.sum': 1.5e-06})]
    """
    rows = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    if len(rows) < 3:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "nothing")
        raise RuntimeError(f"ncu profiled no kernel; its last line: {last}")
    names, units, *launches = rows
    kernel = names.index("Kernel Name")
    return [Profile(row[kernel], dict(_numbers(names, units, row))) for row in launches]


def _numbers(names: list[str], units: list[str], row: list[str]) -> Iterable[tuple[str, float]]:
    for name, unit, word in zip(names, units, row, strict=True):
        number = word.replace(",", "")
        if "__" in name and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", number):
            yield name, float(number) * _UNITS.get(unit, 1.0)


def stalls(metrics: dict[str, float]) -> list[tuple[str, float]]:
    """Why warps wait between two instructions, and cycles, the longest first.

    Example:
        >>> name = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
        >>> stalls({name.format("wait"): 1.0, name.format("long_scoreboard"): 7.5})
        [('long_scoreboard', 7.5), ('wait', 1.0)]
    """
    pattern = r"smsp__average_warps?_issue_stalled_(?!.*not_issued)(\w+)_per_issue_active\.ratio"
    found = [
        (match[1], value)
        for name, value in metrics.items()
        if (match := re.fullmatch(pattern, name)) and match[1] != "selected"
    ]
    return sorted(found, key=lambda each: -each[1])
