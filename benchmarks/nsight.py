"""NVIDIA's Nsight Compute: how it is called, and what it prints."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# What each of its versions knows by these names; the rest comes in sections, under names of the chip.
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
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "ComputeWorkloadAnalysis",
    "Occupancy",
    "LaunchStats",
    "WarpStateStats",
)
_UNITS = {
    "nsecond": 1e-9, "ns": 1e-9, "usecond": 1e-6, "us": 1e-6, "msecond": 1e-3, "ms": 1e-3, "second": 1.0,
    "s": 1.0, "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9,
}  # fmt: skip


class Profile(NamedTuple):
    """A kernel's name and its counters, in seconds and bytes where they are of time or of memory."""

    kernel: str
    metrics: dict[str, float]


def unusable() -> str | None:
    """Why it cannot be called here, or None."""
    if shutil.which("ncu") is None:
        return "ncu (Nsight Compute, in NVIDIA's CUDA toolkit) is not on the PATH"
    return None


def profile(command: Sequence[str], kernels: Iterable[str], log: Path, seconds: float) -> list[Profile]:
    """Run a command, and return the profiles of those kernels that it launches between start and stop.

    The GPU's clocks stay as they are; its caches are emptied before each pass over a kernel.

    Raises:
        RuntimeError: it failed; the message ends with the last lines of what it printed.
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
        said = [line for line in f"{text}\n{printed}".splitlines() if line.strip()]
        raise RuntimeError(f"ncu failed with status {status}: {' | '.join(said[-4:])}")
    return parse(text)


def _run(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit status and output. Whatever ends the waiting ends ncu, and what it looks at, too."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"ncu was ended after {seconds:.0f} s") from None
            raise
    return process.returncode, printed


def parse(text: str) -> list[Profile]:
    r"""What ``--csv --page raw`` prints: names, units, and a line for each launch.

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
        raise RuntimeError(f"ncu has profiled no kernel; it said: {last}")
    names, units, *launches = rows
    kernel = names.index("Kernel Name")
    return [Profile(row[kernel], dict(_numbers(names, units, row))) for row in launches]


def _numbers(names: list[str], units: list[str], row: list[str]) -> Iterable[tuple[str, float]]:
    for name, unit, word in zip(names, units, row, strict=True):
        number = word.replace(",", "")
        if "__" in name and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", number):
            yield name, float(number) * _UNITS.get(unit, 1.0)


def stalls(metrics: dict[str, float]) -> list[tuple[str, float]]:
    """What warps wait for between two instructions, in cycles, the longest first.

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
