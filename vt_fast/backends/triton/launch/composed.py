"""project_tokenize as project and tokenize one after the other, where a program cannot hold the rows of both.

The map is written, and in the backward written again. As elsewhere, a pixel that takes no part is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.contract import (
    Project,
    ProjectBackward,
    ProjectTokenize,
    ProjectTokenizeBackward,
    ProjectTokenizeGradients,
    Tokenize,
    TokenizeBackward,
)
from vt_fast.backends.triton.launch.project import project, project_backward
from vt_fast.backends.triton.launch.tokenize import tokenize, tokenize_backward
from vt_fast.layout import per_pixel

# Rows of keys, or queries, beyond which the kernel for both spills registers, or reads maps again and again.
_MOST_ROWS = 32


def too_many_rows(rows: int) -> bool:
    """Whether these many rows, padded, are more than the kernel for both can hold."""
    return rows > _MOST_ROWS


def forward(call: ProjectTokenize) -> tuple[Tensor | None, Tensor, Tensor]:
    """The map (None unless wanted), its tokens and lse."""
    y = _map(call)
    made = Tokenize(y, call.queries, call.mask, call.pixel_bias, call.extra_values, 1, call.keep_exact)
    return (y if call.return_map else None, *tokenize(made))


def backward(call: ProjectTokenizeBackward) -> ProjectTokenizeGradients:
    """The gradients that are needed."""
    needs_x, needs_keys, needs_values, needs_queries = call.needs[:4]
    needs_token_bias, needs_residual, needs_pixel_bias, needs_extra_values = call.needs[4:]
    back = TokenizeBackward(
        call.grad_tokens, call.grad_lse, _map(call), call.queries, call.mask, call.pixel_bias, call.extra_values,
        call.tokens, call.lse, 1, [True, needs_queries, needs_pixel_bias, needs_extra_values],
    )  # fmt: skip
    of_tokens = tokenize_backward(back)
    dy = of_tokens.x
    assert dy is not None
    if call.grad_map is not None:
        dy = dy + call.grad_map.to(dy.dtype)
    spread = project_backward(
        ProjectBackward(
            dy, _used(call, dy), call.keys, call.values, call.token_bias, call.residual_is_input, call.num_heads,
            [needs_x, needs_keys, needs_values, needs_token_bias],
        )
    )  # fmt: skip
    return ProjectTokenizeGradients(
        x=spread.x,
        keys=spread.keys,
        values=spread.values,
        queries=of_tokens.queries,
        token_bias=spread.token_bias,
        residual=dy if needs_residual and call.residual is not None else None,
        pixel_bias=of_tokens.pixel_bias,
        extra_values=of_tokens.extra_values,
    )


def _map(call: ProjectTokenize | ProjectTokenizeBackward) -> Tensor:
    return project(
        Project(
            call.x, call.keys, call.values, call.token_bias, call.residual, call.residual_is_input, call.num_heads,
        )
    )  # fmt: skip


def _used(call: ProjectTokenizeBackward, dy: Tensor) -> Tensor:
    """x, and 0 in pixels that take no part and to which no gradient arrives, whatever is there."""
    x = call.x
    weights = per_pixel(call.pixel_bias)
    part = per_pixel(call.mask)
    if weights is not None:
        kept = weights != -torch.inf
        part = kept if part is None else part & kept
    if part is None:
        return x
    if x.dim() == 3:
        return torch.where((part | (dy != 0).any(-1)).unsqueeze(-1), x, 0)
    used = part | (dy != 0).any(1).flatten(1)
    return torch.where(used.view(x.shape[0], 1, *x.shape[2:]), x, 0)
