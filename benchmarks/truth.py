"""What the results and gradients of a case really are: the paper's equations in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import STACK
from vt_fast.reference.projector import pixel_attention
from vt_fast.reference.tokenizers import filter_tokenizer

RESULTS = {
    "tokenize": ("tokens",),
    "project": ("map",),
    "project_tokenize": ("map", "tokens"),
    STACK: ("map", "tokens"),
}


class Truth(NamedTuple):
    """Results by name and gradients as "d" and the operand's name, in float64, maps as (B, N, C).

    ``lse`` is the largest magnitude of a token's log-sum-exp, from which a backward starts.
    """

    values: dict[str, Tensor]
    lse: float


def solve(op: str, operands: Mapping[str, Tensor], cotangents: Sequence[Tensor]) -> Truth:
    """The truth of an op for operands of any dtype, by :mod:`vt_fast.reference`.

    Example:
        >>> operands = {"x": torch.ones(1, 3, 2), "queries": torch.ones(1, 2)}
        >>> truth = solve("tokenize", operands, [torch.ones(1, 1, 2)])
        >>> truth.values["tokens"].tolist(), truth.values["dx"][0, :, 0].sum().item()
        ([[[1.0, 1.0]]], 1.0)
    """
    exact = {name: value.double().requires_grad_() for name, value in operands.items()}
    if op != "tokenize":
        # The operand itself is not a leaf here: its gradient goes on to the weight and the tokens' keys.
        exact["keys"] = exact["token_keys"] @ exact["query_weight"].T
    results = []
    source = exact["x"]
    if op != "tokenize":
        source = source + pixel_attention(source, exact["keys"], None, None)[:, 0] @ exact["values"]
        results.append(source)
    lse = 0.0
    if op != "project":
        results.append(filter_tokenizer(source, exact["queries"]))
        with torch.no_grad():
            logits = source @ exact["queries"].transpose(-2, -1)
            lse = float(torch.logsumexp(logits, 1).abs().max())
    return Truth(_named(op, results, exact, cotangents), lse)


def solve_plainly(
    op: str,
    function: Callable[..., Sequence[Tensor]],
    operands: Mapping[str, Tensor],
    cotangents: Sequence[Tensor],
) -> Truth:
    """The truth as a reference function in float64 has it, for what is no single op."""
    exact = {name: value.double().requires_grad_() for name, value in operands.items()}
    return Truth(_named(op, function(*exact.values()), exact, cotangents), 0.0)


def _named(
    op: str, results: Sequence[Tensor], operands: Mapping[str, Tensor], cotangents: Sequence[Tensor]
) -> dict[str, Tensor]:
    given = [cotangent.double() for cotangent in cotangents]
    gradients = torch.autograd.grad(results, list(operands.values()), given)
    values = {name: result.detach() for name, result in zip(RESULTS[op], results, strict=True)}
    names = (f"d{name}" for name in operands)
    return values | dict(zip(names, gradients, strict=True))
