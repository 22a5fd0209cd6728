"""Chooses launch settings without a GPU: of some candidates, the one that compiles without spills ...

... and takes the least time by the model. What ``python -m vt_fast tune`` measures is better.

Compilers differ in what they spill. With the same file of trials under one Triton after the other, again
until nothing is compiled any more, the settings are those that none of them spills.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm

from benchmarks.compiled import SHARED, examined
from benchmarks.model import DEVICES, WALKS, predicted
from benchmarks.offline_calls import recorded
from benchmarks.trials import Class, Trials, Tried, load, save, worst
from vt_fast.backends.triton import settings
from vt_fast.backends.triton.project_tokenize_op import too_many_rows
from vt_fast.backends.triton.samples import KERNELS, LAYOUTS
from vt_fast.backends.triton.schedule import Traits, standing_in
from vt_fast.backends.triton.settings import FILES, SCHEMA, Setting, candidates

# Candidates that compile without a fault, of which the best will do, and multiples of the floor that do too.
_ENOUGH, _GOOD = 2, 1.3


def classes(ops: Iterable[str]) -> Iterator[Class]:
    """All entries of a table. Float32 has fewer: it is bound by arithmetic from 16 tokens on.

    What runs as two ops has the settings of these.
    """
    for op, layout, few, channels, rows in itertools.product(
        ops, LAYOUTS, (True, False), (256, 1024, 2048), (16, 64)
    ):
        apart = op.startswith("project_tokenize") and too_many_rows(rows)
        if (channels < 2048 or rows == 16) and not apart:
            yield Class(op, "16", layout, channels, rows, few)
    for op, layout, few, channels, kind in itertools.product(
        ops, LAYOUTS, (True, False), (256, 1024), ("ieee", "tf32")
    ):
        yield Class(op, kind, layout, channels, 16, few)


def choose(
    target: str,
    ops: Iterable[str] = tuple(KERNELS),
    kinds: Iterable[str] = ("16",),
    trials: Path | None = None,
) -> Path:
    """Write the table of an architecture's settings, all processors at work; other entries stay.

    ``trials``: a file of what other versions of Triton made of them, to which this one's are added.
    """
    path = FILES / f"{target}.json"
    path.parent.mkdir(exist_ok=True)
    known = {} if trials is None else load(trials, target)
    wanted = [each for each in classes(ops) if each.kind in set(kinds)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        found = pool.map(try_out, wanted, itertools.repeat(target), [known.get(each, {}) for each in wanted])
        for each, those in zip(wanted, tqdm(found, total=len(wanted), unit="class"), strict=True):
            known[each] = those
            if trials is not None:
                save(known, trials, target)
    versions = {
        version for those in known.values() for by_version in those.values() for version in by_version
    }
    new = [entry for each in wanted if (entry := _entry(each, known[each])) is not None]
    entries = settings.merged(settings.read(path, required=False), new)
    path.write_text(_text(entries, versions))
    return path


def try_out(each: Class, target: str, known: Trials) -> Trials:
    """Compile a class's candidates with this Triton until some are good with it and with all others."""
    found = {setting: dict(by_version) for setting, by_version in known.items()}
    good: list[Tried] = []
    for setting in candidates(each.problem):
        if len(good) >= _ENOUGH or any(one.seconds < _GOOD * one.floor for one in good):
            break
        if settings.shared_bytes(each.problem, replace(setting, stages=1)) > SHARED[target]:
            continue
        by_version = found.setdefault(setting, {})
        if any(one.fault for one in by_version.values()):
            continue
        if triton.__version__ not in by_version:
            by_version[triton.__version__] = _tried(each, setting, target)
        if by_version[triton.__version__].fault is None:
            good.append(worst(by_version.values()))
    return found


def _entry(each: Class, trials: Trials) -> dict[str, Any] | None:
    """A table's entry: the best setting of those that most versions have tried, and none has spilt."""
    good = {
        setting: by_version
        for setting, by_version in trials.items()
        if by_version and not any(one.fault for one in by_version.values())
    }
    if not good:
        return None
    setting = min(good, key=lambda setting: (-len(good[setting]), worst(good[setting].values()).seconds))
    slowest = worst(good[setting].values())
    return {
        "kernel": KERNELS[each.op], "kind": each.kind, "layout": each.layout, "few": each.few,
        "channels": each.channels, "rows": each.rows,
        "setting": asdict(replace(setting, shared=slowest.shared)),
        "model_us": round(slowest.seconds * 1e6, 1), "floor_us": round(slowest.floor * 1e6, 1),
    }  # fmt: skip


def _text(entries: list[dict[str, Any]], versions: Iterable[str]) -> str:
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    compilers = " and ".join(sorted(versions))
    source = f"compiled with Triton {compilers}, ranked by benchmarks/model.py; not measured"
    return f'{{"schema": {SCHEMA}, "source": "{source}", "entries": [\n{lines}\n]}}\n'


def _tried(each: Class, setting: Setting, target: str) -> Tried:
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
    if (fault := compiled.fault(target)) is not None:
        return Tried(fault=fault)
    walk = WALKS[launch.kernel]
    batch, pixels, channels, _ = each.shape
    floor = (walk.reads + walk.writes) * batch * pixels * channels * each.dtype.itemsize / device.memory
    seconds = predicted(device, launch, compiled, each.shape, each.kind).seconds
    return Tried(seconds, floor, compiled.shared or 0)
