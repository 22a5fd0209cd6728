"""Sample calls of each op and its backward, to inspect, compile or time the kernels that they launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vt_fast.backends import contract, triton

Shape = tuple[int, int, int, int]  # (B, N, C, L)

# The main kernel of each op.
KERNELS = {
    "tokenize": "tokenize_forward",
    "tokenize_backward": "tokenize_backward",
    "project": "project_forward",
    "project_backward": "project_backward",
    "project_tokenize": "project_tokenize_forward",
    "project_tokenize_backward": "project_tokenize_backward",
}
LAYOUTS = ("channels", "pixels")  # which dimension has stride 1


def sample(
    op: str, dtype: torch.dtype, layout: str, shape: Shape, device: str, calls: Any = triton
) -> Callable[[], Any]:
    """A call on normal random numbers: shared queries, and keys and values for each sample.

    ``calls``: the backend's functions.
    """
    batch, pixels, channels, tokens = shape
    generator = torch.Generator(device).manual_seed(0) if device != "meta" else None

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=dtype, device=device, generator=generator)

    def feature_map() -> Tensor:
        return draw(batch, channels, pixels, 1) if layout == "pixels" else draw(batch, pixels, channels)

    x = feature_map()
    queries, keys = draw(tokens, channels) * channels**-0.5, draw(batch, tokens, channels) * channels**-0.5
    values = draw(batch, tokens, channels)
    if op == "tokenize":
        first = contract.Tokenize(x, queries, None, None, None, 1, False)
        return lambda: calls.tokenize(first)
    if op == "project":
        second = contract.Project(x, keys, values, None, None, True, 1)
        return lambda: calls.project(second)
    if op == "project_tokenize":
        both = contract.ProjectTokenize(
            x, keys, values, keys, None, None, None, None, None, True, 1, True, False
        )
        return lambda: calls.project_tokenize(both)
    needs = [True, True, False, False]
    if op == "tokenize_backward":
        pooled, lse = calls.tokenize(contract.Tokenize(x, queries, None, None, None, 1, True))
        back = contract.TokenizeBackward(
            values, None, x, queries, None, None, None, pooled, lse, 1, needs
        )  # fmt: skip
        return lambda: calls.tokenize_backward(back)
    grad = feature_map()
    if op == "project_backward":
        needs = [True, True, True, False]
        spread = contract.ProjectBackward(grad, x, keys, values, None, True, 1, needs)
        return lambda: calls.project_backward(spread)
    if op != "project_tokenize_backward":
        raise ValueError(f"`op` must be one of {', '.join(KERNELS)}, got {op!r}")
    _, pooled, lse = calls.project_tokenize(
        contract.ProjectTokenize(x, keys, values, keys, None, None, None, None, None, True, 1, True, True)
    )
    needs = [True, True, True, True, False, False, False, False]
    last = contract.ProjectTokenizeBackward(
        grad, values, None, x, keys, values, keys, None, None, None, None, None, pooled, lse,
        True, 1, needs
    )  # fmt: skip
    return lambda: calls.project_tokenize_backward(last)
