"""The child process: measures a plan's cases on its CPUs and reports each as a line of JSON.

Run by :mod:`benchmarks.launch` with the number of a file descriptor to report to, and the plan.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

# What a process with torch in it takes besides tensors, the stacks of its threads included.
_OWN_BYTES = 3 << 30


def main(arguments: list[str]) -> int:
    """Measure; the plan is that of :func:`benchmarks.ops.plan`, or of networks."""
    descriptor, text = arguments
    plan = json.loads(text)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, plan["cpus"])  # before torch starts any thread
    with os.fdopen(int(descriptor), "w") as stream:
        for message in _messages(plan):
            stream.write(json.dumps(message) + "\n")
            stream.flush()
    return 0


def _messages(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "networks" in plan:
        from benchmarks.networks import command

        return command.work(plan["networks"], len(plan["cpus"]))
    return work(plan)


def work(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A message for each case: its cells, or the reason why there are none; then one about the process."""
    import resource

    import torch

    from benchmarks.cases import Case, Shape
    from benchmarks.ceilings import Ceilings
    from benchmarks.device import Device
    from benchmarks.host import Host
    from benchmarks.measuring import measure, refuse
    from benchmarks.memory import SHARE
    from benchmarks.running import index_of
    from benchmarks.timing import Budget
    from benchmarks.trial import Problem, Trial, pose

    threads = len(plan["cpus"])
    torch.set_num_threads(threads)
    on_gpu = plan.get("device") is not None
    most_bytes = plan.get("memory_bytes")
    # Inductor's advice on how to make a peer faster is for its authors.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
    device = Device(threads)
    if plan.get("repeat") is not None:
        device = Host(threads, plan["repeat"], torch.device(plan["device"] if on_gpu else "cpu"))
    elif on_gpu:
        from benchmarks.gpu_device import Gpu

        device = Gpu(index_of(plan["device"]))
    if on_gpu and most_bytes is None:
        most_bytes = int(SHARE * torch.cuda.mem_get_info(device.torch_device)[0])
    if most_bytes is not None and not on_gpu:
        _forbid(most_bytes)
    ceilings: dict[str, Ceilings] = {}
    problem: Problem | None = None
    trial: Trial | None = None
    posed: tuple[Any, ...] = ()
    for op, shape, *others in plan["cases"]:
        case = Case(op, Shape(*shape), *others)
        dtype = case.dtype
        try:
            cells = (
                [] if most_bytes is None else refuse(case, plan["passes"], plan["peers"], device, most_bytes)
            )
            if cells:
                yield {"case": case.label, "cells": [dataclasses.asdict(cell) for cell in cells]}
                continue
            if dtype not in ceilings:
                ceilings[dtype] = Ceilings(dtype, quick=plan["quick"], device=device)
            if problem is None or posed != case.numbers:
                problem = None  # the old one must go before the new one comes
                problem, posed = pose(case, device.torch_device), case.numbers
            trial = Trial(case, problem, plan["peers"], device)
            tops, budget = ceilings[dtype], Budget(**plan["budget"])
            cells = list(measure(trial, plan["passes"], tops, budget, most_bytes=most_bytes))
            yield {"case": case.label, "cells": [dataclasses.asdict(cell) for cell in cells]}
            trial = None
        except Exception as error:  # the other cases are still worth their time
            trial = problem = None
            yield {"case": case.label, "problem": f"{case.label}: {type(error).__name__}: {error}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    process = {"threads": threads, "cpus": plan["cpus"], "peak_resident_bytes": peak}
    yield {"process": {**process, "torch_threads": torch.get_num_threads()}}


def _forbid(most_bytes: int) -> None:
    """Let malloc fail where a prediction was too small, and not the machine."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes + _OWN_BYTES, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
