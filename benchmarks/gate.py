"""No figure for a wrong result: every contender is compared with the float64 truth first.

The rule is that of :func:`vt_fast.testing.assert_as_accurate`: an error is compared with the one that a
yardstick, plain PyTorch in the same dtype, makes on the same data, plus some roundings. Ours may have twice
the yardstick's error. Peers are given eight times, lest a figure of theirs be suppressed for a trifle; and so
is everybody in the stack case, whose yardstick's own error differs by as much from one layout to the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import STACK, Case, Shape
from benchmarks.operands import TORCH_DTYPES, as_pixels
from benchmarks.truth import Truth
from vt_fast.precision import compute_dtype
from vt_fast.testing import allowed_error

OURS, PEERS = 2.0, 8.0

# Gradients that the yardstick does not have, and the one whose relative error theirs is measured by.
_LIKE = {"dtoken_keys": "dkeys", "dquery_weight": "dkeys"}

# Small enough for its float64 differences to stay in a cache; on a GPU, large enough to keep it busy.
_CHUNK, _GPU_CHUNK = 1 << 18, 1 << 24


class Gate(NamedTuple):
    """What a result may be off by, name by name, in multiples of the yardstick's error."""

    case: Case
    truth: Truth
    yardstick: dict[str, float]
    largest: dict[str, float]

    @classmethod
    def make(cls, case: Case, truth: Truth, found: Mapping[str, float]) -> Gate:
        """The gate of a case, from the errors of its yardstick.

        Where a yardstick is off by more than half of the dtype's digits (in fp16, of bf16's, because the
        weights of a million pixels are not normal numbers there), the gate is :meth:`strict`, and the
        yardstick fails at it: plain sums of millions of terms in fp32 do that.

        Raises:
            RuntimeError: it is off by more than even such sums can be, so it means something else.
        """
        largest = _largest(case, truth)
        coarse = math.sqrt(_coarse_digits(case.dtype))
        # A pixel's gradient depends on all pixels too, by the statistics of the softmax.
        sums = torch.finfo(compute_dtype(_digits(case.dtype))).eps * case.shape.pixels
        strict = False
        for name, error in found.items():
            if error <= coarse * max(largest[name], 1e-30):
                continue
            if not error <= sums * largest[name]:
                raise RuntimeError(f"the yardstick is wrong: {name} of {case.label} is off by {error:.3g}")
            strict = True
        if strict:
            return cls.strict(case, truth)
        return cls(case, truth, dict(found), largest)

    @classmethod
    def strict(cls, case: Case, truth: Truth) -> Gate:
        """The gate of a case whose yardstick cannot be run or is none: as if it had made no error at all."""
        largest = _largest(case, truth)
        return cls(case, truth, dict.fromkeys(largest, 0.0), largest)

    def allowed(self, names: Iterable[str], multiple: float) -> dict[str, float]:
        """What each error may be."""
        dtype = _digits(self.case.dtype)
        return {
            name: allowed_error(
                self._plain(name),
                self.largest[name],
                dtype,
                lse=self.truth.lse,
                terms=terms(name, self.case.op, self.case.shape),
                multiple=multiple,
            )
            for name in names
        }

    def _plain(self, name: str) -> float:
        if name in self.yardstick:
            return self.yardstick[name]
        like = _LIKE[name]
        return self.yardstick[like] / self.largest[like] * self.largest[name]


def _largest(case: Case, truth: Truth) -> dict[str, float]:
    """The largest magnitude of each result and gradient, or of the terms that cancel in it."""
    found = grouped(case, {name: float(value.abs().max()) for name, value in truth.values.items()})
    if case.shape.tokens == 1 and "dkeys" in found:
        # A single token has all the weight whatever its key is, so these are 0 but for rounding.
        scale = found["dvalues"] * case.shape.channels**0.5
        found |= {name: scale for name in ("dkeys", *_LIKE) if name in found}
    return found


def _digits(dtype: str) -> torch.dtype:
    """The dtype whose roundings are allowed: TF32 has as many digits as float16."""
    tf32 = dtype == "fp32" and torch.backends.cuda.matmul.allow_tf32
    return torch.float16 if tf32 else TORCH_DTYPES[dtype]


def _coarse_digits(dtype: str) -> float:
    return max(torch.finfo(_digits(dtype)).eps, torch.finfo(torch.bfloat16).eps if dtype == "fp16" else 0.0)


def complaint(reached: Mapping[str, float], allowed: Mapping[str, float]) -> str | None:
    """Which error is too large, if one is.

    Example:
        >>> complaint({"map": 2.0}, {"map": 0.5})
        'map is off by 2, allowed 0.5'
    """
    for name, error in reached.items():
        if not error <= allowed[name]:  # NaN is not
            return f"{name} is off by {error:.3g}, allowed {allowed[name]:.3g}"
    return None


def reached(case: Case, truth: Truth, found: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """The errors that a case's gate looks at."""
    return grouped(case, errors(found, truth))


def errors(found: Iterable[tuple[str, Tensor]], truth: Truth) -> dict[str, float]:
    """Largest error of each result or gradient; infinite where a value or the shape is not as it must be."""
    return {name: largest_error(value, truth.values[name], truth.stride) for name, value in found}


def largest_error(found: Tensor, exact: Tensor, stride: int = 1) -> float:
    """Largest difference of a tensor, or a 4-D map, from float64 values (B, N, C), without a large copy.

    Of a map only every so manieth pixel is compared. Not a number counts as infinite.

    Example:
        >>> largest_error(torch.ones(1, 2, 1, 3), torch.zeros(1, 3, 2, dtype=torch.float64))
        1.0
    """
    found = as_pixels(found.detach())[:, ::stride] if found.dim() == 4 else found.detach()
    if found.shape != exact.shape:
        return math.inf
    if found.dim() < 3:
        found, exact = found[None], exact[None]
    rows = max(1, (_CHUNK if exact.device.type == "cpu" else _GPU_CHUNK) // exact.shape[-1])
    worst = []
    for sample, true_sample in zip(found, exact, strict=True):
        for part, true_part in zip(sample.split(rows), true_sample.split(rows), strict=True):
            worst.append(torch.linalg.vector_norm(part - true_part, math.inf))
    return float(torch.stack(worst).nan_to_num(math.inf).max())


def terms(name: str, op: str, shape: Shape) -> int:
    """How many terms are summed for one value, which is what errors in another order grow with.

    Example:
        >>> terms("map", "project", Shape(2, 3, 4, 8, 5)), terms("dqueries", "tokenize", Shape(2, 3, 4, 8, 5))
        (8, 24)
    """
    if name in ("map", "dx"):
        return shape.channels
    shared = name in ("dquery_weight", "dparameters") or (op == "tokenize" and name == "dqueries")
    return shape.pixels * (shape.batch if shared else 1)


def grouped(case: Case, values: dict[str, float]) -> dict[str, float]:
    """A stack's parameters as one: some of their gradients all but vanish, and rounding is all there is."""
    if case.op != STACK:
        return values
    merged: dict[str, float] = {}
    for name, value in values.items():
        group = "dparameters" if name.startswith("dblocks.") else name
        merged[group] = max(merged.get(group, 0.0), value)
    return merged
