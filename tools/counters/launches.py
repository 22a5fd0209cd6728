"""Hardware counters of our kernels on an NVIDIA GPU: what limits one that misses its floor.

That may be more bytes than the compulsory ones, too few in flight (which warps wait for), or products.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, results
from tools.counters import nsight
from tools.triton.calls import Call
from tools.triton.model import compulsory_bytes
from vt_fast.backends.triton.samples import KERNELS

# Of a call: ncu runs each kernel some ten times, and saves and restores what it writes.
_SECONDS = 60.0
# A launch: a call's words, how it was launched, the bytes of its maps, and the counters by their names.
Row = Mapping[str, Any]


def run(calls: Sequence[Call], backend: str, output: Path | None) -> None:
    """Profile a backend's kernels, "triton" or "cuda", save the counters and print some of them.

    Raises:
        ValueError: there are no counters here.
        RuntimeError: the calls could not be profiled.
    """
    reason = machine.unusable("cuda:0")
    if reason is None and shutil.which("ncu") is None:
        reason = "ncu (Nsight Compute, in NVIDIA's CUDA toolkit) is not on the PATH"
    if reason is not None:
        raise ValueError(f"no counters can be read here: {reason}")
    about = machine.describe("cuda:0")
    name = about["gpu"]["name"].lower().replace(" ", "-")
    path = output or Path(__file__).with_name(f"counters-{backend}-{name}.csv")
    rows = profiled(calls) if backend == "triton" else [row for call in calls for row in profiled_cuda(call)]
    facts = {"machine": about, "commit": machine.commit()}
    results.write(path, facts, list(dict.fromkeys(column for row in rows for column in row)), rows)
    print(f"written to {path}")
    print(render(rows))


def profiled(calls: Iterable[Call]) -> list[Row]:
    """The launches of all calls.

    Raises:
        RuntimeError: they were not profiled.
    """
    words = [word for call in calls for word in call.words.values()]
    with tempfile.TemporaryDirectory() as folder:
        listed, log = Path(folder) / "launched", Path(folder) / "log"
        command = [sys.executable, "-m", "tools.counters.profiled_calls", "triton", str(listed), *words]
        kernels = [*KERNELS.values(), "deltas", "combine"]
        profiles = nsight.profile(command, kernels, log, _SECONDS * len(words) / 4)
        launched = [json.loads(line) for line in listed.read_text().splitlines()]
    named, expected = [each.kernel for each in profiles], [each["kernel"] for each in launched]
    if named != expected:
        raise RuntimeError(f"ncu profiled {named}, but {expected} were launched")
    return [
        {
            **launch,
            "compulsory_bytes": compulsory_bytes(
                launch["kernel"], Call.of(*(launch[word] for word in ("op", "dtype", "layout", "shape")))
            ),
            **{name: f"{value:.9g}" for name, value in profile.metrics.items()},
        }
        for launch, profile in zip(launched, profiles, strict=True)
    ]


def profiled_cuda(call: Call) -> list[Row]:
    """The launches of a call of the CUDA kernels, which have their template's arguments as the setting.

    Raises:
        RuntimeError: it was not profiled.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["cuda", os.devnull, *call.words.values()]
        command = [sys.executable, "-m", "tools.counters.profiled_calls", *words]
        profiles = nsight.profile(
            command, ("start_kernel", "start_small_kernel"), Path(folder) / "log", _SECONDS
        )
    rows: list[Row] = []
    for profile in profiles:
        found = re.search(r"kernel<(?:\w+::)*(\w+)<(.*)>>\(", profile.kernel)
        if found is None:
            raise RuntimeError(f"ncu profiled {profile.kernel!r}, which is none of the CUDA kernels")
        main = found[1] in ("Forward", "Backward")
        rows.append(
            {
                **call.words,
                "kernel": found[1],
                "setting": found[2],
                "programs": "",
                "compulsory_bytes": compulsory_bytes(KERNELS[call.op], call) if main else None,
                **{name: f"{value:.9g}" for name, value in profile.metrics.items()},
            }
        )
    return rows


_PERCENTAGES = {
    "memory": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "L2": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "SM": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
}


def render(rows: Iterable[Row]) -> str:
    """A line for each launch; memory, L2, SM and warps in percent of the peak."""
    from tabulate import tabulate  # not needed to profile

    return str(tabulate(list(map(_line, rows)), "keys", missingval="-", disable_numparse=True))


def _line(row: Row) -> dict[str, str | None]:
    metrics = {name: float(value) for name, value in row.items() if "__" in name and value}
    moved = metrics.get("dram__bytes_read.sum", 0.0) + metrics.get("dram__bytes_write.sum", 0.0)
    compulsory = float(row["compulsory_bytes"] or 0)
    waits = [f"{name} {cycles:.1f}" for name, cycles in nsight.stalls(metrics)[:2]]

    def shown(name: str, scale: float = 1.0, digits: int = 0) -> str | None:
        return f"{metrics[name] * scale:.{digits}f}" if name in metrics else None

    return {
        "kernel": row["kernel"],
        "of": " ".join(row[word] for word in ("shape", "dtype", "layout")),
        "setting": row["setting"],
        "us": shown("gpu__time_duration.sum", 1e6, 1),
        "moved / floor": f"{moved / compulsory:.2f}" if compulsory else None,
        **{heading: shown(name) for heading, name in _PERCENTAGES.items()},
        "registers": shown("launch__registers_per_thread"),
        "waits for": ", ".join(waits) or None,
    }
