"""What the results and gradients of a case really are: the paper's equations in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import STACK
from vt_fast.reference.projector import pixel_attention

RESULTS = {
    "tokenize": ("tokens",),
    "project": ("map",),
    "project_tokenize": ("map", "tokens"),
    STACK: ("map", "tokens"),
}

# Elements of a piece of the map. A graph over a whole map of 2 GB would hold ten of its size. On a GPU small
# pieces would take longer to launch than to compute.
_PIECE, _GPU_PIECE = 1 << 19, 1 << 25

# Of maps with more elements than this, only every so manieth pixel is kept, and compared: prime numbers, so
# that all places in a kernel's tiles come up. Tokens and gradients of small operands depend on all pixels.
_STRIDES = {1 << 29: 17, 1 << 27: 5}


class Truth(NamedTuple):
    """Results by name and gradients as "d" and the operand's name, in float64, maps as (B, N, C).

    ``lse`` is the largest magnitude of a token's log-sum-exp, from which a backward starts; ``stride``: maps
    hold the pixels 0, stride, 2 stride ... alone.
    """

    values: dict[str, Tensor]
    lse: float
    stride: int = 1


def solve(op: str, operands: Mapping[str, Tensor], cotangents: Sequence[Tensor]) -> Truth:
    """The truth of an op for operands of any dtype, in pieces of the map; a test holds it to the reference.

    A first pass finds each token's lse and value. With these as constants, the gradients of a piece are
    those of sum_nl exp(logit_nl - lse_l) (y_n dT_l - T_l dT_l), for which autograd is asked.

    Example:
        >>> operands = {"x": torch.ones(1, 3, 2), "queries": torch.ones(1, 2)}
        >>> truth = solve("tokenize", operands, [torch.ones(1, 1, 2)])
        >>> truth.values["tokens"].tolist(), round(truth.values["dx"][0, :, 0].sum().item(), 9)
        ([[[1.0, 1.0]]], 1.0)
    """
    x = operands["x"]
    small = {name: value.double().requires_grad_() for name, value in operands.items() if name != "x"}
    arriving = dict(zip(RESULTS[op], cotangents, strict=True))
    values: dict[str, Tensor] = {}
    stride = _stride(x.numel())
    if op != "tokenize":
        values["map"] = torch.empty_like(x[:, ::stride], dtype=torch.float64)
        # A leaf for the pieces; what it depends on gets its gradient at the end.
        keys = small["token_keys"] @ small["query_weight"].T
        folded = {**small, "keys": keys.detach().requires_grad_()}
    else:
        folded = small
    lse = delta = None
    if op != "project":
        values["tokens"], lse = _tokens(op, x, folded)
        grad_tokens = arriving["tokens"].double()
        delta = (values["tokens"] * grad_tokens).sum(-1)[:, None]
    gradients = {"x": torch.empty_like(x[:, ::stride], dtype=torch.float64)}
    names = [name for name in folded if name not in ("query_weight", "token_keys")]
    gradients |= {name: torch.zeros_like(folded[name]) for name in names}
    for piece in _pieces(x, stride):
        leaf = x[:, piece].double().requires_grad_()
        kept = slice(piece.start // stride, -(-piece.stop // stride))
        y = _projected(op, leaf, folded)
        loss = leaf.new_zeros(())
        if op != "tokenize":
            values["map"][:, kept] = y.detach()[:, ::stride]
            loss = loss + (y * arriving["map"][:, piece].double()).sum()
        if lse is not None and delta is not None:
            weights = torch.exp(_logits(y, folded) - lse[:, None])
            loss = loss + (weights * (y @ grad_tokens.transpose(1, 2) - delta)).sum()
        found = torch.autograd.grad(loss, [leaf, *(folded[name] for name in names)])
        gradients["x"][:, kept] = found[0][:, ::stride]
        for name, part in zip(names, found[1:], strict=True):
            gradients[name] += part
    if op != "tokenize":
        dense = ["query_weight", "token_keys"]
        found = torch.autograd.grad(keys, [small[name] for name in dense], gradients["keys"])
        gradients |= zip(dense, found, strict=True)
    values |= {f"d{name}": value for name, value in gradients.items()}
    return Truth(values, 0.0 if lse is None else float(lse.abs().max()), stride)


def kept_elements(elements: int) -> int:
    """How many of a map's elements are kept.

    Example:
        >>> kept_elements(1000), kept_elements(1 << 28), kept_elements(1 << 30)
        (1000, 53687092, 63161284)
    """
    return -(-elements // _stride(elements))


def _stride(elements: int) -> int:
    return next((stride for large, stride in _STRIDES.items() if elements > large), 1)


def _projected(op: str, pixels: Tensor, small: Mapping[str, Tensor]) -> Tensor:
    if op == "tokenize":
        return pixels
    return pixels + pixel_attention(pixels, small["keys"], None, None)[:, 0] @ small["values"]


def _logits(pixels: Tensor, small: Mapping[str, Tensor]) -> Tensor:
    return pixels @ small["queries"].transpose(-2, -1)


def _pieces(x: Tensor, stride: int) -> Iterator[slice]:
    """Pixels of each piece, which starts at a multiple of the stride."""
    elements = _PIECE if x.device.type == "cpu" else _GPU_PIECE
    step = stride * max(1, elements // (x.shape[0] * x.shape[2] * stride))
    for start in range(0, x.shape[1], step):
        yield slice(start, min(start + step, x.shape[1]))


@torch.no_grad()
def _tokens(op: str, x: Tensor, small: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, C) and lse (B, L): each piece's, merged with the weight it has."""
    tokens = lse = None
    for piece in _pieces(x, 1):
        pixels = _projected(op, x[:, piece].double(), small)
        logits = _logits(pixels, small)
        part_lse = torch.logsumexp(logits, 1)
        part = torch.softmax(logits, 1).transpose(1, 2) @ pixels
        if tokens is None or lse is None:
            tokens, lse = part, part_lse
            continue
        merged = torch.logaddexp(lse, part_lse)
        tokens = tokens * torch.exp(lse - merged)[..., None] + part * torch.exp(part_lse - merged)[..., None]
        lse = merged
    if tokens is None or lse is None:
        raise ValueError("the map has no pixels")
    return tokens, lse


def solve_plainly(
    op: str,
    function: Callable[..., Sequence[Tensor]],
    operands: Mapping[str, Tensor],
    cotangents: Sequence[Tensor],
) -> Truth:
    """The truth as a reference function in float64 has it, for what is no single op."""
    exact = {name: value.double().requires_grad_() for name, value in operands.items()}
    results = function(*exact.values())
    given = [cotangent.double() for cotangent in cotangents]
    gradients = torch.autograd.grad(results, list(exact.values()), given)
    values = {name: result.detach() for name, result in zip(RESULTS[op], results, strict=True)}
    values |= {f"d{name}": gradient for name, gradient in zip(exact, gradients, strict=True)}
    return Truth(values, 0.0)
