"""A run on a GPU: cases in order of importance, in this process, as far as the time goes."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from benchmarks import cases, origins, records, running
from benchmarks.admission import cause
from benchmarks.cases import FORWARD, Case
from benchmarks.ceilings import Ceilings
from benchmarks.gpu_device import Gpu
from benchmarks.limits import Compiling, Deadline
from benchmarks.measuring import measure
from benchmarks.peers_gpu import ABSENT, ALL_NAMES, DEFAULT_NAMES, PLAIN_NAMES, TUNED_NAMES
from benchmarks.records import Cell, Run
from benchmarks.timing import QUICK, Budget
from benchmarks.trial import Problem, Trial, pose

if TYPE_CHECKING:
    from benchmarks.compare import Before

# The shortest calls take 10 us, and 11 rounds of them say little.
BUDGET = Budget(seconds=0.2, least=11, most=50)
# Seconds that one compilation may take; with kernels tuned, several times that.
_COMPILE_SECONDS, _TUNE_SECONDS = 120.0, 600.0
# For so many cases at a time our kernels are compiled ahead: a run that ends early has not compiled them all.
_AHEAD = 24

# Does what can be done before cases are measured.
Prepare: TypeAlias = Callable[[Sequence[Case]], None]


class Plan(NamedTuple):
    """What is measured, and how. ``seconds``: for the whole run, None for no limit."""

    cases: list[Case]
    passes: list[str]
    peers: list[str]
    budget: Budget
    quick: bool
    tf32: bool
    seconds: float | None


def plan(options: argparse.Namespace) -> Plan:
    """What the command line asks for.

    Raises:
        UsageError: a peer is not known.
    """
    shapes: tuple[cases.Shape, ...] = cases.QUICK_SHAPES if options.quick else cases.GPU_SHAPES
    if options.shape:
        shapes = origins.by_label(options.shape)
    stack = cases.QUICK_STACK_SHAPE if options.quick else cases.GPU_STACK_SHAPE
    budget = QUICK if options.quick else BUDGET
    if options.seconds is not None:
        budget = budget._replace(seconds=options.seconds)
    dtypes = options.dtype or cases.GPU_DTYPES
    chosen = cases.by_importance(shapes, stack, options.op, dtypes, options.layout)
    return Plan(
        list(chosen),
        options.passes,
        _peers(options),
        budget,
        options.quick,
        options.tf32,
        None if options.budget is None else 60 * options.budget,
    )


def _peers(options: argparse.Namespace) -> list[str]:
    names: Sequence[str] = options.peers
    if names is None:
        # Compiling takes longer than all the rest of a quick run.
        names = PLAIN_NAMES if options.quick else DEFAULT_NAMES
    elif names == ["plain"]:
        names = PLAIN_NAMES
    return running.known_peers([*names, *(TUNED_NAMES if options.max_autotune else ())], ALL_NAMES)


def run(options: argparse.Namespace, *, full: bool, before: Before | None = None) -> tuple[int, Run, Path]:
    """Measure; returns the exit status, the run and its file.

    Args:
        options: the command line's.
        full: nothing was left out by an option.
        before: what the run will be compared with.

    Raises:
        UsageError: no such GPU can be measured here, or the arguments cannot be carried out.
        Incomparable: it cannot be compared with that.
    """
    about = running.machine_of(options.device)
    todo = plan(options)
    device = Gpu(running.index_of(options.device))
    if before is not None:
        settings = {"device": str(device.torch_device), "quick": todo.quick, "tf32": todo.tf32}
        before.accept(Run(about, settings, []))
    path = running.file_of(options, options.command, about, full=False)
    found, status = conduct(todo, device, about, path, _compiling(todo, device))
    final = running.file_of(options, options.command, about, full=True)
    if full and found.complete and final != path:
        records.save(found, final)
        path.unlink()
        path = final
    return status, found, path


def _compiling(todo: Plan, device: Gpu) -> Prepare:
    from benchmarks import ahead  # needs Triton

    return lambda those: ahead.compile_all(those, todo.passes, device.torch_device)


def conduct(
    todo: Plan,
    device: Gpu,
    about: dict[str, Any],
    path: Path,
    prepare: Prepare = lambda those: None,
) -> tuple[Run, int]:
    """Measure case by case, and save after each; returns the run and 130 after Ctrl-C, else 0.

    Cases for which there is not enough time or memory are named in the settings as ``left_out``.
    """
    # Inductor's advice on how to make a peer faster is for its authors.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = todo.tf32
    start = time.monotonic()
    run = Run(about, {}, [], complete=False)
    run.settings = {
        **todo._replace(cases=[])._asdict(),
        "cases": len(todo.cases),
        "budget": todo.budget._asdict(),
        "device": str(device.torch_device),
        "launch_seconds": [],
        "absent": ABSENT,
        "left_out": [],
    }
    try:
        try:
            run.settings["launch_seconds"] = device.launch_seconds()
        except Exception as error:  # everything is then timed by plain calls, and says so
            run.problems.append(f"nothing can be captured as a graph: {cause(error)}")
        _Session(todo, device, run, path, start, prepare).work()
        run.complete = all(item["why"] == "memory" for item in run.settings["left_out"])
        status = 0
    except KeyboardInterrupt:
        status = 130
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        run.settings["elapsed_seconds"] = time.monotonic() - start
        records.save(run, path)
    return run, status


class _Session:
    """One run while it goes on: what is kept from one case to the next."""

    def __init__(self, todo: Plan, device: Gpu, run: Run, path: Path, start: float, prepare: Prepare) -> None:
        self.todo, self.device, self.run, self.path, self.start = todo, device, run, path, start
        self.prepare = prepare
        self.deadline = Deadline(todo.seconds)
        tuned = any(name in TUNED_NAMES for name in todo.peers)
        self.compiling = Compiling(self.deadline, _TUNE_SECONDS if tuned else _COMPILE_SECONDS)
        self.ceilings: tuple[str, Ceilings] | None = None
        self.problem: tuple[tuple[Any, ...], Problem] | None = None

    def work(self) -> None:
        """All cases."""
        for number, case in enumerate(self.todo.cases, 1):
            if self.deadline.remaining <= 0:
                self._leave_out(self.todo.cases[number - 1 :], "time", "the time was spent")
                break
            if number % _AHEAD == 1:
                self.prepare(self.todo.cases[number - 1 : number - 1 + _AHEAD])
            known = len(self.run.cells)
            trouble = self._attempt(case)
            lost = None if trouble is None else self._recover()
            self.run.settings["elapsed_seconds"] = time.monotonic() - self.start
            records.save(self.run, self.path)
            self._say(number, case, trouble or _figures(self.run.cells[known:]))
            if lost is not None:
                self.run.problems.append(f"nothing runs any more after {case.label}: {lost}")
                self._leave_out(self.todo.cases[number:], "device", "it does not answer any more")
                break

    def _attempt(self, case: Case) -> str | None:
        """Measure a case; a line about what went wrong, if something did."""
        try:
            self._measure(case)
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
            self._leave_out([case], "memory", reason)
            return f"left out, too little memory: {reason}"
        except Exception as error:  # the other cases are still worth their time
            problem = f"{case.label}: {cause(error)}"
            self.run.problems.append(problem)
            return f"problem: {problem}"
        return None

    def _measure(self, case: Case) -> None:
        if self.ceilings is None or self.ceilings[0] != case.dtype:
            self.ceilings = None  # the old one must go before the new one comes
            tops = Ceilings(case.dtype, quick=self.todo.quick, device=self.device)
            self.ceilings = (case.dtype, tops)
        if self.problem is None or self.problem[0] != case.numbers:
            self.problem = None
            self.device.give_back_memory()
            self.problem = (case.numbers, pose(case, self.device.torch_device))
        trial = Trial(case, self.problem[1], self.todo.peers, self.device)
        cells = measure(trial, self.todo.passes, self.ceilings[1], self.todo.budget, self.compiling)
        for cell in cells:
            self.run.cells.append(cell)

    def _recover(self) -> str | None:
        """Make room after something went wrong; why that is not possible, if it is not.

        Not where the error is handled: its traceback holds the case's tensors.
        """
        self.problem = None
        try:
            self.device.give_back_memory()
            self.device.cuda.synchronize()
        except Exception as error:  # a kernel that wrote where it must not ends all work of the process
            return cause(error)
        return None

    def _leave_out(self, those: Sequence[Case], why: str, reason: str) -> None:
        left_out = self.run.settings["left_out"]
        left_out += [{"case": case.label, "why": why, "reason": reason} for case in those]

    def _say(self, number: int, case: Case, text: str) -> None:
        minutes = (time.monotonic() - self.start) / 60
        limit = "" if self.todo.seconds is None else f" of {self.todo.seconds / 60:.0f}"
        print(
            f"[{number}/{len(self.todo.cases)}, {minutes:.1f}{limit} min] {case.label}: {text}",
            file=sys.stderr,
            flush=True,
        )


def _figures(found: list[Cell]) -> str:
    """What a case came to, in a line."""
    parts = []
    for cell in found:
        ours, best = cell.ours, cell.best_peer
        text = "fwd " if cell.which == FORWARD else "fwd+bwd "
        text += "without a figure" if ours is None or not ours.timed else f"{ours.median * 1e6:.1f} us"
        if cell.over_floor is not None:
            text += f", floor / time {1 / cell.over_floor:.2f}"
        if best is not None and cell.best_ratio is not None:
            text += f", best peer {cell.best_ratio:.2f} ({best.name})"
        parts.append(text)
    return "; ".join(parts)
