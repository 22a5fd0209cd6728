"""The float64 gate: a contender whose results or gradients are wrong gets no time.

The rule is that of :func:`vt_fast.testing.assert_as_accurate`: an error is compared with the one that a
yardstick, plain PyTorch in the same dtype, makes on the same data, plus some roundings. Ours may have twice
the yardstick's error. A peer may have eight times, so that a slight excess does not hide its time, and so may
all sides of a module. The truth of an op is found here, in pieces; that of a module is its yardstick in
float64 (:mod:`benchmarks.modules`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.inputs import DTYPES
from benchmarks.results import PEER
from benchmarks.shapes import Case
from vt_fast.precision import compute_dtype
from vt_fast.reference.projector import pixel_attention
from vt_fast.testing import allowed_error

# What errors may be, in multiples of the yardstick's.
_OURS, _PEERS = 2.0, 8.0
# Gradients that the yardstick does not have, and the one whose relative error theirs is measured by.
_LIKE = {"dtoken_keys": "dkeys", "dquery_weight": "dkeys"}
# Elements of a piece of the map while it is solved, and compared. A graph over a whole map of 2 GB would hold
# ten of its size, and small pieces stay in a CPU's cache; a GPU wants large ones.
_PIECE, _GPU_PIECE = 1 << 19, 1 << 25


class Judgement(NamedTuple):
    """The largest error in multiples of the allowed one, and a complaint: "map is off by 2, allowed 0.5"."""

    error: float
    complaint: str | None


class Truth(NamedTuple):
    """Results by name and gradients as "d" and the operand's name, in float64, maps as (B, N, C).

    ``lse`` is the largest magnitude of a token's log-sum-exp, from which a backward starts; ``stride``: maps
    hold the pixels 0, stride, 2 stride ... alone.
    """

    values: dict[str, Tensor]
    lse: float = 0.0
    stride: int = 1


def stride_of(elements: int) -> int:
    """Every ``stride``-th pixel of a map is compared: a prime, so that all places in a tile come up."""
    return 17 if elements > 1 << 29 else 5 if elements > 1 << 27 else 1


def solve(op: str, operands: Mapping[str, Tensor], arriving: Mapping[str, Tensor]) -> Truth:
    """The truth of an op for operands of any dtype, in pieces of the map; tests compare it to the reference.

    A first pass finds each token's lse and value. With these as constants, the gradients of a piece are
    those of sum_nl exp(logit_nl - lse_l) (y_n dT_l - T_l dT_l), by autograd.
    """
    x = operands["x"]
    small = {name: value.double().requires_grad_() for name, value in operands.items() if name != "x"}
    stride = stride_of(x.numel())
    kept = torch.empty_like(x[:, ::stride], dtype=torch.float64)
    values = {"dx": kept}
    folded = small
    if "map" in arriving:
        values["map"] = torch.empty_like(kept)
        # A leaf for the pieces; what it depends on gets its gradient at the end.
        keys = small["token_keys"] @ small["query_weight"].T
        folded = {**small, "keys": keys.detach().requires_grad_()}
    lse = delta = grad_tokens = x.new_zeros(())
    if "tokens" in arriving:
        values["tokens"], lse = _tokens(op, x, folded)
        grad_tokens = arriving["tokens"].double()
        delta = (values["tokens"] * grad_tokens).sum(-1)[:, None]
    names = [name for name in folded if name not in ("query_weight", "token_keys")]
    gradients = {name: torch.zeros_like(folded[name]) for name in names}
    for piece in _pieces(x, stride):
        leaf = x[:, piece].double().requires_grad_()
        where = slice(piece.start // stride, -(-piece.stop // stride))
        y = _projected(op, leaf, folded)
        loss = leaf.new_zeros(())
        if "map" in arriving:
            values["map"][:, where] = y.detach()[:, ::stride]
            loss = loss + (y * arriving["map"][:, piece].double()).sum()
        if "tokens" in arriving:
            weights = torch.exp(_logits(y, folded) - lse[:, None])
            loss = loss + (weights * (y @ grad_tokens.transpose(1, 2) - delta)).sum()
        found = torch.autograd.grad(loss, [leaf, *(folded[name] for name in names)])
        values["dx"][:, where] = found[0][:, ::stride]
        for name, part in zip(names, found[1:], strict=True):
            gradients[name] += part
    if "map" in arriving:
        dense = ["query_weight", "token_keys"]
        found = torch.autograd.grad(keys, [small[name] for name in dense], gradients["keys"])
        gradients |= zip(dense, found, strict=True)
    values |= {f"d{name}": value for name, value in gradients.items()}
    return Truth(values, float(lse.abs().max()), stride)


def _projected(op: str, pixels: Tensor, small: Mapping[str, Tensor]) -> Tensor:
    if op == "tokenize":
        return pixels
    return pixels + pixel_attention(pixels, small["keys"], None, None)[:, 0] @ small["values"]


def _logits(pixels: Tensor, small: Mapping[str, Tensor]) -> Tensor:
    return pixels @ small["queries"].transpose(-2, -1)


def _piece_elements(value: Tensor) -> int:
    return _PIECE if value.device.type == "cpu" else _GPU_PIECE


def _pieces(x: Tensor, stride: int) -> Iterator[slice]:
    """Pixels of each piece, which starts at a multiple of the stride."""
    step = stride * max(1, _piece_elements(x) // (x.shape[0] * x.shape[2] * stride))
    for start in range(0, x.shape[1], step):
        yield slice(start, min(start + step, x.shape[1]))


@torch.no_grad()
def _tokens(op: str, x: Tensor, small: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, C) and lse (B, L): each piece's, merged with the weight it has."""
    tokens, lse = x.new_zeros((), dtype=torch.float64), x.new_tensor(-math.inf, dtype=torch.float64)
    for piece in _pieces(x, 1):
        pixels = _projected(op, x[:, piece].double(), small)
        logits = _logits(pixels, small)
        part_lse = torch.logsumexp(logits, 1)
        part = torch.softmax(logits, 1).transpose(1, 2) @ pixels
        merged = torch.logaddexp(lse, part_lse)
        tokens = tokens * torch.exp(lse - merged)[..., None] + part * torch.exp(part_lse - merged)[..., None]
        lse = merged
    return tokens, lse


