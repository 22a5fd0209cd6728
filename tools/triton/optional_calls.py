"""Calls with optional arguments, sizes and strides that the table lacks. All their kernels must compile."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tools.triton.calls import DTYPES, launches
from tools.triton.compiled import compiled, unless_miscompiled
from tools.triton.gpus import GPUS
from vt_fast.backends import contract
from vt_fast.backends import triton as backend
from vt_fast.backends.triton.schedule import standing_in

# Each option occurs with and without others.
COVER = (
    ("tokenize", "shared mask pixel_bias extra_values"),
    ("tokenize", "num_heads mask strided"),
    ("tokenize", "num_heads shared huge"),
    ("project", "shared token_bias num_heads"),
    ("project", "no_residual token_bias strided"),
    ("project", "residual wide num_heads huge"),
    ("tokenize", "tokens num_heads full_rows shared token_bias mask"),
    ("tokenize", "tokens num_heads strided pixel_bias"),
    ("tokenize", "linear shared huge"),
    ("tokenize", "token_bias pixel_bias extra_values"),
    ("tokenize", "second_map wide mask extra_values"),
    ("tokenize", "second_map tokens num_heads strided shared token_bias"),
    ("tokenize", "bags num_heads mask pixel_bias token_bias"),
    ("tokenize", "bags tokens num_heads full_rows shared second_map"),
    ("tokenize", "scores num_heads strided huge"),
    ("tokenize", "scores alone tokens num_heads full_rows mask second_map"),
    ("tokenize", "layer_norm num_heads mask token_bias"),
    ("tokenize", "layer_norm bags shared scores"),
    ("project", "bags num_heads token_bias"),
    ("project", "bags num_heads scores summed residual wide"),
    ("project", "scores alone exp num_heads"),
    ("project", "num_heads block_keys summed token_bias"),
    ("project", "num_heads block_keys exp strided no_residual"),
    ("project", "summed num_heads linear wide residual shared"),
    ("project_tokenize", "num_heads block_keys summed mask"),
    ("project_tokenize", "num_heads token_bias pixel_bias"),
    ("project_tokenize", "no_map mask residual wide strided"),
    ("project_tokenize", "shared no_residual mask pixel_bias extra_values token_bias"),
    ("project_tokenize", "many_tokens shared huge"),
)


def rows(architecture: str, op: str, options: str, dtype: str) -> list[dict[str, Any]]:
    """A row for each kernel of a call and its backward; spills are no faults at such sizes."""
    gpu = GPUS[architecture]
    with standing_in(gpu.traits):
        recorded = launches(forward_and_backward(op, options.split(), DTYPES[dtype]), unless_miscompiled(gpu))
    different = {pickle.dumps(launch.request): launch for launch in recorded}
    found = []
    for launch in different.values():
        kernel = compiled(launch, gpu)
        found.append(
            {
                "gpu": architecture,
                "op": op,
                "options": options,
                "dtype": dtype,
                "kernel": launch.kernel,
                "setting": launch.setting,
                "programs": launch.programs,
                **kernel._asdict(),
                "fault": kernel._replace(spills=0).fault(gpu),
            }
        )
    return found


def label(row: dict[str, Any]) -> str:
    """What a row is of."""
    call = " ".join(row[name] for name in ("op", "gpu", "dtype", "options"))
    return f"{call}: {row['kernel']} [{row['setting']}]"


def forward_and_backward(op: str, options: list[str], dtype: torch.dtype) -> Callable[[], Any]:
    """A call and its backward on tensors without data, with all gradients."""
    batch, pixels, channels, tokens = 3, 197, 80, 40 if "many_tokens" in options else 7
    if "huge" in options:
        pixels = 2**31 // channels + 1
    bags, all_pixels = batch, batch * pixels
    num_heads = 2 if "num_heads" in options else 1
    out_channels = 2 * channels if "wide" in options else channels

    def draw(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    def feature_map(width: int) -> Tensor:
        if "bags" in options:
            return draw(all_pixels, width)
        if "strided" in options:
            return draw(batch, pixels, 3, 2 * width)[:, :, 1, ::2]
        return draw(batch, pixels, width)

    def small(*sizes: int) -> Tensor:
        return draw(*sizes) if "shared" in options else draw(batch, *sizes)

    def optional(name: str, value: Tensor) -> Tensor | None:
        return value if name in options else None

    def needs(*values: Tensor | None) -> list[bool]:
        return [value is not None for value in values]

    rows = num_heads * tokens
    x = feature_map(channels)
    one_each = (all_pixels,) if "bags" in options else (batch, pixels)
    mask = optional("mask", draw(*one_each).bool())
    pixel_bias = optional("pixel_bias", draw(*one_each))
    offsets = optional("bags", torch.empty(bags + 1, dtype=torch.int64, device="meta"))
    scores = optional("scores", draw(*one_each[:-1], rows, one_each[-1]))
    extra_values = optional("extra_values", draw(pixels, 5))
    token_bias = optional("token_bias", small(rows))
    all_keys = small(rows, channels // num_heads if "block_keys" in options else channels)
    values = small(rows if "summed" in options else tokens, out_channels)
    queries = small(tokens, out_channels)
    normalize = next((name for name in ("tokens", "exp") if name in options), None)
    usual = normalize is None and "linear" not in options
    residual = optional("residual", feature_map(out_channels))
    from_input = residual is None and "no_residual" not in options
    full_rows = "full_rows" in options
    second_map = optional("second_map", feature_map(out_channels))
    width = out_channels + (0 if extra_values is None else 5)
    grad_tokens = draw(batch, rows if full_rows else tokens, width)
    grad_lse = draw(batch, rows).float()

    def tokenize() -> None:
        queries = (
            None if "alone" in options else small(rows, channels if full_rows else channels // num_heads)
        )
        family: dict[str, Any] = {
            "values": second_map,
            "scores": scores,
            "token_bias": token_bias,
            "offsets": offsets,
            "layer_norm_eps": 1e-5 if "layer_norm" in options else None,
            "normalize": "pixels" if usual else normalize,
        }
        call = contract.Tokenize(x, queries, mask, pixel_bias, extra_values, num_heads, True, **family)
        tokens, stats = backend.tokenize(call)
        needed = needs(x, queries, pixel_bias, extra_values, second_map, scores, token_bias)
        backend.tokenize_backward(
            contract.TokenizeBackward(
                grad_tokens, grad_lse, *call[:5], tokens, stats, num_heads, needed, **family
            )
        )

    def project() -> None:
        keys = None if "alone" in options else all_keys
        family: dict[str, Any] = {
            "scores": scores,
            "offsets": offsets,
            "normalize": "tokens" if usual else normalize,
        }
        call = contract.Project(x, keys, values, token_bias, residual, from_input, num_heads, **family)
        y = backend.project(call)
        needed = needs(x, keys, values, token_bias, scores)
        backend.project_backward(
            contract.ProjectBackward(y, *call[:4], from_input, num_heads, needed, **family)
        )

    def project_tokenize() -> None:
        call = contract.ProjectTokenize(
            x, all_keys, values, queries, token_bias, residual, mask, pixel_bias, extra_values,
            from_input, num_heads, "no_map" not in options, True
        )  # fmt: skip
        y, tokens, lse = backend.project_tokenize(call)
        needed = needs(x, all_keys, values, queries, token_bias, residual, pixel_bias, extra_values)
        backend.project_tokenize_backward(
            contract.ProjectTokenizeBackward(
                y, grad_tokens, grad_lse[:, : tokens.shape[1]], *call[:9], tokens, lse,
                from_input, num_heads, needed
            )
        )  # fmt: skip

    return {"tokenize": tokenize, "project": project, "project_tokenize": project_tokenize}[op]
