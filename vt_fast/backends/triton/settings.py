"""Which settings a kernel is launched with: from tables of data, best first, and what to do beyond them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from vt_fast.backends.triton import device as hardware
from vt_fast.backends.triton.arithmetic import power_of_two

SCHEMA = 1

# How a kernel goes through a tile's channels a second time.
KEEP = "keep"  # tiles stay on the chip
STREAM = "stream"  # they are read again; sums over tiles in registers
WHOLE = "whole"  # the same; sums go to memory with each tile, best if a program has one tile only

TABLES = Path(__file__).resolve().parents[2] / "kernels" / "settings"
# A file like those, whose entries come first: what ``python -m vt_fast tune`` has written.
VARIABLE = "VT_FAST_SETTINGS"


@dataclass(frozen=True)
class Setting:
    """Pixels of a tile, channels of a chunk, chunks of a program (0: all), form, and what Triton is told.

    ``shared``: bytes of shared memory that a program was found to need, 0 if nobody has looked.
    """

    tile: int
    chunk: int
    own: int
    form: str
    warps: int
    stages: int
    shared: int = 0


@dataclass(frozen=True)
class Problem:
    """What a setting is chosen by: the class of a launch.

    ``kind``: how products are taken ("16", "tf32" or "ieee"). ``layout``: which unit strides the maps have
    ("channels", "pixels" or "any"). ``channels``, ``rows``: numbers that a program's sums are made of, rows
    padded. ``pixels``: of a sample.
    """

    kernel: str
    kind: str
    layout: str
    channels: int
    rows: int
    pixels: int


# Pixels of a sample up to which one tile can hold them all.
FEW = 256


@functools.cache
def table(architecture: str, extra: str | None) -> dict[tuple[str, str, str, bool], list[dict[str, Any]]]:
    """A table's entries by kernel, kind, layout, and whether pixels are few; those of ``extra`` first."""
    found: dict[tuple[str, str, str, bool], list[dict[str, Any]]] = {}
    entries: list[dict[str, Any]] = []
    for name in _layers(architecture):
        layer = read(TABLES / f"{name}.json", required=False)
        if architecture.startswith("gfx") and not name.startswith("gfx"):
            layer = [{**entry, "setting": _halved(entry["setting"])} for entry in layer]
        entries = merged(entries, layer)
    for entry in [*(read(Path(extra), required=True) if extra else []), *entries]:
        key = (entry["kernel"], entry["kind"], entry["layout"], entry["few"])
        found.setdefault(key, []).append(entry)
    return found


def _layers(architecture: str) -> list[str]:
    """The tables of an architecture, each hiding entries of those before; sm_90's lie below all others.

    What does not fit there is passed over, as its needs are known.
    """
    family = next((name for prefix, name in _FAMILIES.items() if architecture.startswith(prefix)), None)
    return [] if family is None else list(dict.fromkeys(("sm_90", family, architecture)))


# Whose tables an architecture goes by: alike are those with the same matrix instructions.
_FAMILIES = {"sm_90": "sm_90", "sm_10": "sm_100", "sm_11": "sm_100", "sm_": "sm_80", "gfx": "gfx942"}


def read(path: Path, *, required: bool) -> list[dict[str, Any]]:
    """A table's entries.

    Raises:
        ValueError: it is not such a table.
    """
    if not path.exists() and not required:
        return []
    try:
        data = json.loads(path.read_text())
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}, not {SCHEMA}")
        names = {field.name for field in fields(Setting)}
        for entry in data["entries"]:
            if not set(entry["setting"]) <= names:
                raise ValueError(f"a setting must be of {sorted(names)}, got {sorted(entry['setting'])}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} (see {VARIABLE}) must be a table of launch settings: {error}") from error
    entries: list[dict[str, Any]] = data["entries"]
    return entries


