"""Calls of the Triton backend on tensors without data, as on a GPU that is not there."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.compiled import Launch
from vt_fast.backends.contract import (
    Project,
    ProjectBackward,
    ProjectTokenize,
    ProjectTokenizeBackward,
    Tokenize,
    TokenizeBackward,
)
from vt_fast.backends.triton import calls, device
from vt_fast.backends.triton.launcher import observed

Shape = tuple[int, int, int, int]  # (B, N, C, L)

OPS = (
    "tokenize",
    "tokenize_backward",
    "project",
    "project_backward",
    "project_tokenize",
    "project_tokenize_backward",
)
LAYOUTS = ("channels_last", "nchw")


def record(op: str, dtype: torch.dtype, layout: str, shape: Shape) -> Callable[[], Any]:
    """An op's call, or its backward's, on meta tensors: shared queries, and keys and values of each sample."""
    batch, pixels, channels, tokens = shape

    def empty(*sizes: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(sizes, dtype=kind, device="meta")

    def feature_map() -> Tensor:
        if layout == "nchw":
            return empty(batch, channels, pixels, 1)
        return empty(batch, pixels, channels)

    x, queries, keys = feature_map(), empty(tokens, channels), empty(batch, tokens, channels)
    pooled = empty(batch, tokens, channels, kind=torch.float32)
    lse = empty(batch, tokens, kind=torch.float32)
    some = [True, True, True, False]
    records: dict[str, Callable[[], Any]] = {
        "tokenize": lambda: calls.tokenize(Tokenize(x, queries, None, None, None, 1, False, "triton")),
        "tokenize_backward": lambda: calls.tokenize_backward(
            TokenizeBackward(
                keys, None, x, queries, None, None, None, pooled, lse, 1, [True, True, False, False], "triton"
            )
        ),
        "project": lambda: calls.project(Project(x, keys, keys, None, None, True, 1, "triton")),
        "project_backward": lambda: calls.project_backward(
            ProjectBackward(feature_map(), x, keys, keys, None, True, 1, some, "triton")
        ),
        "project_tokenize": lambda: calls.project_tokenize(
            ProjectTokenize(
                x, keys, keys, keys, None, None, None, None, None, True, 1, True, False, "triton"
            )
        ),
        "project_tokenize_backward": lambda: calls.project_tokenize_backward(
            ProjectTokenizeBackward(
                feature_map(), keys, None, x, keys, keys, keys, None, None, None, None, None, pooled, lse,
                True, 1, [True, True, True, True, False, False, False, False], "triton",
            )
        ),
    }  # fmt: skip
    return records[op]


def recorded(op: str, dtype: torch.dtype, layout: str, shape: Shape) -> list[Launch]:
    """The kernels that a call would launch."""
    found: list[Launch] = []

    def observe(
        kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        found.append(Launch.of(op, kernel, grid, arguments, constants))

    with observed(observe):
        record(op, dtype, layout, shape)()
    return found


def launches(
    ops: Iterable[str], shapes: Iterable[Shape], dtypes: Iterable[torch.dtype]
) -> Iterator[tuple[Launch, Shape, torch.dtype, str]]:
    """Every kernel of every op's call."""
    for op, dtype, layout, shape in itertools.product(ops, dtypes, LAYOUTS, shapes):
        for launch in recorded(op, dtype, layout, shape):
            yield launch, shape, dtype, layout


@contextlib.contextmanager
def pretending(architecture: str, processors: int, shared: int) -> Iterator[None]:
    """As if tensors without data were on such a GPU."""
    before = device.architecture, device.processors, device.shared_bytes
    device.architecture = lambda _: architecture  # type: ignore[assignment]
    device.processors = lambda _: processors  # type: ignore[assignment]
    device.shared_bytes = lambda _: shared  # type: ignore[assignment]
    try:
        yield
    finally:
        device.architecture, device.processors, device.shared_bytes = before
