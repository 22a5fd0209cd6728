"""Calls with options, sizes and strides that the table's calls lack: whether all their kernels compile."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.compiled import SHARED, Launch, examined
from benchmarks.model import DEVICES
from benchmarks.offline_calls import recorded_of
from vt_fast.backends import triton as calls
from vt_fast.backends.contract import (
    Project,
    ProjectBackward,
    ProjectTokenize,
    ProjectTokenizeBackward,
    Tokenize,
    TokenizeBackward,
)
from vt_fast.backends.triton.schedule import Traits, standing_in

# Options that change what kernels do, so that each stands beside others and beside none.
COVER: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (op, frozenset(options.split()))
    for op, options in (
        ("tokenize", "shared mask pixel_bias extra_values"),
        ("tokenize", "num_heads mask strided"),
        ("tokenize", "num_heads shared huge"),
        ("project", "shared token_bias num_heads"),
        ("project", "no_residual token_bias strided"),
        ("project", "residual wide num_heads huge"),
        ("project_tokenize", "num_heads token_bias pixel_bias"),
        ("project_tokenize", "no_map mask residual wide strided"),
        ("project_tokenize", "shared no_residual mask pixel_bias extra_values token_bias"),
        ("project_tokenize", "many_tokens shared huge"),
    )
)


class Options(NamedTuple):
    """A call with options, to be compiled for a target."""

    op: str
    options: frozenset[str]
    dtype: torch.dtype
    target: str

    @property
    def label(self) -> str:
        """For people."""
        name = str(self.dtype).removeprefix("torch.")
        return " ".join([self.op, self.target, name, *sorted(self.options)])


def faults(job: Options) -> list[str]:
    """What is wrong with the kernels of the call and of its backward: errors and too much shared memory."""
    found = []
    with standing_in(Traits(job.target, DEVICES[job.target].processors, SHARED[job.target])):
        launches = list(_launches(job))
    for launch in launches:
        compiled = examined(launch, job.target)
        compiled.spills = 0  # Shapes like these may be slow; the table tells of the others.
        if (fault := compiled.fault(job.target)) is not None:
            found.append(f"{job.label}: {launch.kernel} [{launch.setting}]: {fault}")
    return found


def _launches(job: Options) -> Iterator[Launch]:
    """All that differ."""
    seen = set()
    for launch in recorded_of(job.label, _both(job.op, job.options, job.dtype)):
        key = pickle.dumps(launch.request)
        if key not in seen:
            seen.add(key)
            yield launch


def _both(op: str, options: frozenset[str], dtype: torch.dtype) -> Callable[[], Any]:
    """A call and its backward on tensors without data, all gradients wanted."""
    batch, pixels, channels, tokens = 3, 197, 80, 7
    if "huge" in options:
        pixels = 2**31 // channels + 1
    if "many_tokens" in options:
        tokens = 40
    num_heads = 2 if "num_heads" in options else 1
    out_channels = 2 * channels if "wide" in options else channels

    def draw(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    def feature_map(width: int) -> Tensor:
        if "strided" in options:
            return draw(batch, pixels, 3, 2 * width)[:, :, 1, ::2]
        return draw(batch, pixels, width)

    def rows(count: int, width: int) -> Tensor:
        return draw(count, width) if "shared" in options else draw(batch, count, width)

    def given(name: str, *sizes: int) -> Tensor | None:
        return draw(*sizes) if name in options else None

    x = feature_map(channels)
    mask = torch.empty(batch, pixels, dtype=torch.bool, device="meta") if "mask" in options else None
    pixel_bias, extra_values = given("pixel_bias", batch, pixels), given("extra_values", pixels, 5)
    token_bias = None if "token_bias" not in options else rows(1, num_heads * tokens).squeeze(-2)
    queries = (
        rows(tokens, out_channels) if op != "tokenize" else rows(num_heads * tokens, channels // num_heads)
    )
    keys, values = rows(num_heads * tokens, channels), rows(tokens, out_channels)
    residual = feature_map(out_channels) if "residual" in options else None
    from_input = residual is None and "no_residual" not in options
    width = out_channels + (0 if extra_values is None else extra_values.shape[1])
    grad_tokens, grad_lse = draw(batch, tokens, width), draw(batch, num_heads * tokens).float()
    weighted, placed, biased = pixel_bias is not None, extra_values is not None, token_bias is not None

    def run() -> None:
        if op == "tokenize":
            pooled, lse = calls.tokenize(
                Tokenize(x, queries, mask, pixel_bias, extra_values, num_heads, True)
            )
            needs = [True, True, weighted, placed]
            calls.tokenize_backward(
                TokenizeBackward(
                    grad_tokens, grad_lse, x, queries, mask, pixel_bias, extra_values, pooled, lse, num_heads,
                    needs
                )
            )  # fmt: skip
        elif op == "project":
            y = calls.project(Project(x, keys, values, token_bias, residual, from_input, num_heads))
            needs = [True, True, True, biased]
            calls.project_backward(
                ProjectBackward(y, x, keys, values, token_bias, from_input, num_heads, needs)
            )
        else:
            shown, pooled, lse = calls.project_tokenize(
                ProjectTokenize(
                    x, keys, values, queries, token_bias, residual, mask, pixel_bias, extra_values,
                    from_input, num_heads, "no_map" not in options, True
                )
            )  # fmt: skip
            needs = [True, True, True, True, biased, residual is not None, weighted, placed]
            calls.project_tokenize_backward(
                ProjectTokenizeBackward(
                    shown, grad_tokens, grad_lse[:, :tokens], x, keys, values, queries, token_bias, residual,
                    mask, pixel_bias, extra_values, pooled, lse, from_input, num_heads, needs
                )
            )  # fmt: skip

    return run
