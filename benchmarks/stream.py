"""A map that is tokenized in chunks of its rows, as one does where it does not fit or comes in parts.

Ours is :func:`vt_fast.tokenize` of each chunk and :func:`vt_fast.merge`. The truth, the gate and the floor
are those of ``tokenize``: it must come to the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

import vt_fast
from benchmarks.contenders import Contender, usable_backends
from benchmarks.peers import PEERS, YARDSTICKS, Code, Results, operand_names
from benchmarks.records import BACKEND, OURS, PEER

# The peer that does the same in plain PyTorch.
PLAIN = "eager in chunks"


def chunks(x: Tensor, count: int) -> Sequence[Tensor]:
    """A map (B, C, H, W) in at most ``count`` parts of whole rows, without a copy.

    Example:
        >>> [tuple(part.shape) for part in chunks(torch.zeros(1, 8, 5, 3), 2)]
        [(1, 8, 3, 3), (1, 8, 2, 3)]
    """
    parts: Sequence[Tensor] = x.split(-(-x.shape[2] // count), dim=2)
    return parts


def ours(backend: str, count: int) -> Code:
    """vt_fast in chunks."""

    def tokenize(x: Tensor, queries: Tensor) -> Results:
        found = [
            vt_fast.tokenize(part, queries, return_lse=True, backend=backend) for part in chunks(x, count)
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
