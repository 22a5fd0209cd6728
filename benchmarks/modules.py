"""Modules as problems: several ways to compute what a module computes, from the same parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from benchmarks.check import Gate, Judgement, largest_error
from benchmarks.devices import Call, Device, reset_compiler
from benchmarks.inputs import DTYPES
from benchmarks.peers import Contender
from benchmarks.results import BACKEND, OURS, PEER, REPLACED
from benchmarks.roofline import Work
from benchmarks.shapes import BOTH, FORWARD
from vt_fast.nn import freeze, set_backend

INFERENCE, TRAINING = "inference", "training step"
VT_FAST, FROZEN = "vt_fast", "vt_fast frozen"
# Passes without gradients, which leave modules in evaluation mode.
_FORWARDS = (FORWARD, INFERENCE)

Function: TypeAlias = Callable[..., Any]
Shapes: TypeAlias = Sequence[Sequence[int]]

# Errors are relative to a tensor's largest value, or to this share of all tensors': a gradient may be 0.
_SMALLEST = 1e-3


def _forward(module: nn.Module, *given: Tensor) -> Any:
    return module(*given)


class Side(NamedTuple):
    """One way to compute it.

    Args:
        make: the module that has the parameters.
        function: computes the result, a tensor or several, from this module and the inputs.
        compiled: the submodule that torch.compile compiles, "" for the function, None for nothing.
        role: in :mod:`benchmarks.results`. What is REPLACED need not compute the same, but finite numbers.
    """

    make: Callable[[], nn.Module]
    function: Function = _forward
    compiled: str | None = None
    role: str = PEER


class Comparison(NamedTuple):
    """The sides by name, the yardstick first, and the shapes of their inputs.

    ``small``: shapes on which sides are judged, in evaluation mode; None to judge what is timed. ``work``:
    that of a pass for an item size, where it is known.
    """

    sides: Mapping[str, Side]
    inputs: Shapes
    small: Shapes | None = None
    work: Callable[[str, int], Sequence[Work]] | None = None


def paper(
    ours: Side,
    replaced: Side,
    inputs: Shapes,
    small: Shapes | None = None,
    compiled: str = "",
    *,
    frozen: bool = False,
) -> Comparison:
    """A module of the paper: its equations, eager and compiled, our ops, and the convolutions it replaces.

    ``frozen``: ours with operands that are kept, too, which makes a difference in inference alone.
    """

    def make() -> nn.Module:
        module = ours.make()
        set_backend(module, "reference")
        return module

    sides = {
        "reference": ours._replace(make=make),
        "compile reference": ours._replace(make=make, compiled=compiled),
        "convolutions": replaced._replace(role=REPLACED),
        VT_FAST: ours._replace(role=OURS),
    }
    if frozen:
        sides[FROZEN] = ours._replace(make=lambda: freeze(ours.make()), role=BACKEND)
    return Comparison(sides, inputs, small)


def missing(error: ImportError) -> Comparison:
    """What stands for the sides of a package that is not installed: one row with the error."""

    def fail() -> nn.Module:
        raise error

    return Comparison({"original": Side(fail)}, ((0,),))


class _Built:
    """A side with its parameters and inputs; gradients arrive rounded to ``dtype``."""

    def __init__(
        self, module: nn.Module, function: Function, given: Sequence[Tensor], dtype: torch.dtype
    ) -> None:
        self.parameters = dict(module.named_parameters())
        self._function, self._given, self._dtype = function, given, dtype
        self._cotangents: list[Tensor] = []

    def results(self) -> tuple[Tensor, ...]:
        """Of the call."""
        found = self._function(*self._given)
        return tuple(found) if isinstance(found, list | tuple) else (found,)

    def both(self) -> tuple[Tensor, ...]:
        """The results, and the gradients of all inputs and parameters."""
        results = self.results()
        if not self._cotangents:
            self._cotangents = [_drawn(each, seed, self._dtype) for seed, each in enumerate(results, 100)]
        leaves = [*self._given, *self.parameters.values()]
        return (*results, *torch.autograd.grad(results, leaves, self._cotangents, materialize_grads=True))

    def values(self, which: str) -> tuple[Tensor, ...]:
        """What a pass computes."""
        with torch.set_grad_enabled(which not in _FORWARDS):
            found = self.results() if which in _FORWARDS else self.both()
        return tuple(value.detach() for value in found)


class _Truth:
    """What the yardstick computes in float64; what it computes in the case's dtype says what is allowed."""

    def __init__(self, yardstick: _Built, own: _Built, which: str, dtype: torch.dtype) -> None:
        self._exact = yardstick.values(which)
        leaves = [*(f"input {index}" for index in range(len(yardstick._given))), *yardstick.parameters]
        names = [] if which in _FORWARDS else [f"gradient of {leaf}" for leaf in leaves]
        results = [f"result {index}" for index in range(len(self._exact) - len(names))]
        self._names = [*results, *names]
        self._sizes: list[float] = []
        for part in (self._exact[: len(results)], self._exact[len(results) :]):
            sizes = [float(value.abs().max()) for value in part]
            least = max(_SMALLEST * max(sizes, default=0.0), math.ulp(0.0))
            self._sizes += [max(size, least) for size in sizes]
        worst = max(self._errors(own.values(which)).values())
        # Where the yardstick is not finite, no error but rounding is allowed.
        allowed = dict.fromkeys(self._names, worst if math.isfinite(worst) else 0.0)
        self._gate = Gate(allowed, dict.fromkeys(self._names, 1.0), dtype)

    def judge(self, values: Sequence[Tensor]) -> Judgement:
        """By the largest errors, relative to the sizes of tensors.

        All sides may have what a peer may: the yardstick's own errors differ as much between layouts.
        """
        return self._gate.judge(self._errors(values), PEER)

    def _errors(self, values: Sequence[Tensor]) -> dict[str, float]:
        each = zip(self._names, values, self._exact, self._sizes, strict=True)
        return {name: largest_error(value, exact) / size for name, value, exact, size in each}


