"""Who takes part in a case: each usable backend of vt_fast, and the peers."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

import vt_fast
from benchmarks.cases import Case
from benchmarks.device import Device
from benchmarks.peers import PEERS, YARDSTICKS, Code, Results, operand_names
from benchmarks.records import BACKEND, OURS, PEER
from vt_fast import backends
from vt_fast.backends.contract import Tokenize


class Contender(NamedTuple):
    """A function of some of a case's operands that does the case's job; ``plain``: before it was compiled."""

    name: str
    kind: str
    function: Code
    operands: tuple[str, ...]
    compiled: bool = False
    timed: bool = True
    plain: Code | None = None

    @property
    def folded(self) -> bool:
        """Whether the dense products of the paper's query projection are folded away."""
        return "query_weight" not in self.operands


def usable_backends(device: torch.device | str = "cpu") -> list[str]:
    """The backends that can run here on tensors of the device, ours first."""
    x = torch.empty(1, 1, 16, device=device)
    probe = Tokenize(x, x[0], None, None, None, 1, False)
    return [
        name
        for name, reason in backends.report()
        if reason is None and backends.load(name).refuses(probe) is None
    ]


def contenders(
    case: Case, wanted: Collection[str] | None = None, device: Device | None = None
) -> list[Contender]:
    """Ours, vt_fast's other backends, and the wanted peers (all by default) of an op.

    The yardstick is always there, because nobody passes the gate without it; unwanted, it is not timed.
    """
    found: list[Contender] = []
    device = Device() if device is None else device
    for backend in usable_backends(device.torch_device):
        function = _ours(case.op, backend)
        kind = BACKEND if found else OURS
        found.append(Contender(f"vt_fast {backend}", kind, function, tuple(operand_names(function))))
    for peer in (*PEERS[case.op], *device.peers.get(case.op, ())):
        listed = wanted is None or peer.name in wanted
        if case.layout in peer.layouts and (listed or peer.name == YARDSTICKS[case.op]):
            function = peer.function
            names = tuple(operand_names(function))
            if peer.compiled:
                function = torch.compile(function, fullgraph=True, dynamic=False, mode=peer.mode)
            found.append(
                Contender(peer.name, PEER, function, names, peer.compiled, listed, plain=peer.function)
            )
    return found


def _ours(op: str, backend: str) -> Code:
    def tokenize(x: Tensor, queries: Tensor) -> Results:
        return (vt_fast.tokenize(x, queries, backend=backend),)

    def project(x: Tensor, keys: Tensor, values: Tensor) -> Results:
        return (vt_fast.project(x, keys, values, residual=x, backend=backend),)

    def project_tokenize(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Results:
        y, tokens = vt_fast.project_tokenize(x, keys, values, queries, residual=x, backend=backend)
        return (tokens,) if y is None else (y, tokens)

    codes: dict[str, Code] = {
        "tokenize": tokenize,
        "project": project,
        "project_tokenize": project_tokenize,
    }
    return codes[op]
