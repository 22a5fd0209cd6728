"""The registry of peers: plain PyTorch that does the job of an op, as somebody would write it.

A peer gets the 4-D map as it lies, and may return its own map in any strides; transposes and copies that
it wants are its own cost. The names of a function's arguments say which operands it takes
(:func:`benchmarks.operands.draw`), and all of them get gradients.

- ``eager``: the paper as written, pixel by pixel. In the projector the query projection is a dense C x C
  matrix on the pixels, as equation 5 has it; our op takes its place.
- ``folded``: the same with that projection folded into the keys, hence on the operands that our op gets.
- ``transposed``: folded, and channel by channel: what suits an NCHW map.
- ``sdpa``: PyTorch's fused attention, on folded operands, in the implementation that PyTorch chooses.
- ``sdpa flash``, ``sdpa math``: the same, forced to one implementation; the first one on a copy of the map
  where the channels of a pixel do not lie side by side (:mod:`benchmarks.attention`).
- ``compile ...``: torch.compile of the above, for these very shapes; its compile time is not counted. Where
  there is a projector, ``transposed`` is compiled for NCHW alone, lest a run take even longer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attention import SDPA_BACKENDS, forced_ops
from benchmarks.cases import LAYOUTS

Results = tuple[Tensor, ...]
Code = Callable[..., Results]


class Contender(NamedTuple):
    """One that takes part in a case.

    ``role``: results.OURS, BACKEND or PEER. ``compiled``: its first call compiles, which is limited in time.
    ``timed``: False for a yardstick that was not asked for; it is checked and not timed.
    """

    name: str
    role: str
    compiled: bool = False
    timed: bool = True


class Peer(NamedTuple):
    """Somebody else's code for one op. ``mode`` is torch.compile's."""

    name: str
    function: Code
    compiled: bool = False
    layouts: tuple[str, ...] = LAYOUTS
    mode: str | None = None


def operand_names(function: Callable[..., Any]) -> list[str]:
    """Which operands a function takes.

    Example:
        >>> operand_names(tokenize)
        ['x', 'queries']
    """
    return list(inspect.signature(function).parameters)


def _pixels(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _map(pixels: Tensor, like: Tensor) -> Tensor:
    feature_map: Tensor = pixels.transpose(1, 2).unflatten(2, like.shape[2:])
    return feature_map


def _pool(pixels: Tensor, queries: Tensor) -> Tensor:
    weights = torch.softmax(pixels @ queries.transpose(-2, -1), dim=1)
    return weights.transpose(1, 2) @ pixels


def _pool_transposed(x: Tensor, queries: Tensor) -> Tensor:
    channels = x.flatten(2)
    return torch.softmax(queries @ channels, dim=-1) @ channels.transpose(1, 2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], scale=1.0)[:, 0]


def tokenize(x: Tensor, queries: Tensor) -> Results:
    """T = softmax_N(X Q^T)^T X."""
    return (_pool(_pixels(x), queries),)


def tokenize_transposed(x: Tensor, queries: Tensor) -> Results:
    """The same with weights (B, L, N)."""
    return (_pool_transposed(x, queries),)


def tokenize_sdpa(x: Tensor, queries: Tensor) -> Results:
    """The same as attention of the tokens over the pixels."""
    pixels = _pixels(x)
    return (_attend(queries.expand(x.shape[0], -1, -1), pixels, pixels),)


def project(x: Tensor, query_weight: Tensor, token_keys: Tensor, values: Tensor) -> Results:
    """X + softmax_L((X W_Q) K^T) V, the query projection on the pixels."""
    pixels = _pixels(x)
    weights = torch.softmax((pixels @ query_weight) @ token_keys.transpose(1, 2), dim=-1)
    return (_map(pixels + weights @ values, x),)


def project_folded(x: Tensor, keys: Tensor, values: Tensor) -> Results:
    """X + softmax_L(X K^T) V."""
    pixels = _pixels(x)
    return (_map(pixels + torch.softmax(pixels @ keys.transpose(1, 2), dim=-1) @ values, x),)


def project_transposed(x: Tensor, keys: Tensor, values: Tensor) -> Results:
    """The same with weights (B, L, N)."""
    channels = x.flatten(2)
    weights = torch.softmax(keys @ channels, dim=1)
    return ((channels + values.transpose(1, 2) @ weights).unflatten(2, x.shape[2:]),)


def project_sdpa(x: Tensor, keys: Tensor, values: Tensor) -> Results:
    """The same as attention of the pixels over the tokens."""
    pixels = _pixels(x)
    return (_map(pixels + _attend(pixels, keys, values), x),)


def both(x: Tensor, query_weight: Tensor, token_keys: Tensor, values: Tensor, queries: Tensor) -> Results:
    """Project, then tokenize."""
    (y,) = project(x, query_weight, token_keys, values)
    return y, _pool(_pixels(y), queries)


def both_folded(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Results:
    """Project, then tokenize, on folded operands."""
    (y,) = project_folded(x, keys, values)
    return y, _pool(_pixels(y), queries)


def both_transposed(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Results:
    """The same with weights (B, L, N)."""
    (y,) = project_transposed(x, keys, values)
    return y, _pool_transposed(y, queries)


def both_sdpa(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Results:
    """The same as two attentions."""
    (y,) = project_sdpa(x, keys, values)
    return (y, *tokenize_sdpa(y, queries))


_NCHW = ("nchw",)


def forced_sdpa(op: str, names: Iterable[str]) -> tuple[Peer, ...]:
    """PyTorch's fused attention, a peer for each of its implementations."""
    return tuple(Peer(f"sdpa {name}", forced_ops(name)[op]) for name in names)


def _projecting(op: str, eager: Code, folded: Code, transposed: Code, sdpa: Code) -> tuple[Peer, ...]:
    return (
        Peer("eager", eager),
        Peer("folded", folded),
        Peer("transposed", transposed),
        Peer("sdpa", sdpa),
        *forced_sdpa(op, SDPA_BACKENDS),
        Peer("compile eager", eager, compiled=True),
        Peer("compile folded", folded, compiled=True),
        Peer("compile transposed", transposed, compiled=True, layouts=_NCHW),
    )


# Plain ones first: whether one is worth compiling is told by them.
PEERS: dict[str, tuple[Peer, ...]] = {
    "tokenize": (
        Peer("eager", tokenize),
        Peer("transposed", tokenize_transposed),
        Peer("sdpa", tokenize_sdpa),
        *forced_sdpa("tokenize", SDPA_BACKENDS),
        Peer("compile eager", tokenize, compiled=True),
        Peer("compile transposed", tokenize_transposed, compiled=True),
    ),
    "project": _projecting("project", project, project_folded, project_transposed, project_sdpa),
    "project_tokenize": _projecting("project_tokenize", both, both_folded, both_transposed, both_sdpa),
}

NAMES = tuple(dict.fromkeys(peer.name for peers in PEERS.values() for peer in peers))

# Whose error in the same dtype is the measure of everybody's: it works on the very operands that ours gets.
YARDSTICKS = {"tokenize": "eager", "project": "folded", "project_tokenize": "folded", "stack": "eager"}
