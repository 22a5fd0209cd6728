"""``python -m vt_fast tune``: times launch settings of the kernels on this GPU and writes the best."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vt_fast.backends.triton.ahead import Request
    from vt_fast.backends.triton.settings import Problem, Setting

__all__ = ["Case", "cases", "main", "tune"]

# Seconds of each of a function's calls.
Clock = Callable[[Callable[[], Any]], list[float]]

SHAPES = (
    (256, 196, 256, 16),
    (256, 196, 1024, 16),
    (256, 49, 2048, 16),
    (8, 60800, 256, 8),
    (32, 3136, 512, 16),
    (64, 784, 1024, 16),
    (64, 196, 1024, 64),
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# A setting whose results are further than this (relative) from those of the current setting is wrong. Another
# order of summation changes them far less.
_WRONG = 0.02
_FLUSH_BYTES = 1 << 28
_ROUNDS = 15


@dataclass(frozen=True)
class Case:
    """An op or its backward on maps of a shape (B, N, C, L)."""

    op: str
    dtype: str
    layout: str
    shape: tuple[int, int, int, int]

    def __str__(self) -> str:
        return f"{self.op} {self.dtype} {self.layout} {'x'.join(map(str, self.shape))}"


def cases(
    ops: Iterable[str] | None = None,
    dtypes: Iterable[str] = ("bf16",),
    layouts: Iterable[str] | None = None,
    shapes: Iterable[tuple[int, int, int, int]] = SHAPES,
) -> list[Case]:
    """All cases, shape by shape.

    Raises:
        ValueError: an unknown op, dtype or layout.
    """
    from vt_fast.backends.triton import samples

    wanted = {"ops": list(ops or samples.KERNELS), "dtypes": list(dtypes)}
    wanted["layouts"] = list(layouts or samples.LAYOUTS)
    known = {"ops": list(samples.KERNELS), "dtypes": list(DTYPES), "layouts": list(samples.LAYOUTS)}
    for name, values in wanted.items():
        for value in values:
            if value not in known[name]:
                raise ValueError(f"`{name}` must be of {', '.join(known[name])}, got {value!r}")
    return [
        Case(op, dtype, layout, shape)
        for shape in shapes
        for op in wanted["ops"]
        for dtype in wanted["dtypes"]
        for layout in wanted["layouts"]
    ]


def tune(case: Case, clock: Clock, device: str = "cuda") -> dict[str, Any]:
    """The settings entry for a case's class: the fastest setting that computes the right results.

    ``tried`` has the seconds of each setting, or why it was left out.

    Raises:
        RuntimeError: no setting could be timed.
    """
    from vt_fast.backends.triton import samples, settings

    call = samples.sample(case.op, DTYPES[case.dtype], case.layout, case.shape, device)
    problem, todo = _todo(case, torch.device(device, 0))
    expected = [value.double() for value in _tensors(call())]
    tried: list[dict[str, Any]] = []
    best: tuple[float, Setting] | None = None
    for setting in todo:
        note: dict[str, Any] = {"setting": asdict(setting)}
        tried.append(note)
        try:
            with settings.using(setting):
                distance = _distance(_tensors(call()), expected)
                if not distance <= _WRONG:
                    note["left_out"] = f"its results are off by {distance:.2g}"
                    continue
                note["seconds"] = clock(call)
        except Exception as error:  # compilers and drivers raise anything
            note["left_out"] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        median = statistics.median(note["seconds"])
        if best is None or median < best[0]:
            best = median, setting
    if best is None:
        raise RuntimeError(f"no setting of {case} could be timed: {tried[0]['left_out']}")
    return {
        "kernel": problem.kernel, "kind": problem.kind, "layout": case.layout,
        "few": problem.pixels <= settings.FEW, "channels": problem.channels, "rows": problem.rows,
        "setting": asdict(best[1]),
        "measured_us": round(best[0] * 1e6, 2), "shape": list(case.shape), "tried": tried,
    }  # fmt: skip


def _todo(case: Case, device: torch.device) -> tuple[Problem, list[Setting]]:
    """A case's class, and the settings to try, starting with the one that a call on the device uses now."""
    from vt_fast.backends.triton import samples, settings
    from vt_fast.backends.triton.schedule import traits

    _, pixels, channels, tokens = case.shape
    problem = settings.Problem(
        samples.KERNELS[case.op],
        settings.kind(DTYPES[case.dtype]),
        case.layout,
        channels,
        settings.power_of_two(tokens, 16),
        pixels,
    )
    now = [replace(each, shared=0) for each in settings.choices(problem, traits(device).architecture)[:1]]
    return problem, list(dict.fromkeys([*now, *settings.candidates(problem)]))


def requests(case: Case, device: torch.device) -> list[Request]:
    """All kernels that tuning a case on a device launches. Does not use the device."""
    from vt_fast.backends.triton import ahead, samples, settings
    from vt_fast.backends.triton.schedule import observed, standing_in, traits

    def sample() -> Callable[[], Any]:
        return samples.sample(case.op, DTYPES[case.dtype], case.layout, case.shape, "meta")

    found: list[Request] = []
    # Settings that do not fit on the device need no compiling.
    unfit = contextlib.suppress(RuntimeError)
    with standing_in(traits(device)), unfit:
        found += ahead.requests(lambda: sample()())
        with observed(lambda *_: None):
            call = sample()
        for setting in _todo(case, device)[1]:
            with settings.using(setting), unfit:
                found += ahead.requests(call)
    return found


