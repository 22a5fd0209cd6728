"""The CPU kernels with the caller's results, as a backend: what the compiled library does, in Python.

For tests that put guards around the results, or look at the calls.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from tests._support.devices import on_cpu
from vt_fast.backends.contract import (
    Project,
    ProjectBackward,
    ProjectGradients,
    ProjectTokenize,
    ProjectTokenizeBackward,
    ProjectTokenizeGradients,
    Tokenize,
    TokenizeBackward,
    TokenizeGradients,
    row_count,
    sees_block,
)
from vt_fast.layout import channel_count, empty_map_like, sample_count
from vt_fast.ops.library import Pass
from vt_fast.precision import compute_dtype


def running_on(ops: Any) -> contextlib.AbstractContextManager[None]:
    """Within, calls on a CPU run these ops, torch.ops.vt_fast_cpu or what stands for them."""
    backend = RawBackend(ops)

    def implementation(op: Pass) -> Any:
        return lambda *args, **named: op.run(op.call(args), backend)

    return on_cpu(implementation)


class RawBackend:
    """The backend's functions: each allocates its results and calls one kernel."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def tokenize(self, call: Tokenize) -> tuple[Tensor, Tensor]:
        """Tokens and statistics in the compute dtype."""
        x, values = call.x, call.x if call.values is None else call.values
        rows = row_count(call.queries, call.scores, call.offsets)
        blocks = call.num_heads if sees_block(call.queries, channel_count(x), call.num_heads) else 1
        tokens, stats = _pooled(
            x,
            sample_count(x, call.offsets),
            rows // blocks,
            rows,
            channel_count(values),
            call.extra_values,
        )
        self.ops.tokenize.default(*call[:6], tokens, stats, *call[7:])
        return tokens, stats

    def tokenize_backward(self, call: TokenizeBackward) -> TokenizeGradients:
        """The gradients that are needed."""
        x, needs = call.x, call.needs
        dtype = compute_dtype(x.dtype)
        found = TokenizeGradients(
            x=torch.empty_like(x) if needs[0] else None,
            queries=_gradient(call.queries, needs[1], dtype),
            pixel_bias=_gradient(call.pixel_bias, needs[2], dtype),
            extra_values=_gradient(call.extra_values, needs[3], dtype),
            values=torch.empty_like(call.values) if call.values is not None and needs[4] else None,
            scores=torch.empty_like(call.scores) if call.scores is not None and needs[5] else None,
            token_bias=_gradient(call.token_bias, needs[6], dtype),
        )
        self.ops.tokenize_backward.default(
            _as(call.grad_tokens, x.dtype),
            None if call.grad_stats is None else _as(call.grad_stats, dtype),
            x,
            call.queries,
            call.mask,
            call.pixel_bias,
            call.extra_values,
            _as(call.tokens, dtype).contiguous(),
            call.stats.contiguous(),
            call.num_heads,
            *found[:4],
            *call[11:],
            *found[4:],
        )
        return found

    def project(self, call: Project) -> Tensor:
        """The map."""
        y = empty_map_like(call.x, call.values.shape[-1])
        self.ops.project.default(*call[:7], y, *call[7:])
        return y

    def project_backward(self, call: ProjectBackward) -> ProjectGradients:
        """The gradients that are needed."""
        x, needs = call.x, call.needs
        dtype = compute_dtype(x.dtype)
        found = ProjectGradients(
            x=torch.empty_like(x) if needs[0] else None,
            keys=_gradient(call.keys, needs[1], dtype),
            values=_gradient(call.values, needs[2], dtype),
            token_bias=_gradient(call.token_bias, needs[3], dtype),
            scores=torch.empty_like(call.scores) if call.scores is not None and needs[4] else None,
        )
        self.ops.project_backward.default(
            _as(call.grad_map, x.dtype), *call[1:7], *found[:4], *call[8:], found[4]
        )
        return found

    def project_tokenize(self, call: ProjectTokenize) -> tuple[Tensor | None, Tensor, Tensor]:
        """The map (None unless wanted), its tokens (B, Lq, D + P) and lse (B, Lq) in the compute dtype."""
        channels, rows = call.values.shape[-1], call.queries.shape[-2]
        y = empty_map_like(call.x, channels) if call.return_map else None
        tokens, lse = _pooled(call.x, call.x.shape[0], rows, rows, channels, call.extra_values)
        self.ops.project_tokenize.default(*call[:11], y, tokens, lse)
        return y, tokens, lse

    def project_tokenize_backward(self, call: ProjectTokenizeBackward) -> ProjectTokenizeGradients:
        """The gradients that are needed."""
        x, residual, needs = call.x, call.residual, call.needs
        dtype = compute_dtype(x.dtype)
        found = ProjectTokenizeGradients(
            x=torch.empty_like(x) if needs[0] else None,
            keys=_gradient(call.keys, needs[1], dtype),
            values=_gradient(call.values, needs[2], dtype),
            queries=_gradient(call.queries, needs[3], dtype),
            token_bias=_gradient(call.token_bias, needs[4], dtype),
            residual=torch.empty_like(residual) if residual is not None and needs[5] else None,
            pixel_bias=_gradient(call.pixel_bias, needs[6], dtype),
            extra_values=_gradient(call.extra_values, needs[7], dtype),
        )
        self.ops.project_tokenize_backward.default(
            None if call.grad_map is None else _as(call.grad_map, x.dtype),
            _as(call.grad_tokens, x.dtype),
            None if call.grad_lse is None else _as(call.grad_lse, dtype),
            *call[3:12],
            _as(call.tokens, dtype).contiguous(),
            call.lse.contiguous(),
            call.residual_is_input,
            call.num_heads,
            *found,
        )
        return found


def _pooled(
    x: Tensor, batch: int, tokens: int, rows: int, channels: int, extra_values: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Uninitialised tokens (B, tokens, channels + P) and lse (B, rows) in the compute dtype."""
    width = channels if extra_values is None else channels + extra_values.shape[1]
    dtype = compute_dtype(x.dtype)
    return x.new_empty((batch, tokens, width), dtype=dtype), x.new_empty((batch, rows), dtype=dtype)


def _gradient(operand: Tensor | None, needed: bool, dtype: torch.dtype) -> Tensor | None:
    """Uninitialised memory, dense and in the compute dtype, for the gradient of a small operand."""
    return operand.new_empty(operand.shape, dtype=dtype) if needed and operand is not None else None


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    # Tensor.to takes half a microsecond even if it changes nothing.
    return value if value.dtype == dtype else value.to(dtype)
