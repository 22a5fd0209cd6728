"""torch-geometric: attention over the nodes of each graph, bags of different sizes."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from vt_fast import functional
from vt_fast.patches.absorbed import with_bias_gradient
from vt_fast.patches.base import Patch, own_forward, why_not_plain
from vt_fast.precision import autocast_enabled, without_autocast


class AttentionalAggregation(Patch):
    """A gate that is a linear layer becomes a query; what another one returns becomes the scores."""

    hosts = ("torch_geometric.nn.aggr.attention.AttentionalAggregation",)
    members = "gate_nn gate_mlp nn mlp"
    note = (
        "takes nodes sorted by graph: a `ptr`, or on a CPU an `index` that is sorted; all else "
        "runs its own forward, and gates with several columns its own softmax"
    )

    @staticmethod
    def forward(
        self: Any,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        offsets = _offsets(x, index, ptr, dim_size, dim)
        if offsets is None:
            return own_forward(self, x, index, ptr, dim_size, dim)  # type: ignore[no-any-return]
        gate, rows, scores = self.gate_nn, None, None
        if why_not_plain(self, nn.Linear, "gate_nn") is None and gate.out_features == 1:
            rows = with_bias_gradient(gate.weight, gate.bias)
        elif gate is not None:
            scores = gate(x)
        else:
            scores = self.gate_mlp(x, batch=index, batch_size=dim_size)
        values = x
        if self.mlp is not None:
            values = self.mlp(x, batch=index, batch_size=dim_size)
        elif self.nn is not None:
            values = self.nn(x)
        if scores is not None and scores.shape != (x.shape[0], 1):  # what the host does, from here on
            softmax = sys.modules[self._vt_fast_host.__module__].softmax  # type: ignore[attr-defined]
            weights = softmax(scores, index, ptr, dim_size, dim)
            return self.reduce(weights * values, index, ptr, dim_size, dim)  # type: ignore[no-any-return]
        context: AbstractContextManager[Any] = nullcontext()
        if values is x and autocast_enabled(x.device.type):
            # The host multiplies nodes that go through no layer as they are, so that they are not rounded.
            context = without_autocast(x.device.type)
            rows, scores = (None if each is None else each.to(x.dtype) for each in (rows, scores))
        if rows is None:
            x, scores = values, scores.t()  # type: ignore[union-attr]
        with context:
            found = functional.tokenize(
                x, rows, values=None if values is x else values, scores=scores, offsets=offsets
            )
        return found[:, 0]


def _offsets(
    x: Tensor, index: Tensor | None, ptr: Tensor | None, dim_size: int | None, dim: int
) -> Tensor | None:
    """The bounds of the bags in x; None where there are none, or to find them would wait for a device."""
    if x.dim() != 2 or dim not in (-2, 0):
        return None
    if ptr is not None:
        return ptr if ptr.dim() == 1 else None
    if index is None or dim_size is None or index.dim() != 1 or index.device.type != "cpu":
        return None
    if torch.compiler.is_compiling() or is_tracing() or type(index) is not Tensor:
        return None  # the numbers are not there to be looked at
    if not bool((index[1:] >= index[:-1]).all()):
        return None
    counts = torch.bincount(index, minlength=dim_size)
    if len(counts) != dim_size or len(index) != len(x):
        return None  # the host explains what is wrong
    return nn.functional.pad(counts.cumsum(0), (1, 0))
