"""Launch settings chosen without a GPU: of some candidates, the fastest by the model that does not spill.

``python -m vt_fast tune`` chooses by measuring, which is better.

What one version of Triton keeps in registers another one spills. With one file of trials, used under each
version in turn until none compiles anything new, the chosen settings spill in none of them.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
import triton

from tools.triton import offline
from tools.triton.calls import UNIT_STRIDES, Call
from tools.triton.compiled import compiled
from tools.triton.gpus import GPUS
from tools.triton.model import predict
from vt_fast.backends.triton import settings
from vt_fast.backends.triton.project_tokenize_op import too_many_rows
from vt_fast.backends.triton.samples import KERNELS, LAYOUTS
from vt_fast.backends.triton.schedule import standing_in
from vt_fast.backends.triton.settings import FILES, SCHEMA, Problem, Setting, candidates

# Enough candidates without a fault, and a multiple of the floor that is good enough for one.
_ENOUGH, _GOOD = 2, 1.3


@dataclass(frozen=True)
class Class:
    """What a table has one entry for."""

    op: str
    kind: str
    layout: str
    few: bool
    channels: int
    rows: int

    @property
    def call(self) -> Call:
        """A call that stands for the class, with maps of about 100 MB."""
        pixels = 196 if self.few else 1 << 15
        samples = 256 if self.few else max(8, (1 << 26) // (self.channels * pixels))
        layout = next(name for name, word in UNIT_STRIDES.items() if word == self.layout)
        dtype = "bf16" if self.kind == "16" else "fp32"
        return Call(self.op, dtype, layout, (samples, pixels, self.channels, self.rows))

    @property
    def problem(self) -> Problem:
        """By which settings are found."""
        pixels = self.call.shape[1]
        return Problem(KERNELS[self.op], self.kind, self.layout, self.channels, self.rows, pixels)


class Trial(msgspec.Struct, frozen=True):
    """A setting compiled for a class by a version of Triton: predicted seconds and the floor, or a fault."""

    entry: Class
    setting: Setting
    triton: str
    seconds: float = 0.0
    floor: float = 0.0
    shared: int = 0
    fault: str | None = None


class Trials(msgspec.Struct):
    """A file of trials."""

    architecture: str
    trials: list[Trial]


def classes(ops: Iterable[str], kinds: Iterable[str]) -> Iterator[Class]:
    """All entries of a table. Float32 has fewer: it is bound by arithmetic from 16 tokens on."""
    for op, kind, layout, few in itertools.product(ops, kinds, LAYOUTS, (True, False)):
        if kind != "16":
            yield from (Class(op, kind, layout, few, channels, 16) for channels in (256, 1024))
            continue
        for channels, rows in itertools.product((256, 1024, 2048), (16, 64)):
            # With too many rows it runs as two ops, which have settings of their own.
            apart = op.startswith("project_tokenize") and too_many_rows(rows)
            if (channels < 2048 or rows == 16) and not apart:
                yield Class(op, kind, layout, few, channels, rows)


def choose(architecture: str, ops: Iterable[str], kinds: Iterable[str], trials_file: Path | None) -> Path:
    """Replace entries of an architecture's table; return its path.

    Raises:
        ValueError: the file of trials is for another architecture.
    """
    known = defaultdict(list)
    for trial in [] if trials_file is None else load(trials_file, architecture):
        known[trial.entry].append(trial)
    wanted = list(classes(ops, kinds))
    with offline.processes() as pool:
        found = pool.map(tried, wanted, itertools.repeat(architecture), [known[each] for each in wanted])
        for each, trials in zip(wanted, offline.progress(found, len(wanted), "class"), strict=True):
            known[each] = trials
            if trials_file is not None:
                everything = Trials(architecture, list(itertools.chain.from_iterable(known.values())))
                trials_file.write_bytes(msgspec.json.encode(everything))
    versions = {trial.triton for trials in known.values() for trial in trials}
    entries = [entry for each in wanted if (entry := best(known[each])) is not None]
    path = FILES / f"{architecture}.json"
    path.parent.mkdir(exist_ok=True)
    entries = settings.merged(settings.read(path, required=False), entries)
    lines = ",\n".join(map(json.dumps, entries))
    compilers = " and ".join(sorted(versions))
    source = f"compiled with Triton {compilers}, ranked by tools/triton/model.py; not measured"
    path.write_text(f'{{"schema": {SCHEMA}, "source": "{source}", "entries": [\n{lines}\n]}}\n')
    return path


def load(path: Path, architecture: str) -> list[Trial]:
    """The trials in a file, none if it does not exist.

    Raises:
        ValueError: they are for another architecture.
    """
    if not path.exists():
        return []
    found = msgspec.json.decode(path.read_bytes(), type=Trials)
    if found.architecture != architecture:
        raise ValueError(f"{path} must be of trials for {architecture}, got {found.architecture}")
    return found.trials


def tried(each: Class, architecture: str, trials: list[Trial]) -> list[Trial]:
    """The trials and new ones, until enough settings are good in this version of Triton and all others."""
    trials = list(trials)
    good: list[Trial] = []
    for setting in candidates(each.problem):
        if len(good) >= _ENOUGH or any(trial.seconds < _GOOD * trial.floor for trial in good):
            break
        least = settings.shared_bytes(each.problem, replace(setting, stages=1))
        same = [trial for trial in trials if trial.setting == setting]
        if least > GPUS[architecture].program_shared_bytes or any(trial.fault for trial in same):
            continue
        if triton.__version__ not in {trial.triton for trial in same}:
            same.append(attempt(each, setting, architecture))
            trials.append(same[-1])
        if same[-1].fault is None:
            good.append(worst(same))
    return trials


def attempt(each: Class, setting: Setting, architecture: str) -> Trial:
    """Compile a setting with this version of Triton."""
    gpu = GPUS[architecture]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = each.kind == "tf32"
    try:
        # No setting may be passed over for its estimate of shared memory.
        with standing_in(gpu.traits._replace(shared_bytes=1 << 30)), settings.using(setting):
            launch = each.call.main_launch()
        kernel = compiled(launch, gpu)
        if (fault := kernel.fault(gpu)) is not None:
            return Trial(each, setting, triton.__version__, fault=fault)
        times = predict(gpu, launch, kernel, each.call)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return Trial(each, setting, triton.__version__, times.total, times.floor, kernel.shared or 0)


def worst(trials: Sequence[Trial]) -> Trial:
    """The slowest one, with the most shared memory of any."""
    slowest = max(trials, key=lambda trial: trial.seconds)
    return msgspec.structs.replace(slowest, shared=max(trial.shared for trial in trials))


def best(trials: Iterable[Trial]) -> dict[str, Any] | None:
    """A class's entry: of the settings without a fault that most versions have tried, the fastest."""
    by_setting = defaultdict(list)
    for trial in trials:
        by_setting[trial.setting].append(trial)
    good = [same for same in by_setting.values() if not any(trial.fault for trial in same)]
    if not good:
        return None
    chosen = worst(min(good, key=lambda same: (-len(same), worst(same).seconds)))
    entry = asdict(chosen.entry)
    return {
        "kernel": KERNELS[entry.pop("op")],
        **entry,
        "setting": asdict(replace(chosen.setting, shared=chosen.shared)),
        "model_us": round(chosen.seconds * 1e6, 1),
        "floor_us": round(chosen.floor * 1e6, 1),
    }
