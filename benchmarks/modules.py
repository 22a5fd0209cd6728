"""Modules as problems: several ways to compute what a module computes, from the same parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.check import Judgement
from benchmarks.devices import Call, Device
from benchmarks.inputs import DTYPES
from benchmarks.peers import Contender
from benchmarks.results import OURS, PEER, REPLACED
from benchmarks.roofline import Work
from vt_fast.nn import set_backend

INFERENCE, BOTH, TRAINING = "inference", "forward+backward", "training step"
VT_FAST = "vt_fast"

Function: TypeAlias = Callable[..., Any]
Shapes: TypeAlias = Sequence[Sequence[int]]

# The largest error may be so many times the yardstick's in the same dtype, and so many roundings.
_MULTIPLE, _ROUNDINGS = 3.0, 4.0
# Errors are relative to a tensor's length, or to this share of the longest one's: a gradient may be 0.
_SMALLEST = 1e-3


def _forward(module: nn.Module, *given: Tensor) -> Any:
    return module(*given)


class Side(NamedTuple):
    """One way to compute it.

    Args:
        make: the module that has the parameters.
        function: computes the result, a tensor or several, from this module and the inputs.
        compiled: the submodule that torch.compile compiles, "" for the function, None for nothing.
        alike: whether the result must be the yardstick's, or just finite.
    """

    make: Callable[[], nn.Module]
    function: Function = _forward
    compiled: str | None = None
    alike: bool = True


def _role(name: str, side: Side) -> str:
    return OURS if name == VT_FAST else PEER if side.alike else REPLACED


class Comparison(NamedTuple):
    """The sides by name, the yardstick first and ours as "vt_fast", and the shapes of their inputs.

    ``small``: shapes on which sides are judged, in evaluation mode; None to judge what is timed.
    """

    sides: Mapping[str, Side]
    inputs: Shapes
    small: Shapes | None = None


def paper(
    ours: Side, replaced: Side, inputs: Shapes, small: Shapes | None = None, compiled: str = ""
) -> Comparison:
    """A module of the paper: its equations, eager and compiled, our ops, and the convolutions it replaces."""

    def make() -> nn.Module:
        module = ours.make()
        set_backend(module, "reference")
        return module

    sides = {
        "reference": ours._replace(make=make),
        "compile reference": ours._replace(make=make, compiled=compiled),
        "convolutions": replaced._replace(alike=False),
        VT_FAST: ours,
    }
    return Comparison(sides, inputs, small)


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

    def named(self, which: str) -> dict[str, Tensor]:
        """What a pass computes, by name: results, then gradients."""
        values = self.results() if which == INFERENCE else self.both()
        leaves = [*(f"input {index}" for index in range(len(self._given))), *self.parameters]
        names = [] if which == INFERENCE else [f"gradient of {leaf}" for leaf in leaves]
        results = [f"result {index}" for index in range(len(values) - len(names))]
        return {name: value.detach() for name, value in zip([*results, *names], values, strict=True)}


class _Truth:
    """What the yardstick gives in float64. ``own``, the same in the case's dtype, says what is allowed."""

    def __init__(self, exact: dict[str, Tensor], own: dict[str, Tensor], rounding: float) -> None:
        self._exact, self._sizes = exact, dict[str, float]()
        for kind in ("result", "gradient"):
            sizes = {name: float(value.norm()) for name, value in exact.items() if name.startswith(kind)}
            least = max(_SMALLEST * max(sizes.values(), default=0.0), math.ulp(0.0))
            self._sizes |= {name: max(size, least) for name, size in sizes.items()}
        worst = max(self._errors(own.values()))[0]
        # Where the yardstick is not finite, no error but rounding is allowed.
        self._allowed = _MULTIPLE * (worst if math.isfinite(worst) else 0.0) + _ROUNDINGS * rounding

    def judge(self, values: Iterable[Tensor]) -> Judgement:
        """By the largest error."""
        error, name = max(self._errors(values))
        text = f"{name} is off by {error:.3g} of its size, allowed {self._allowed:.3g}"
        return Judgement(error / self._allowed, text if error > self._allowed else None)

    def _errors(self, values: Iterable[Tensor]) -> list[tuple[float, str]]:
        """Of each tensor, as a vector; infinite for NaN and for another shape."""
        found = []
        for value, (name, exact) in zip(values, self._exact.items(), strict=True):
            same = value.shape == exact.shape
            error = float((value.detach().double() - exact).norm()) / self._sizes[name] if same else math.nan
            found.append((math.inf if math.isnan(error) else error, name))
        return found


