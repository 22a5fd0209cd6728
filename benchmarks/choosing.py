"""Chooses launch settings without a GPU: of some candidates, the one that compiles without spills ...

... and takes the least time by the model. What ``python -m vt_fast tune`` measures is better.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm

from benchmarks.compiled import SHARED, examined
from benchmarks.model import DEVICES, WALKS, predicted
from benchmarks.offline_calls import recorded
from vt_fast.backends.triton import settings
from vt_fast.backends.triton.candidates import candidates
from vt_fast.backends.triton.device import Traits, standing_in
from vt_fast.backends.triton.samples import KERNELS, LAYOUTS, Shape
from vt_fast.backends.triton.settings import SCHEMA, TABLES, Problem, Setting

# Candidates that compile without a fault, of which the best will do, and multiples of the floor that do too.
_ENOUGH, _GOOD = 2, 1.3


@dataclass(frozen=True)
class Class:
    """What a table has one entry for, and the shape that stands for it."""

    op: str
    kind: str
    layout: str
    channels: int
    rows: int
    few: bool

    @property
    def shape(self) -> Shape:
        """With maps of about 100 MB."""
        pixels = 196 if self.few else 1 << 15
        samples = max(8, (1 << 26) // (self.channels * pixels)) if not self.few else 256
        return (samples, pixels, self.channels, self.rows)

    @property
    def problem(self) -> Problem:
        """By which settings are found."""
        kernel = KERNELS[self.op]
        return Problem(kernel, self.kind, self.layout, self.channels, self.rows, self.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Of the maps."""
        return torch.bfloat16 if self.kind == "16" else torch.float32


def classes(ops: Iterable[str]) -> Iterator[Class]:
    """All entries of a table. Float32 has fewer: it is bound by arithmetic from 16 tokens on."""
    for op, layout, few, channels, rows in itertools.product(
        ops, LAYOUTS, (True, False), (256, 1024, 2048), (16, 64)
    ):
        if channels < 2048 or rows == 16:
            yield Class(op, "16", layout, channels, rows, few)
    for op, layout, few, channels, kind in itertools.product(
        ops, LAYOUTS, (True, False), (256, 1024), ("ieee", "tf32")
    ):
        yield Class(op, kind, layout, channels, 16, few)


def choose(target: str, ops: Iterable[str] = tuple(KERNELS), kinds: Iterable[str] = ("16",)) -> Path:
    """Write the table of an architecture's settings, all processors at work; other entries stay."""
    path = TABLES / f"{target}.json"
    wanted = [each for each in classes(ops) if each.kind in set(kinds)]
    entries = settings.read(path, required=False)
    path.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for entry in tqdm(
            pool.map(_entry, wanted, itertools.repeat(target)), total=len(wanted), unit="class"
        ):
            if entry:
                entries = settings.merged(entries, [entry])
                path.write_text(_text(entries))
    return path


def _text(entries: list[dict[str, Any]]) -> str:
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    source = f"compiled with Triton {triton.__version__}, ranked by benchmarks/model.py; not measured"
    return f'{{"schema": {SCHEMA}, "source": "{source}", "entries": [\n{lines}\n]}}\n'


def _entry(each: Class, target: str) -> dict[str, Any] | None:
    best: tuple[float, Setting] | None = None
    floor, tried = 0.0, 0
    for setting in candidates(each.problem):
        if best is not None and (best[0] < _GOOD * floor or tried >= _ENOUGH):
            break
        if settings.shared_bytes(each.problem, replace(setting, stages=1)) > SHARED[target]:
            continue
        found = _tried(each, setting, target)
        if found is not None:
            seconds, floor, shared = found
            tried += 1
            if best is None or seconds < best[0]:
                best = seconds, replace(setting, shared=shared)
    if best is None:
        return None
    return {
        "kernel": KERNELS[each.op], "kind": each.kind, "layout": each.layout, "few": each.few,
        "channels": each.channels, "rows": each.rows, "setting": asdict(best[1]),
        "model_us": round(best[0] * 1e6, 1), "floor_us": round(floor * 1e6, 1),
    }  # fmt: skip


def _tried(each: Class, setting: Setting, target: str) -> tuple[float, float, int] | None:
    """Seconds by the model, the least that they could be, and shared memory; None where it will not do."""
    device = DEVICES[target]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = each.kind == "tf32"
    try:
        with standing_in(Traits(target, device.processors, 1 << 30)), settings.using(setting):
            found = recorded(each.op, each.dtype, each.layout, each.shape)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    launch = next(launch for launch in found if launch.kernel in WALKS)
    compiled = examined(launch, target)
    if compiled.fault(target) is not None:
        return None
    walk = WALKS[launch.kernel]
    batch, pixels, channels, _ = each.shape
    floor = (walk.reads + walk.writes) * batch * pixels * channels * each.dtype.itemsize / device.memory
    return predicted(device, launch, compiled, each.shape, each.kind).seconds, floor, compiled.shared or 0
