"""The ops in plain PyTorch without loops, as the ONNX exporters trace them; for inference alone.

Maps are worked on as (B, C, N), of which both forms are views. Arguments are those of the ops.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from vt_fast.backends.contract import Project, ProjectTokenize, Tokenize, switches
from vt_fast.layout import per_pixel, unflatten
from vt_fast.precision import compute_dtype

_NAMES = {Tokenize: "tokenize", Project: "project", ProjectTokenize: "project_tokenize"}


def exporting() -> bool:
    """Whether a model is being exported to ONNX."""
    return (torch.compiler.is_compiling() or is_tracing()) and torch.onnx.is_in_onnx_export()


def check_exported(call: Tokenize | Project | ProjectTokenize) -> None:
    """Raise for what has no translation to ONNX.

    Raises:
        NotImplementedError: the message says what.
    """
    for name in switches(call):
        raise NotImplementedError(
            f"{name} of {_NAMES[type(call)]} has no translation to ONNX: write that call in plain "
            "PyTorch, as in vt_fast.reference.ops"
        )


def tokenize(call: Tokenize) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, C + P) in x's dtype, and lse (B, num_heads * L)."""
    x, queries, mask, pixel_bias, extra_values, num_heads, _ = call[:7]
    check_exported(call)
    dtype, mask, bias = compute_dtype(x.dtype), per_pixel(mask), per_pixel(pixel_bias)
    if bias is not None:
        finite = bias != -torch.inf
        mask = finite if mask is None else mask & finite
    columns = _columns(x)
    if mask is not None:
        columns = torch.where(mask[:, None], columns, 0)
    blocks = unflatten(columns, 1, (num_heads, -1))  # (B, num_heads, C / num_heads, N)
    logits = (unflatten(cast(Tensor, queries), -2, (num_heads, -1)) @ blocks).to(dtype)
    if bias is not None:
        logits = logits + bias.to(dtype)[:, None, None]
    if mask is not None:
        logits = torch.where(mask[:, None, None], logits, -torch.inf)
    weights, lse = torch.softmax(logits, -1), torch.logsumexp(logits, -1).flatten(1)
    if mask is not None:
        weights = torch.where(mask.any(1)[:, None, None, None], weights, 0)
    weights = weights.to(x.dtype)
    tokens = (weights @ blocks.transpose(-2, -1)).transpose(1, 2).flatten(2)
    if extra_values is not None:
        tokens = torch.cat((tokens, weights[:, 0] @ extra_values), -1)
    return tokens, lse


def project(call: Project) -> Tensor:
    """The map (B, N, D) or (B, D, H, W)."""
    x, keys, values, token_bias, residual, residual_is_input, num_heads = call[:7]
    check_exported(call)
    dtype, columns = compute_dtype(x.dtype), _columns(x)
    keys = unflatten(cast(Tensor, keys), -2, (num_heads, -1))  # (B?, num_heads, L, C)
    values = unflatten(values, -1, (num_heads, -1)).transpose(-3, -2)  # (B?, num_heads, L, D / num_heads)
    if token_bias is None:
        weights = torch.softmax((keys @ columns[:, None]).to(dtype), -2)
    else:
        bias = unflatten(token_bias.to(dtype), -1, (num_heads, -1))[..., None]
        removed = bias == -torch.inf
        keys, values = torch.where(removed, 0, keys), torch.where(removed, 0, values)
        weights = torch.softmax((keys @ columns[:, None]).to(dtype) + bias, -2)
        weights = torch.where(removed.all(-2, keepdim=True), 0, weights)
    y = (values.transpose(-2, -1) @ weights.to(x.dtype)).flatten(1, 2)  # (B, D, N)
    if residual_is_input or residual is not None:
        y = y + (columns if residual is None else _columns(residual))
    return y.transpose(1, 2) if x.dim() == 3 else unflatten(y, 2, x.shape[2:])


def project_tokenize(call: ProjectTokenize) -> tuple[Tensor, Tensor, Tensor]:
    """The map, whether it is wanted or not, and its tokens and lse."""
    x, keys, values, queries, token_bias, residual, mask, pixel_bias, extra_values = call[:9]
    residual_is_input, num_heads = call[9:11]
    check_exported(call)
    y = project(Project(x, keys, values, token_bias, residual, residual_is_input, num_heads))
    return y, *tokenize(Tokenize(y, queries, mask, pixel_bias, extra_values, 1, keep_exact=False))


def _columns(x: Tensor) -> Tensor:
    return x.transpose(1, 2) if x.dim() == 3 else x.flatten(2)
