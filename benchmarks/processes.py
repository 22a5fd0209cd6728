"""Child processes, each with CPUs of its own, warm memory and a plan; and the parent, which collects rows.

Threads and malloc are set up once in the life of a process, hence a process for each setting. This module
imports no torch, since a child sets its CPUs before that.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.results import CEILING, Row, Run
from benchmarks.timing import Budget, Limits

CPU = "cpu"
ROOT = Path(__file__).resolve().parents[1]


class UsageError(ValueError):
    """The arguments of a command cannot be carried out."""


class Plan(msgspec.Struct, kw_only=True):
    """What a child process does."""

    problems: list[dict[str, Any]]  # measured in this order; see benchmarks.runner
    cpus: list[int]  # that the process may use; as many threads
    device: str = CPU  # or "cuda:N"
    budget: Budget = Budget()  # of each cell
    quick: bool = False  # ceilings are measured by small probes
    # What is predicted to need more is not run. None: no limit on a CPU, 0.8 of what is free on a GPU.
    memory_bytes: int | None = None
    # Calls in one turn of the clock, for times below its resolution. There are then no floors.
    repeat: int | None = None
    seconds: float | None = None  # of the whole run; what does not begin in time is left out
    compile_seconds: float | None = None  # of one compilation, which is then given up
    tf32: bool = False  # a GPU multiplies fp32 in TF32
    # In place of benchmarks.runner, a module with work(plan), a generator of messages.
    work: str = "benchmarks.runner"


class Message(msgspec.Struct, kw_only=True):
    """What a child reports."""

    index: int | None = None  # of the problem that begins
    case: str = ""  # its name
    rows: list[Row] = []  # what has been measured of it
    problem: str = ""  # why it could not be measured
    left_out: dict[str, str] = {}  # why it was not: "why" is "time" or "memory"; "reason" says more
    facts: dict[str, Any] = {}  # for the head of the result file; lists are joined


def cpus_of(threads: int | None) -> list[int]:
    """The CPUs for so many threads (None: all), the first hardware thread of each core first."""
    affinity = hasattr(os, "sched_getaffinity")
    allowed = sorted(os.sched_getaffinity(0)) if affinity else list(range(os.cpu_count() or 1))
    cores = []
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.append(path.read_text() if path.exists() else str(cpu))
    cpus = [cpu for _, cpu in sorted((cores[:i].count(cores[i]), cpu) for i, cpu in enumerate(allowed))]
    if threads is not None and not 1 <= threads <= len(cpus):
        raise UsageError(f"--threads must be from 1 to {len(cpus)}, the CPUs that may be used, got {threads}")
    return cpus[:threads]


def environment(cpus: Sequence[int]) -> dict[str, str]:
    """Variables of a child that uses these CPUs.

    The malloc settings are glibc's: no block is given back to the system, so a call that has been made once
    finds all its pages there. A fresh page costs several times a copy of it, and without this whatever
    allocates more would pay for it in its time. Without its caches of small blocks, glibc puts a freed tensor
    and the splinters from its alignment together again, so that the next one of the same size fits in; with
    them, a process that measures maps of a gigabyte grows and grows.
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
        # Before what is there already: the child must run this tree, from whatever folder.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }


class Died(RuntimeError):
    """A child process ended with an error, or was killed."""


def messages(plan: Plan) -> Iterator[Message]:
    """Run a plan in a child and yield what it reports, as it comes.

    Raises:
        Died: the child did.
    """
    reading, writing = os.pipe()
    code = "import sys; from benchmarks import processes; processes.main(int(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(writing)]
    settings = {**os.environ, **environment(plan.cpus)}
    child = subprocess.Popen(command, stdin=subprocess.PIPE, env=settings, pass_fds=[writing], text=True)
    os.close(writing)
    try:
        assert child.stdin is not None
        with child.stdin:
            child.stdin.write(_packed(plan))
        with os.fdopen(reading) as stream:
            for line in stream:
                yield msgspec.convert(json.loads(line), Message)
        if child.wait() != 0:
            raise Died(f"its process ended with status {child.returncode}")
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def _packed(value: Plan | Message) -> str:
    # Not by msgspec.json, which writes null for infinity.
    return json.dumps(msgspec.to_builtins(value))


def main(descriptor: int) -> None:
    """Be the child: carry out the plan on standard input, and report to a file descriptor."""
    plan = msgspec.convert(json.loads(sys.stdin.read()), Plan)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, plan.cpus)  # before torch starts any thread
    with os.fdopen(descriptor, "w") as stream:
        for message in importlib.import_module(plan.work).work(plan):
            print(_packed(message), file=stream, flush=True)


def conduct(run: Run, plans: Sequence[Plan], save: Callable[[Run], object]) -> int:
    """Carry out all plans, add what they report to the run, and ``save`` it after each problem.

    A child that dies is replaced by one for the remaining problems. Returns 130 after Ctrl-C, else 0.
    """
    from tqdm import tqdm

    start, status = time.monotonic(), 0
    run.facts["left_out"] = []
    try:
        with tqdm(total=sum(len(plan.problems) for plan in plans), unit="case", dynamic_ncols=True) as bar:
            for plan in plans:
                limits = Limits(plan.seconds)
                while plan.problems:
                    done = _carry_out(run, plan, bar, save)
                    left = None if plan.seconds is None else limits.remaining
                    plan = msgspec.structs.replace(plan, problems=plan.problems[done:], seconds=left)
        run.facts["complete"] = all(each["why"] == "memory" for each in run.facts["left_out"])
    except KeyboardInterrupt:
        status = 130
    run.facts["elapsed_seconds"] = round(time.monotonic() - start, 1)
    save(run)
    return status


def _carry_out(run: Run, plan: Plan, bar: Any, save: Callable[[Run], object]) -> int:
    """Run a child; returns how many problems are done, or are not tried again."""
    begun, case = 0, ""
    known = {row.key for row in run.rows if row.role == CEILING}  # an earlier child may have measured them
    try:
        for message in messages(plan):
            if message.index is not None:
                bar.update(message.index + 1 - begun if begun else 0)
                begun = message.index + 1
                save(run)
            case = message.case or case
            bar.set_description(
                f"{len(plan.cpus)} thr. {case}" if plan.device == CPU else case, refresh=False
            )
            run.rows += [row for row in message.rows if row.key not in known]
            run.facts["problems"] += filter(None, [message.problem])
            if message.left_out:
                run.facts["left_out"].append({"case": case, **message.left_out})
            for key, value in message.facts.items():
                run.facts[key] = [*run.facts.get(key, []), *value] if isinstance(value, list) else value
        begun = len(plan.problems)
    except Died as error:
        run.facts["problems"].append(f"{case or 'before the first case'}: {error}")
        if not begun:
            run.facts["left_out"].append({"case": "all", "why": "process", "reason": str(error)})
            begun = len(plan.problems)
    bar.update()
    return begun
