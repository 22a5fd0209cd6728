"""The loop over problems, contenders and passes. It runs in a child process (:mod:`benchmarks.processes`).

A mode of the command line is a module with two functions, of which the first two lines must not need torch:

- ``add_arguments(parser)``: the mode's own options. ``--quick``, ``--device``, ``--results``, ``--output`` and
  ``--compare`` are there already. A run with all options at their defaults is a full run.
- ``plans(options) -> list[Plan]``: what the child processes do, one after another. May raise
  :class:`benchmarks.processes.UsageError`.

Each problem of a plan is a dict with a "kind" of :data:`KINDS`, whose module has a function
``problem(spec, device) -> Problem``. ``spec["fields"]``, where given, replaces fields of all its rows, for example
``{"mode": "scaling", "series": "N=196"}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from benchmarks.check import Judgement
from benchmarks.peers import Contender
from benchmarks.results import Row
from benchmarks.timing import Budget

if TYPE_CHECKING:
    from benchmarks.devices import Device
    from benchmarks.roofline import Ceilings, Work
    from benchmarks.timing import Compiling

Call: TypeAlias = Callable[[], tuple[Tensor, ...]]

# The module of each kind of problem.
KINDS = {
    "op": "benchmarks.problems",
    "network": "benchmarks.networks",
    "layer": "benchmarks.layers",
}


class Problem(Protocol):
    """A case with all its contenders. Nothing large is in memory before the first :meth:`call`.

    ``fields``: what all its rows share, by the names of :class:`benchmarks.results.Row`: mode, case, shape, dtype,
    layout, threads. ``map_bytes``: where they are many, free memory is given back before the case.
    """

    label: str
    fields: dict[str, Any]
    passes: Sequence[str]
    contenders: Sequence[Contender]
    map_bytes: int

    def call(self, contender: Contender, which: str) -> Call:
        """The contender's call of no arguments. It returns what :meth:`judge` takes."""
        ...

    def judge(self, contender: Contender, which: str, values: tuple[Tensor, ...]) -> Judgement:
        """Compare results with the truth. The first contender, the yardstick, is judged first in each pass.

        Where it was not run, for lack of memory, no error but rounding is allowed.
        """
        ...

    def work(self, which: str) -> Sequence[Work]:
        """What no implementation can avoid; nothing where there is no floor."""
        ...

    def flops(self, contender: Contender, which: str) -> int | None:
        """FLOPs of the contender's call, or None where they are not known."""
        ...

    def needs(self, contender: Contender, which: str) -> int | None:
        """Bytes that the process would hold in all, by prediction, or None."""
        ...


def measure(
    problem: Problem,
    device: Device,
    budget: Budget,
    ceilings: Ceilings | None = None,
    *,
    compiling: Compiling | None = None,
    most_bytes: int | None = None,
    fields: Mapping[str, Any] = {},
) -> Iterator[Row]:
    """All rows of a problem, pass by pass; without ``ceilings`` they have no floors."""
    raise NotImplementedError
