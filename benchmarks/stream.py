"""A map that is tokenized in chunks of its rows, as one does where it does not fit or comes in parts.

Ours is :func:`vt_fast.tokenize` of each chunk and :func:`vt_fast.merge`. The truth, the gate and the floor
are those of ``tokenize``: it must come to the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

import vt_fast
from benchmarks.contenders import Contender, usable_backends
from benchmarks.peers import PEERS, YARDSTICKS, Code, Results, operand_names
from benchmarks.records import BACKEND, OURS, PEER

# The peer that does the same in plain PyTorch.
PLAIN = "eager in chunks"


class _Rows(torch.autograd.Function):
    """Parts of whole rows, without a copy; a backward copies their gradients to where they belong.

    That of ``split`` would call ``torch.cat``, which in channels_last takes many times as long as a copy, and
    would hide what is measured.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int) -> tuple[Tensor, ...]:
        """The parts; the last one may be lower."""
        ctx.save_for_backward(x)
        ctx.rows = rows
        return tuple(part.view_as(part) for part in x.split(rows, dim=2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of x, in its layout."""
        (x,) = ctx.saved_tensors
        found = torch.empty_like(x)
        for part, gradient in zip(found.split(ctx.rows, dim=2), gradients, strict=True):
            part.copy_(gradient)
        return found, None


def chunks(x: Tensor, count: int) -> Sequence[Tensor]:
    """A map (B, C, H, W) in at most ``count`` parts of whole rows, without a copy.

    Example:
        >>> [tuple(part.shape) for part in chunks(torch.zeros(1, 8, 5, 3), 2)]
        [(1, 8, 3, 3), (1, 8, 2, 3)]
    """
    if count == 1:
        return (x,)
    parts: Sequence[Tensor] = _Rows.apply(x, -(-x.shape[2] // count))  # type: ignore[no-untyped-call]
    return parts


def ours(backend: str, count: int) -> Code:
    """vt_fast in chunks."""

    def tokenize(x: Tensor, queries: Tensor) -> Results:
        found = [
            vt_fast.tokenize(part, queries, return_stats=True, backend=backend) for part in chunks(x, count)
        ]
        tokens, _ = vt_fast.merge(*map(torch.stack, zip(*found, strict=True)))
        return (tokens,)

    return tokenize


def plain(count: int) -> Code:
    """The same in plain PyTorch."""

    def tokenize(x: Tensor, queries: Tensor) -> Results:
        tokens, lse = [], []
        for part in chunks(x, count):
            pixels = part.flatten(2).transpose(1, 2)
            logits = pixels @ queries.transpose(-2, -1)
            tokens.append(torch.softmax(logits, 1).transpose(1, 2) @ pixels)
            lse.append(torch.logsumexp(logits.to(torch.promote_types(x.dtype, torch.float32)), 1))
        shares = torch.softmax(torch.stack(lse), 0).to(x.dtype)
        return ((shares[..., None] * torch.stack(tokens)).sum(0),)

    return tokenize


def contenders(
    count: int, wanted: Collection[str] | None = None, device: torch.device | str = "cpu"
) -> list[Contender]:
    """Ours and our other backends in chunks, plain PyTorch in chunks, and at once, which is the yardstick."""
    found: list[Contender] = []
    for backend in usable_backends(device):
        function = ours(backend, count)
        kind = BACKEND if found else OURS
        found.append(Contender(f"vt_fast {backend}", kind, function, tuple(operand_names(function))))
    name = YARDSTICKS["tokenize"]
    (whole,) = (peer.function for peer in PEERS["tokenize"] if peer.name == name)
    for title, function in ((name, whole), (PLAIN, plain(count))):
        listed = wanted is None or name in wanted
        found.append(Contender(title, PEER, function, tuple(operand_names(function)), timed=listed))
    return found
