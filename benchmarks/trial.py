"""One case: its numbers, its truth, and everybody's call on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import operands, stack, stream
from benchmarks.cases import FORWARD, STACK, Case
from benchmarks.contenders import Contender, contenders
from benchmarks.device import Call, Device
from benchmarks.floors import count_flops
from benchmarks.peers import YARDSTICKS
from benchmarks.records import PEER
from benchmarks.truth import RESULTS, Truth, solve, solve_plainly


class Problem(NamedTuple):
    """What the two layouts of a case share."""

    operands: dict[str, Tensor]
    cotangents: tuple[Tensor, ...]
    truth: Truth


def pose(case: Case, device: torch.device | str = "cpu") -> Problem:
    """Draw a case's numbers on a device and solve it there in float64."""
    if case.op == STACK:
        drawn, cotangents = stack.draw(case.shape, case.dtype, case.depth, device=device)
        reference = stack.code(case.shape, "fp64", "reference", device, case.depth)
        return Problem(drawn, cotangents, solve_plainly(case.op, reference, drawn, cotangents))
    drawn, cotangents = operands.draw(case.op, case.shape, case.dtype, device=device)
    return Problem(drawn, cotangents, solve(case.op, drawn, cotangents))


def who(case: Case, wanted: Sequence[str] | None, device: Device) -> list[Contender]:
    """Everybody who takes part in a case."""
    where = device.torch_device
    if case.op == STACK:
        names = list(stack.sizes(case.shape, case.depth)[0])
        return stack.contenders(case.shape, case.dtype, names, wanted, where, case.depth)
    if case.parts is not None:
        return stream.contenders(case.parts, wanted, where)
    return contenders(case, wanted, device)


class Trial:
    """A case laid out in memory, with everybody who takes part."""

    def __init__(
        self,
        case: Case,
        problem: Problem,
        wanted: Sequence[str] | None = None,
        device: Device | None = None,
    ) -> None:
        torch._dynamo.reset()  # its limit of compiled variants counts those of earlier cases
        self.case, self.truth = case, problem.truth
        self.device = Device() if device is None else device
        self.operands = {name: self._lay_out(value, name == "x") for name, value in problem.operands.items()}
        is_map = [name == "map" for name in RESULTS[case.op]]
        self.cotangents = tuple(map(self._lay_out, problem.cotangents, is_map))
        self.map_bytes = self.operands["x"].nbytes
        self.contenders = who(case, wanted, self.device)

    def _lay_out(self, value: Tensor, is_map: bool) -> Tensor:
        return operands.lay_out(value, self.case.shape, self.case.layout) if is_map else value

    @property
    def yardstick(self) -> Contender:
        """Whose error everybody's is measured by."""
        name = YARDSTICKS[self.case.op]
        return next(c for c in self.contenders if c.name == name and c.kind == PEER)

    def call(self, contender: Contender, which: str) -> Call:
        """The contender's function of no arguments; with gradients, they come after the results."""
        inputs = [self.operands[name] for name in contender.operands]
        if which == FORWARD:

            def forward() -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return contender.function(*inputs)

            return forward
        leaves = [value.detach().requires_grad_() for value in inputs]

        def both() -> tuple[Tensor, ...]:
            results = contender.function(*leaves)
            return (*results, *torch.autograd.grad(results, leaves, self.cotangents))

        return both

    def named(self, contender: Contender, values: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What a call returned, by name."""
        names = [*RESULTS[self.case.op], *(f"d{name}" for name in contender.operands)]
        return zip(names, values, strict=False)

    def note(self, contender: Contender, which: str) -> str | None:
        """What is to be said of a contender on this device."""
        with torch.set_grad_enabled(which != FORWARD):
            inputs = [self.operands[name] for name in contender.operands]
            leaves = [value.detach().requires_grad_(which != FORWARD) for value in inputs]
            return self.device.note(contender.name, contender.function, leaves)

    def flops(self, contender: Contender, which: str) -> int:
        """FLOPs by the formulas of the ops, counted of a peer's function as it was before it was compiled."""
        inputs = {name: self.operands[name] for name in contender.operands}
        return count_flops(contender.plain or contender.function, inputs, which)
