"""Child processes: each with CPUs of its own, warm memory and a plan; and the parent that collects their rows."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.timing import Budget

CPU = "cpu"


class UsageError(ValueError):
    """The arguments of a command cannot be carried out."""


class Plan(msgspec.Struct, kw_only=True):
    """What a child process does.

    Args:
        problems: measured in this order; see :mod:`benchmarks.runner`.
        cpus: the CPUs that the process may use; threads = len(cpus).
        device: "cpu" or "cuda:N".
        budget: of each cell.
        quick: ceilings are measured by small probes.
        memory_bytes: what is predicted to need more is not run. None: no limit on a CPU, 0.8 of what is free on
            a GPU.
        repeat: calls in one turn of the clock, for times below its resolution; there are then no floors.
        seconds: of the whole run; what does not begin in time is left out.
        compile_seconds: of one compilation, which is then given up.
        tf32: a GPU multiplies fp32 in TF32.
        environment: variables of the process.
        work: a module with ``work(plan)``, a generator of :class:`Message`, in place of the loop of
            :mod:`benchmarks.runner`.
    """

    problems: list[dict[str, Any]]
    cpus: list[int]
    device: str = CPU
    budget: Budget = Budget()
    quick: bool = False
    memory_bytes: int | None = None
    repeat: int | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    tf32: bool = False
    environment: dict[str, str] = {}
    work: str = "benchmarks.runner"