def merged(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both tables' entries; for a class that both have, the new one's."""
    names = ("kernel", "kind", "layout", "few", "channels", "rows")
    found = {tuple(entry[name] for name in names): entry for entry in [*old, *new]}
    return [found[key] for key in sorted(found)]


_only: Setting | None = None


@contextlib.contextmanager
def using(setting: Setting) -> Iterator[None]:
    """Within, every kernel is launched with this setting, or not at all."""
    global _only
    before, _only = _only, setting
    try:
        yield
    finally:
        _only = before


def choices(problem: Problem, device: torch.device) -> list[Setting]:
    """Settings to try, best first; the last ones are slow, and fit everywhere."""
    if _only is not None:
        return [_only]
    return _choices(problem, hardware.traits(device).architecture, os.environ.get(VARIABLE))


@functools.lru_cache(maxsize=4096)
def _choices(problem: Problem, architecture: str, extra: str | None) -> list[Setting]:
    few = problem.pixels <= FEW
    entries = table(architecture, extra).get((problem.kernel, problem.kind, problem.layout, few), [])
    covering = [
        entry
        for entry in entries
        if entry["channels"] >= problem.channels
        and entry["rows"] >= problem.rows
        # A setting for far more channels is not a good one, only one that works.
        and entry["channels"] < 4 * problem.channels
    ]
    covering.sort(key=lambda entry: (entry["channels"], entry["rows"], entry.get("rank", 0)))
    found = [fitted(Setting(**entry["setting"]), problem) for entry in covering[:2]]
    others = fallbacks(problem)
    if architecture.startswith("gfx"):
        others = [Setting(**_halved(asdict(each))) for each in others]
    return list(dict.fromkeys([*found, *others]))


def _halved(setting: dict[str, Any]) -> dict[str, Any]:
    """With half as many warps: those of AMD have 64 threads, and settings found for 32 are for as many."""
    return {**setting, "warps": max(1, setting["warps"] // 2)}


def fitted(setting: Setting, problem: Problem) -> Setting:
    """The setting for this many channels and pixels: no wider chunk than there are, no taller tile."""
    values = asdict(setting)
    values["chunk"] = min(setting.chunk, power_of_two(problem.channels, 16))
    values["tile"] = min(setting.tile, power_of_two(problem.pixels, 16))
    return Setting(**values)


def fallbacks(problem: Problem) -> list[Setting]:
    """Settings by rules alone, ever smaller ones. They need few registers, for any number of channels."""
    # Numbers of a tile's scores that a program holds beside all else.
    scores = (4 << 10) if problem.kind == "16" else (1 << 10)
    tile = power_of_two(max(16, min(128, scores // problem.rows)) + 1) // 2
    wide = 64 if problem.kind == "16" and problem.rows <= 128 else 32
    if problem.kernel == "project_tokenize_backward":
        wide //= 2
    found = [
        Setting(tile, wide, 1, WHOLE, 8 if tile >= 64 else 4, 2),
        Setting(max(16, tile // 2), 32, 1, WHOLE, 4, 2),
        Setting(16, 16, 1, STREAM, 4, 1),
    ]
    return [fitted(setting, problem) for setting in found]


# By vt_fast.backends.triton.maps' numbers.
LAYOUTS = ("channels", "pixels", "any")


def shared_bytes(problem: Problem, setting: Setting) -> int:
    """Shared memory that a program needs, at most: as found by compiling, else by what can lie there at once.

    These are the tiles and rows of operands that are under way, and a tile or sums on their way from one
    arrangement in registers to another.
    """
    if setting.shared:
        return setting.shared
    item = 2 if problem.kind == "16" else 4
    maps, banks = _UNDER_WAY[problem.kernel]
    if setting.stages == 1:
        maps = 1  # one after the other
    wide = problem.channels if setting.form == KEEP else setting.chunk
    under_way = setting.stages * wide * item * (maps * setting.tile + banks * problem.rows)
    sums = max(setting.tile * setting.chunk, max(setting.tile, setting.chunk) * problem.rows)
    if problem.kernel.startswith("project_tokenize"):
        sums = max(sums, problem.rows**2)
    return under_way + 4 * sums


# Maps of which tiles, and operands of which rows, are loaded in the innermost loop.
_UNDER_WAY = {
    "tokenize_forward": (1, 1),
    "tokenize_backward": (1, 2),
    "project_forward": (1, 1),
    "project_backward": (2, 2),
    "project_tokenize_forward": (1, 2),
    "project_tokenize_backward": (2, 4),
}
