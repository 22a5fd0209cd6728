"""Peers that take part on a GPU alone.

- ``sdpa efficient``, ``sdpa cudnn``: PyTorch's fused attention, forced to an implementation that needs a GPU.
- ``flash-attn`` and others: from packages that are installed (:mod:`benchmarks.packages`).
- ``compile flex``: torch.compile of ``flex_attention``. It wants the channels of a pixel side by side; where
  they are not, it makes a copy. It may not compile for wide heads, and then says so.
- ``autotune ...``: torch.compile with ``mode="max-autotune-no-cudagraphs"``, which takes long: only if asked
  for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from benchmarks.attention import GPU_SDPA_BACKENDS, by_attention
from benchmarks.packages import found
from benchmarks.peers import PEERS, Code, Peer, forced_sdpa

AUTOTUNE = "max-autotune-no-cudagraphs"


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    found: Any = flex_attention(queries[:, None], keys[:, None], values[:, None], scale=1.0)
    attended: Tensor = found[:, 0]
    return attended


def _tuned(op: str) -> tuple[Peer, ...]:
    return tuple(
        peer._replace(name=peer.name.replace("compile ", "autotune ", 1), mode=AUTOTUNE)
        for peer in PEERS[op]
        if peer.compiled
    )


def _plain(op: str) -> tuple[Peer, ...]:
    if not torch.cuda.is_available():  # as in a rehearsal
        return ()
    packages = [Peer(name, by_attention(attend)[op]) for name, attend in _PACKAGES.present.items()]
    return (*forced_sdpa(op, GPU_SDPA_BACKENDS), *packages)


_PACKAGES = found(torch.cuda.is_available())
# Packages that were looked for in vain, and why.
ABSENT = _PACKAGES.absent
_FLEX = by_attention(_attend)
# Where FlexAttention is compiled: two of them in one op take very long.
_FLEX_OPS = ("tokenize", "project")
GPU_PEERS: dict[str, tuple[Peer, ...]] = {
    op: (
        *_plain(op),
        *([Peer("compile flex", _FLEX[op], compiled=True)] if op in _FLEX_OPS else []),
        *_tuned(op),
    )
    for op in PEERS
}

_EVERY = [peer for registry in (PEERS, GPU_PEERS) for peers in registry.values() for peer in peers]
TUNED_NAMES = tuple(dict.fromkeys(peer.name for peer in _EVERY if peer.mode is not None))
PLAIN_NAMES = tuple(dict.fromkeys(peer.name for peer in _EVERY if not peer.compiled))
# Those that take part unless others are named.
DEFAULT_NAMES = tuple(dict.fromkeys(peer.name for peer in _EVERY if peer.mode is None))
ALL_NAMES = (*DEFAULT_NAMES, *TUNED_NAMES)


class _Choices(TorchFunctionMode):
    """Asks torch, at each call of its fused attention, which implementation it would take."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        """Look at the call, then let it go on."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            number = torch._fused_sdp_choice(*args, **kwargs)
            self.names.append(str(SDPBackend(number).name).lower())
        return func(*args, **kwargs)


def attention_choices(function: Code, *operands: Tensor) -> list[str]:
    """Which implementation ``scaled_dot_product_attention`` takes in a function's forward, call by call.

    Example:
        >>> from benchmarks.peers import tokenize_sdpa
        >>> len(attention_choices(tokenize_sdpa, torch.zeros(1, 8, 2, 2), torch.zeros(3, 8)))
        1
    """
    choices = _Choices()
    with choices:
        function(*operands)
    return choices.names