def captured(function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a call, and the results that a replay fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    gc.collect()  # what it frees must not be freed during a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def cuda_clock(function: Callable[[], Any]) -> list[float]:
    """Device time of calls in seconds, each as a CUDA graph with a cold cache."""
    graph, _ = captured(function)
    flush = torch.zeros(_FLUSH_BYTES // 4, device="cuda")
    seconds = []
    for _ in range(_ROUNDS):
        flush.sum()  # reads, so that no dirty lines are written back during the replay
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) * 1e-3)
    return seconds


def _tensors(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [value for value in results if isinstance(value, Tensor)]


def _distance(values: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative distance, by the norm of each."""
    distances: list[float] = [
        ((value.double() - other).norm() / other.norm().clamp_min(1e-30)).item()
        for value, other in zip(values, expected, strict=True)
    ]
    return max(distances)


def main(todo: list[Case], output: Path, minutes: float | None = None, jobs: int | None = None) -> int:
    """Tune case by case, saving after each. 0, or 2 without a GPU.

    Args:
        todo: the cases, in this order.
        output: the file to write; its entries for other classes stay.
        minutes: start no further case after this time.
        jobs: processes that compile ahead of timing; by default one per CPU, less one.
    """
    from vt_fast.backends import triton

    reason = triton.unavailable()
    if reason is None and not torch.cuda.is_available():
        reason = "Triton's interpreter is not worth timing"
    if reason is not None:
        print(f"error: nothing can be tuned here: {reason}")
        return 2
    from vt_fast.backends.triton import ahead, settings

    start = time.monotonic()
    entries = settings.read(output, required=False)
    device = torch.device("cuda", torch.cuda.current_device())
    with ahead.Ahead(ahead.current_target(), jobs or ahead.processes()) as compilers:
        begun = [compilers.compile(requests(case, device)) for case in todo]
        for count, (case, compiling) in enumerate(zip(todo, begun, strict=True), 1):
            if minutes is not None and time.monotonic() - start > 60 * minutes:
                print(f"stopped after {minutes:g} minutes, {len(todo) - count + 1} cases before the end")
                break
            ahead.finished(compiling)
            try:
                entry = tune(case, cuda_clock)
            except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                print(f"[{count}/{len(todo)}] {case}: left out: {str(error)[:200]}", flush=True)
                continue
            entries = settings.merged(entries, [entry])
            _save(entries, output)
            print(f"[{count}/{len(todo)}] {case}: {' '.join(_summary(entry))}", flush=True)
    print(f"written to {output}; to use it: export {settings.VARIABLE}={output.resolve()}")
    return 0


def main_cuda(todo: list[Case], output: Path, minutes: float | None = None) -> int:
    """:func:`main` for the CUDA kernels, which are compiled already."""
    from vt_fast.backends import cuda
    from vt_fast.backends.cuda import settings, tuning
    from vt_fast.backends.triton import samples

    reason = cuda.unavailable()
    if reason is not None:
        print(f"error: nothing can be tuned here: {reason}")
        return 2
    start = time.monotonic()
    found = settings.read(output, required=False)
    source = f"measured on {torch.cuda.get_device_properties(0).name} with torch {torch.__version__}"
    for count, case in enumerate(todo, 1):
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            print(f"stopped after {minutes:g} minutes, {len(todo) - count + 1} cases before the end")
            break
        try:
            call = samples.sample(
                case.op, DTYPES[case.dtype], case.layout, case.shape, "cuda", tuning.Calls()
            )
            tried = tuning.candidates(case.op, case.dtype, case.layout, case.shape)
            best, seconds, before = tuning.tune(tried, call, cuda_clock, _WRONG)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            print(f"[{count}/{len(todo)}] {case}: left out: {str(error)[:200]}", flush=True)
            continue
        found = settings.merged(found, [best])
        settings.write(output, found, source)
        print(
            f"[{count}/{len(todo)}] {case}: {seconds * 1e6:.2f} us with mt={best.mt} ranks={best.ranks} "
            f"stages={best.stages} (before: {before * 1e6:.2f} us)",
            flush=True,
        )
    print(f"written to {output}; to use it: export {settings.VARIABLE}={output.resolve()}")
    return 0


def _summary(entry: dict[str, Any]) -> Iterator[str]:
    setting, first = entry["setting"], entry["tried"][0]
    yield f"{entry['measured_us']} us with " + " ".join(
        f"{name}={setting[name]}" for name in ("form", "tile", "chunk", "own", "warps", "stages")
    )
    if "seconds" in first:
        yield f"(before: {statistics.median(first['seconds']) * 1e6:.2f} us)"


def _save(entries: list[dict[str, Any]], output: Path) -> None:
    from vt_fast.backends.triton.settings import SCHEMA

    properties = torch.cuda.get_device_properties(0)
    data = {
        "schema": SCHEMA,
        "source": f"measured on {properties.name} with torch {torch.__version__}",
        "entries": entries,
    }
    draft = output.with_name(f"{output.name}.{os.getpid()}")
    draft.write_text(json.dumps(data, indent=1) + "\n")
    draft.replace(output)