class ModuleProblem:
    """A comparison as a :class:`benchmarks.runner.Problem`.

    Args:
        comparison: what is compared.
        fields: of all rows, the layout and dtype among them.
        spec: "passes" (INFERENCE, BOTH, TRAINING); "peers", names of the sides beside ours, or None for all;
            "quick", then None does not mean compiled ones.
        device: where.
    """

    def __init__(
        self,
        comparison: Comparison,
        fields: dict[str, Any],
        spec: dict[str, Any],
        device: Device,
    ) -> None:
        torch._dynamo.reset()  # its limit of compiled variants counts those of earlier problems
        self._comparison, self._device = comparison, device.torch_device
        self._dtype = DTYPES[fields["dtype"]]
        self._format = torch.channels_last if fields["layout"] == "channels_last" else torch.contiguous_format
        self.label = f"{fields['case']} {fields['shape']} {fields['dtype']}"
        self.fields = fields
        self.passes = spec["passes"]
        self._yardstick = next(iter(comparison.sides))
        usual = (
            name for name, side in comparison.sides.items() if side.compiled is None or not spec["quick"]
        )
        wanted = {VT_FAST, *(usual if spec["peers"] is None else spec["peers"])}
        self.contenders: Sequence[Contender] = [
            Contender(name, _role(name, side), side.compiled is not None, name in wanted)
            for name, side in comparison.sides.items()
            if name in wanted or name == self._yardstick
        ]
        self.map_bytes = sum(torch.Size(each).numel() for each in comparison.inputs) * self._dtype.itemsize
        self._truths: dict[str, _Truth] = {}
        self._verdicts: dict[str, Judgement] = {}

    def call(self, contender: Contender, which: str) -> Call:
        """An inference, forward and backward, or a step of training with SGD."""
        if which == INFERENCE:
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
        """Compare each result and gradient, as a vector, with the yardstick's in float64."""
        if not self._comparison.sides[contender.name].alike:
            finite = all(bool(value.isfinite().all()) for value in values)
            return Judgement(0.0, None if finite else "a result is not finite")
        if self._comparison.small is None:
            return self._truth(self._given, which, training=which != INFERENCE).judge(values)
        if contender.name not in self._verdicts:
            given = self._draw(self._comparison.small)
            found = self._solved(contender.name, given, BOTH, self._dtype, training=False)
            truth = self._truth(given, BOTH, training=False)
            self._verdicts[contender.name] = truth.judge(found.values())
        return self._verdicts[contender.name]

    def work(self, which: str) -> Sequence[Work]:
        """None is known, hence no floor."""
        return ()

    def flops(self, contender: Contender, which: str) -> int | None:
        """Of matrix products and convolutions, counted on tensors without data."""
        side, training = self._comparison.sides[contender.name], which != INFERENCE
        with torch.device("meta"):
            try:
                module = side.make().train(training).requires_grad_(training)
            except ImportError:
                return None
            given = [torch.empty(shape, requires_grad=training) for shape in self._comparison.inputs]
        built = _Built(module, partial(side.function, module), given, torch.float32)
        with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
            results = built.results()
            if training:
                # The counter's hooks do not allow torch.autograd.grad.
                torch.autograd.backward(results, [torch.empty_like(each) for each in results])
        return int(counter.get_total_flops())

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

    def _solved(
        self, name: str, given: Sequence[Tensor], which: str, dtype: torch.dtype, *, training: bool
    ) -> dict[str, Tensor]:
        leaves = [each.detach().to(dtype).requires_grad_() for each in given]
        return self._built(name, leaves, dtype, training=training).named(which)

    def _truth(self, given: Sequence[Tensor], which: str, *, training: bool) -> _Truth:
        if which not in self._truths:
            self._truths.clear()
            exact, own = (
                self._solved(self._yardstick, given, which, dtype, training=training)
                for dtype in (torch.float64, self._dtype)
            )
            self._truths[which] = _Truth(exact, own, torch.finfo(self._dtype).eps)
        return self._truths[which]


def _drawn(like: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers rounded to ``dtype``, in the dtype and strides of ``like``."""
    numbers = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(like, requires_grad=False).copy_(numbers.to(dtype))
