"""Times launch settings of the CUDA kernels for a class of calls."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vt_fast.backends.cuda import library, settings
from vt_fast.backends.cuda.settings import Setting


class Calls:
    """The backend's own ops, as a module of functions like that of a backend in Python."""

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        own = getattr(torch.ops.vt_fast, f"{name}_cuda").default

        def call(record: Any) -> Any:
            results = own(*record)
            if name == "tokenize":  # as a backend returns them: unrounded tokens where they were kept
                tokens, exact, lse = results
                return (exact if exact.numel() else tokens), lse
            if name == "project_tokenize":
                y, tokens, exact, lse = results
                return y, (exact if exact.numel() else tokens), lse
            return results

        return call


def candidates(op: str, dtype: str, layout: str, shape: tuple[int, int, int, int]) -> list[Setting]:
    """What is worth trying for calls on maps of a shape (B, N, C, L), the rules' own choice first."""
    _, pixels, channels, tokens = shape
    of_pixels = "shifted" if dtype == "fp32" or pixels % 4 else "halves" if pixels % 8 else "first"
    place = "last" if layout == "channels" else of_pixels
    rows = next(each for each in settings.ROWS if each >= tokens)
    found = [Setting(op, dtype, place, rows, channels)]
    for mt, ranks, stages in itertools.product(settings.MT, settings.RANKS, settings.STAGES):
        warps = -(-channels // (16 * mt * ranks))
        if warps <= 16 and (ranks == 1 or warps * ranks * mt * 16 < 2 * channels + 16 * mt * ranks):
            found.append(Setting(op, dtype, place, rows, channels, "cuda", mt, ranks, stages))
    return found


def tune(
    todo: list[Setting],
    call: Callable[[], Any],
    clock: Callable[[Callable[[], Any]], list[float]],
    wrong: float,
) -> tuple[Setting, float, float]:
    """The fastest setting, its seconds, and those of the first one.

    Settings that do not fit are those of the rules again, so they cost time and do no harm.

    Raises:
        RuntimeError: a setting's results differ by more than ``wrong`` from the first one's.
    """
    handle = library.handle()
    times: list[float] = []
    with settings.using(handle, todo[0]):
        expected = _tensors(call())
        times.append(statistics.median(clock(call)))
    for setting in todo[1:]:
        with settings.using(handle, setting):
            for value, other in zip(_tensors(call()), expected, strict=True):
                distance = (value.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30)
                if not distance <= wrong:
                    raise RuntimeError(f"{setting}: its results are off by {distance:.2g}")
            times.append(statistics.median(clock(call)))
    best = min(range(len(todo)), key=times.__getitem__)
    return todo[best], times[best], times[0]


def _tensors(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [value for value in results if isinstance(value, Tensor)]
