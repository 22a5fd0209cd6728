"""A child process for each number of threads, on CPUs of its own and with memory that stays warm.

Threads and malloc are set up once in the life of a process, hence a process for each setting.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT


def available_cpus() -> list[int]:
    """The CPUs that this process may use, the first hardware thread of each core before any second one."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    allowed = sorted(os.sched_getaffinity(0))
    firsts: list[int] = []
    seconds: list[int] = []
    seen: set[str] = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = path.read_text().strip() if path.exists() else str(cpu)
        (seconds if core in seen else firsts).append(cpu)
        seen.add(core)
    return firsts + seconds


def environment(cpus: list[int]) -> dict[str, str]:
    """What a child that uses these CPUs is told.

    The malloc settings are glibc's: no block is given back to the system, so a call that has been made once
    finds all its pages there. A fresh page costs several times a copy of it, and without this whoever
    happened to allocate more would pay for it in his time. Without its caches of small blocks, glibc puts a
    freed tensor and the splinters from its alignment together again, so that the next one of the same size
    fits in; with them, a process that measures maps of a gigabyte grows and grows.
    """
    threads = str(len(cpus))
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_DYNAMIC": "FALSE",
        "GOMP_CPU_AFFINITY": " ".join(map(str, cpus)),
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(1 << 26),
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    }


def messages(plan: dict[str, Any], cpus: list[int]) -> Iterator[dict[str, Any]]:
    """Run a plan in a child and yield what it reports, one message for each case, as it comes.

    Raises:
        RuntimeError: the child ended with an error, or was killed.
    """
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "benchmarks.worker", str(writing), json.dumps({**plan, "cpus": cpus})]
    # Put before what is there already: the child must run this tree, from whatever folder.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = {**os.environ, **environment(cpus), "PYTHONPATH": path}
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=settings, pass_fds=[writing])
    os.close(writing)
    try:
        with os.fdopen(reading) as stream:
            for line in stream:
                yield json.loads(line)
        if child.wait() != 0:
            raise RuntimeError(f"the process with {len(cpus)} threads ended with status {child.returncode}")
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