class ModuleProblem:
    """A comparison as a :class:`benchmarks.runner.Problem`.

    ``spec``: "dtype", "layout" and "passes"; "peers", names of the sides to time beside ours uncompiled, or
    None for all; with "quick" for all that are not compiled.
    """

    def __init__(
        self, comparison: Comparison, mode: str, case: str, shape: str, spec: dict[str, Any], device: Device
    ) -> None:
        reset_compiler()
        self._comparison, self._device = comparison, device.torch_device
        self._dtype = DTYPES[spec["dtype"]]
        self._format = torch.channels_last if spec["layout"] == "channels_last" else torch.contiguous_format
        self.label = f"{case} {shape} {spec['dtype']}"
        self.fields = {
            "mode": mode,
            "case": case,
            "shape": shape,
            "dtype": spec["dtype"],
            "layout": spec["layout"],
        }
        self.passes = spec["passes"]
        self._yardstick = next(iter(comparison.sides))

        peers = spec["peers"]
        if peers is None:
            peers = [
                name for name, side in comparison.sides.items() if not spec["quick"] or side.compiled is None
            ]
        contenders = (
            Contender(
                name,
                side.role,
                side.compiled is not None,
                name in peers or (side.role in (OURS, BACKEND) and side.compiled is None),
            )
            for name, side in comparison.sides.items()
        )
        self.contenders = [each for each in contenders if each.timed or each.name == self._yardstick]
        self.map_bytes = sum(torch.Size(each).numel() for each in comparison.inputs) * self._dtype.itemsize
        self._truths: dict[str, _Truth] = {}
        self._verdicts: dict[tuple[str, str], Judgement] = {}

    def call(self, contender: Contender, which: str) -> Call:
        """A forward without gradients, forward and backward, or a step of training with SGD."""
        if which in _FORWARDS:
            infer = self._built(contender.name, self._given, self._dtype).results
            return torch.no_grad()(infer)
        given = [each.detach().requires_grad_() for each in self._given]
        built = self._built(contender.name, given, self._dtype, training=True)
        if which == BOTH:
            return built.both
        parameters = list(built.parameters.values())
        # A step of length 0 takes as long as another, and leaves the same weights to all steps.
        optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

        def train() -> tuple[Tensor, ...]:
            values = built.both()
            for parameter, gradient in zip(parameters, values[-len(parameters) :], strict=True):
                parameter.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
            return values

        return train

    def judge(self, contender: Contender, which: str, values: tuple[Tensor, ...]) -> Judgement:
        """Compare each result and gradient with the yardstick's in float64."""
        if contender.role == REPLACED:
            finite = all(bool(value.isfinite().all()) for value in values)
            return Judgement(0.0, None if finite else "a result is not finite")
        if self._comparison.small is None:
            training = which not in _FORWARDS
            return self._truth(self._given, which, training=training).judge(values)
        # Modules may compute in other ways where no gradients are wanted.
        judged = which if which in _FORWARDS else BOTH
        if (contender.name, judged) not in self._verdicts:
            given = self._draw(self._comparison.small)
            found = self._leaves_built(contender.name, given, self._dtype, training=False).values(judged)
            truth = self._truth(given, judged, training=False)
            self._verdicts[contender.name, judged] = truth.judge(found)
        return self._verdicts[contender.name, judged]

    def work(self, which: str) -> Sequence[Work]:
        """Nothing where none is known: there is no floor then."""
        known = self._comparison.work
        return () if known is None else known(which, self._dtype.itemsize)

    def flops(self, contender: Contender, which: str) -> int | None:
        """Not counted."""
        return None

    def needs(self, contender: Contender, which: str) -> int | None:
        """Not predicted."""
        return None

    @cached_property
    def _given(self) -> list[Tensor]:
        return self._draw(self._comparison.inputs)

    def _draw(self, shapes: Shapes) -> list[Tensor]:
        given = []
        for seed, shape in enumerate(shapes, 1):
            like = torch.empty(shape, dtype=self._dtype, device=self._device)
            if like.dim() == 4:
                like = like.contiguous(memory_format=self._format)
            given.append(_drawn(like, seed, self._dtype))
        return given

    def _built(
        self, name: str, given: Sequence[Tensor], dtype: torch.dtype, *, training: bool = False
    ) -> _Built:
        side = self._comparison.sides[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = side.make()
            torch.manual_seed(1)
            # What starts at zero would hide errors of what is before it. Sorted: all share names.
            for _, parameter in sorted(module.named_parameters()):
                if not parameter.detach().any():
                    nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        module = module.to(self._device, self._dtype).to(dtype).train(training)
        if self._format == torch.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def function(*given: Tensor) -> Any:
            return side.function(module, *given)

        if side.compiled:
            module.get_submodule(side.compiled).compile(dynamic=False)
        elif side.compiled is not None:
            function = torch.compile(function, dynamic=False)
        return _Built(module, function, given, self._dtype)

    def _leaves_built(
        self, name: str, given: Sequence[Tensor], dtype: torch.dtype, *, training: bool
    ) -> _Built:
        leaves = [each.detach().to(dtype).requires_grad_() for each in given]
        return self._built(name, leaves, dtype, training=training)

    def _truth(self, given: Sequence[Tensor], which: str, *, training: bool) -> _Truth:
        if which not in self._truths:
            self._truths.clear()
            exact, own = (
                self._leaves_built(self._yardstick, given, dtype, training=training)
                for dtype in (torch.float64, self._dtype)
            )
            self._truths[which] = _Truth(exact, own, which, self._dtype)
        return self._truths[which]


def _drawn(like: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers rounded to ``dtype``, in the dtype and strides of ``like``."""
    numbers = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(like, requires_grad=False).copy_(numbers.to(dtype))