class Gate(NamedTuple):
    """What errors are allowed, by name: from the yardstick's errors and the largest magnitudes.

    ``lse`` and ``terms`` are those of :func:`vt_fast.testing.allowed_error`.
    """

    yardstick: Mapping[str, float]
    largest: Mapping[str, float]
    dtype: torch.dtype
    lse: float = 0.0
    terms: Mapping[str, int] = {}

    def judge(self, found: Mapping[str, float], role: str) -> Judgement:
        """Of the errors of a contender in that role."""
        worst, complaint = 0.0, None
        for name, error in found.items():
            like = name if name in self.yardstick else _LIKE[name]
            allowed = allowed_error(
                self.yardstick[like] / max(self.largest[like], 1e-300) * self.largest[name],
                self.largest[name],
                self.dtype,
                lse=self.lse,
                terms=self.terms.get(name, 0),
                multiple=_PEERS if role == PEER else _OURS,
            )
            worst = max(worst, error / max(allowed, 1e-300))
            if complaint is None and not error <= allowed:  # NaN is not
                complaint = f"{name} is off by {error:.3g}, allowed {allowed:.3g}"
        return Judgement(worst, complaint)


def op_gate(case: Case, truth: Truth, found: Mapping[str, float] | None) -> Gate:
    """The gate of an op, from the errors of its yardstick.

    Where it has not been run, all others are judged as if it had made no error at all. So they are where it
    is off by more than half of the dtype's digits (in fp16, of bf16's, because the weights of a million
    pixels are not normal numbers there), and the yardstick itself fails: plain sums of millions of terms in
    fp32 do that.

    Raises:
        RuntimeError: it is off by more than even such sums can be, so it means something else.
    """
    largest = {name: float(value.abs().max()) for name, value in truth.values.items()}
    if case.shape.tokens == 1 and "dkeys" in largest:
        # A single token has all the weight whatever its key is, so these are 0 but for rounding.
        scale = largest["dvalues"] * case.shape.channels**0.5
        largest |= {name: scale for name in ("dkeys", *_LIKE) if name in largest}
    dtype = _digits(case.dtype)
    coarse = math.sqrt(max(torch.finfo(dtype).eps, torch.finfo(torch.bfloat16).eps * (case.dtype == "fp16")))
    # A pixel's gradient depends on all pixels too, by the statistics of the softmax.
    sums = torch.finfo(compute_dtype(dtype)).eps * case.shape.sizes[1]
    strict = found is None
    for name, error in (found or {}).items():
        if not error <= coarse * max(largest[name], 1e-30):
            if not error <= sums * largest[name]:
                raise RuntimeError(f"the yardstick is wrong: {name} of {case.label} is off by {error:.3g}")
            strict = True
    yardstick = dict.fromkeys(largest, 0.0) if strict else dict(found or {})
    return Gate(yardstick, largest, dtype, truth.lse, {name: terms(name, case) for name in largest})


def _digits(dtype: str) -> torch.dtype:
    """The dtype whose roundings are allowed: TF32 has as many digits as float16."""
    tf32 = dtype == "fp32" and torch.backends.cuda.matmul.allow_tf32
    return torch.float16 if tf32 else DTYPES[dtype]


def errors(truth: Truth, found: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """Largest error of each result or gradient, of maps (B, C, H, W) at every ``truth.stride``-th pixel."""
    largest = {}
    for name, value in found:
        pixels = value.flatten(2).transpose(1, 2)[:, :: truth.stride] if value.dim() == 4 else value
        largest[name] = largest_error(pixels, truth.values[name])
    return largest


def largest_error(found: Tensor, exact: Tensor) -> float:
    """Largest difference from float64 values, without a large copy; infinite for NaN or another shape."""
    if found.shape != exact.shape:
        return math.inf
    found = found.detach()
    if found.dim() < 3:
        found, exact = found[None], exact[None]
    rows = max(1, _piece_elements(exact) // 2 // exact[0, :1].numel())
    worst = [
        torch.linalg.vector_norm(part - true_part, math.inf)
        for sample, true_sample in zip(found, exact, strict=True)
        for part, true_part in zip(sample.split(rows), true_sample.split(rows), strict=True)
    ]
    return float(torch.stack(worst).nan_to_num(math.inf).max())


def terms(name: str, case: Case) -> int:
    """How many terms are summed for one value, which is what errors in another order grow with.

    Example:
        >>> from benchmarks.shapes import Shape
        >>> case = Case("tokenize", Shape(2, 3, 4, 8, 5), "fp32", "nchw")
        >>> terms("dx", case), terms("tokens", case), terms("dqueries", case)
        (8, 12, 24)
    """
    batch, pixels, channels, _ = case.shape.sizes
    if name in ("map", "dx"):
        return channels
    shared = name == "dquery_weight" or (case.op == "tokenize" and name == "dqueries")
    return pixels * (batch if shared else 1)
