"""Which settings a kernel is launched with: from files, by rules beyond them; and those worth trying."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from vt_fast.backends.triton import INTERPRETED

T = TypeVar("T")

SCHEMA = 1

# How a kernel goes through a tile's channels a second time, see vt_fast.backends.triton.primitives.
KEEP = "keep"  # tiles stay on the chip
STREAM = "stream"  # tiles are read again; sums over tiles stay in registers
WHOLE = "whole"  # tiles are read again; each tile's sums go to memory, best where a program has one tile

FILES = Path(__file__).resolve().parent / "settings_data"
# An environment variable: a file like those whose entries come first, as ``python -m vt_fast tune`` writes.
VARIABLE = "VT_FAST_SETTINGS"


def ceil_div(number: int, by: int) -> int:
    """The quotient, rounded up."""
    return -(-number // by)


def power_of_two(number: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``number`` and ``least``."""
    return max(least, 1 << max(number - 1, 0).bit_length())


def precision(dtype: torch.dtype) -> str:
    """tl.dot's input_precision for maps of this dtype; float32 follows torch's own switch."""
    return "tf32" if dtype == torch.float32 and _tf32() else "ieee"


def small_precision(dtype: torch.dtype) -> str:
    """That of products of float32 within a call: those of 16-bit maps run on tensor cores."""
    return "tf32" if dtype.itemsize == 2 else precision(dtype)


def logit_precision(dtype: torch.dtype, architecture: str) -> str:
    """That of such products where they are logits.

    Tensor cores cut the factors off to TF32, which shifts all logits one way, and the lse with them; three
    products lose next to nothing. AMD's matrix cores take float32 as it is.
    """
    if dtype.itemsize > 2:
        return precision(dtype)
    return "ieee" if architecture.startswith("gfx") else "tf32x3"


def _tf32() -> bool:
    """Torch's switch. It has two names, and reading the old one raises once the new one was set."""
    matmul = torch.backends.cuda.matmul
    setting = getattr(matmul, "fp32_precision", None)
    if setting is None or setting == "none":
        setting = getattr(torch.backends, "fp32_precision", "none")
        if setting == "none":
            return bool(matmul.allow_tf32)
    return bool(setting == "tf32")


def kind(dtype: torch.dtype, wide_weights: bool = False) -> str:
    """The precision of products by which settings are classed: "16" bits, "tf32" or "ieee"."""
    if dtype.itemsize == 2:
        return "tf32" if wide_weights else "16"
    return precision(dtype)


def wide_weights(dtype: torch.dtype, softmax: bool) -> bool:
    """Whether products take weights in float32, as others than a softmax's may be beyond float16's range."""
    return dtype == torch.float16 and not softmax


def limit(dtype: torch.dtype) -> float:
    """The largest finite number of the dtype that is computed in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max


def widens(dtype: torch.dtype) -> bool:
    """Whether operands of products must become float32 first: the interpreter takes bfloat16 for integers."""
    return INTERPRETED and dtype == torch.bfloat16


@dataclass(frozen=True)
class Setting:
    """Pixels of a tile, channels of a chunk, chunks of a program (0: all), form, warps and pipeline stages.

    ``shared``: bytes of shared memory that a program was found to need, 0 if that is not known.
    """

    tile: int
    chunk: int
    own: int
    form: str
    warps: int
    stages: int
    shared: int = 0


class Problem(NamedTuple):
    """The class of a launch, by which its setting is chosen.

    ``kind``: the precision of products ("16", "tf32" or "ieee"). ``layout``: which dimension of the maps has
    stride 1 ("channels", "pixels" or "any"). ``channels``, ``rows``: the shape of a program's sums, rows
    padded. ``pixels``: of a sample.
    """

    kernel: str
    kind: str
    layout: str
    channels: int
    rows: int
    pixels: int


# The most pixels of a sample that one tile can hold.
FEW = 256


@functools.cache
def _entries(architecture: str, extra: str | None) -> dict[tuple[str, str, str, bool], list[dict[str, Any]]]:
    """An architecture's entries by kernel, kind, layout and whether pixels are few; ``extra`` comes first."""
    found: dict[tuple[str, str, str, bool], list[dict[str, Any]]] = {}
    entries: list[dict[str, Any]] = []
    for name in _layers(architecture):
        layer = read(FILES / f"{name}.json", required=False)
        if _wide_warps(architecture) and not name.startswith("gfx"):
            layer = [{**entry, "setting": _halved(entry["setting"])} for entry in layer]
        entries = merged(entries, layer)
    for entry in [*(read(Path(extra), required=True) if extra else []), *entries]:
        key = (entry["kernel"], entry["kind"], entry["layout"], entry["few"])
        found.setdefault(key, []).append(entry)
    return found


def _layers(architecture: str) -> list[str]:
    """The files for an architecture, each hiding entries of those before; sm_90's lie below all others.

    What does not fit there is passed over, as its needs are known.
    """
    family = next((name for prefix, name in _FAMILIES.items() if architecture.startswith(prefix)), None)
    return [] if family is None else list(dict.fromkeys(("sm_90", family, architecture)))


# The file that an architecture goes by: alike are those with the same matrix instructions.
_FAMILIES = {"sm_90": "sm_90", "sm_10": "sm_100", "sm_11": "sm_100", "sm_": "sm_80", "gfx": "gfx942"}


def read(path: Path, *, required: bool) -> list[dict[str, Any]]:
    """A file's entries.

    Raises:
        ValueError: it is no such file.
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
        raise ValueError(f"{path} (see {VARIABLE}) must be a file of launch settings: {error}") from error
    entries: list[dict[str, Any]] = data["entries"]
    return entries


def merged(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of both; for a class that both have, the new one."""
    names = ("kernel", "kind", "layout", "few", "channels", "rows")
    found = {tuple(entry[name] for name in names): entry for entry in [*old, *new]}
    return [found[key] for key in sorted(found)]


class Replaceable(Generic[T]):
    """A value of a module that a ``with`` block can replace."""

    def __init__(self, value: T) -> None:
        self.value = value

    @contextlib.contextmanager
    def by(self, value: T) -> Iterator[None]:
        """Within, the value is this one."""
        before, self.value = self.value, value
        try:
            yield
        finally:
            self.value = before


_only: Replaceable[Setting | None] = Replaceable(None)


def using(setting: Setting) -> AbstractContextManager[None]:
    """Within, this is the only setting that kernels are launched with."""
    return _only.by(setting)


def choices(problem: Problem, architecture: str) -> list[Setting]:
    """Settings to try, best first. The last ones are slow and fit on any device."""
    if _only.value is not None:
        return [_only.value]
    return _choices(problem, architecture, os.environ.get(VARIABLE))


@functools.lru_cache(maxsize=4096)
def _choices(problem: Problem, architecture: str, extra: str | None) -> list[Setting]:
    few = problem.pixels <= FEW
    entries = _entries(architecture, extra).get((problem.kernel, problem.kind, problem.layout, few), [])
    covering = [
        entry
        for entry in entries
        if entry["channels"] >= problem.channels
        and entry["rows"] >= problem.rows
        # A setting for far more channels works, but is slow.
        and entry["channels"] < 4 * problem.channels
    ]
    covering.sort(key=lambda entry: (entry["channels"], entry["rows"], entry.get("rank", 0)))
    found = [fitted(Setting(**entry["setting"]), problem) for entry in covering[:2]]
    others = fallbacks(problem)
    if _wide_warps(architecture):
        others = [Setting(**_halved(asdict(each))) for each in others]
    return list(dict.fromkeys([*found, *others]))


def _wide_warps(architecture: str) -> bool:
    """Whether warps have 64 threads: those of AMD's CDNA do, and those of RDNA have 32 as NVIDIA's."""
    return architecture.startswith("gfx9")


def _halved(setting: dict[str, Any]) -> dict[str, Any]:
    """With half as many warps of 64 threads, for settings that were found with warps of 32."""
    return {**setting, "warps": max(1, setting["warps"] // 2)}


def fitted(setting: Setting, problem: Problem) -> Setting:
    """The setting with chunk and tile no larger than the problem."""
    values = asdict(setting)
    values["chunk"] = min(setting.chunk, power_of_two(problem.channels, 16))
    values["tile"] = min(setting.tile, power_of_two(problem.pixels, 16))
    return Setting(**values)


def fallbacks(problem: Problem) -> list[Setting]:
    """Settings by rule, each smaller than the last. They need few registers for any number of channels."""
    # How many of a tile's scores a program can hold.
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


def shared_bytes(problem: Problem, setting: Setting) -> int:
    """Shared memory that a program needs: as found by compiling, otherwise an upper bound.

    The bound counts tiles and rows of operands that are being loaded, and a tile or sums that change their
    layout in registers.
    """
    if setting.shared:
        return setting.shared
    item = 2 if problem.kind == "16" else 4
    maps, banks = _LOADED[problem.kernel]
    if setting.stages == 1:
        maps = 1  # one after the other
    wide = problem.channels if setting.form == KEEP else setting.chunk
    loading = setting.stages * wide * item * (maps * setting.tile + banks * problem.rows)
    sums = max(setting.tile * setting.chunk, max(setting.tile, setting.chunk) * problem.rows)
    if problem.kernel.startswith("project_tokenize"):
        sums = max(sums, problem.rows**2)
    return loading + 4 * sums


# How many maps' tiles, and small operands' rows, the innermost loop loads.
_LOADED = {
    "tokenize_forward": (1, 1),
    "tokenize_backward": (1, 2),
    "project_forward": (1, 1),
    "project_backward": (2, 2),
    "project_tokenize_forward": (1, 2),
    "project_tokenize_backward": (2, 4),
}


# Sums for each channel and row that a kernel keeps; how many of them fit in registers.
_SUMS = {
    "tokenize_forward": 1,
    "tokenize_backward": 1,
    "project_backward": 2,
    "project_tokenize_forward": 1,
    "project_tokenize_backward": 3,
}
_FORWARD_HELD, _BACKWARD_HELD = 32 << 10, 16 << 10
# Shared memory of the largest multiprocessors.
_SHARED = 227 << 10


def candidates(problem: Problem) -> Iterator[Setting]:
    """Settings worth trying for a class, the likeliest first, without repetition."""
    seen = set()
    for setting in _all(problem):
        each = fitted(setting, problem)
        if each not in seen:
            seen.add(each)
            yield each


def _all(problem: Problem) -> Iterator[Setting]:
    wide, item = (64, 2) if problem.kind == "16" else (32, 4)
    if problem.kernel == "project_forward":
        for tile, warps, stages in ((64, 4, 3), (128, 8, 3), (128, 4, 2), (64, 8, 3), (32, 4, 3)):
            yield Setting(tile, wide, 0, STREAM, warps, stages)
        if problem.channels <= 512:
            yield Setting(64, wide, 0, KEEP, 4, 2)
            yield Setting(32, wide, 0, KEEP, 4, 2)
        return
    rows = problem.rows * _SUMS[problem.kernel]
    held = _BACKWARD_HELD if problem.kernel.endswith("backward") else _FORWARD_HELD
    narrow, both = problem.kind == "16", problem.kernel.startswith("project_tokenize")
    if problem.channels * rows <= (held // 2 if both else held):
        for tile, warps, stages in _KEPT[2:] if both else _KEPT if narrow else _KEPT[4:]:
            if tile * problem.channels * (stages - 1) * item <= _SHARED:
                yield Setting(tile, wide, 0, KEEP, warps, stages)
    if problem.pixels <= FEW:
        for chunk, warps, stages in _WHOLE[2:] if both else _WHOLE:
            yield Setting(256, min(chunk, wide), 0, WHOLE, warps, stages)
    yield Setting(128, wide, 0, WHOLE, 8, 2)
    yield Setting(64, wide, 0, WHOLE, 4, 2)
    yield Setting(128, wide // 2, 0, WHOLE, 8, 2)
    for tile, own, warps in _STREAMED if narrow else _STREAMED[2:]:
        if own * wide * rows <= held:
            yield Setting(tile, wide, own, STREAM, warps, 2)
    if not narrow:
        yield Setting(32, 16, 1, STREAM, 8, 2)
        yield Setting(16, 16, 1, STREAM, 4, 2)


# Chunks, warps and stages of whole samples.
_WHOLE = ((64, 8, 3), (64, 8, 2), (32, 8, 2), (32, 16, 2))
# Tiles, warps and stages; tiles, own chunks and warps. Float32 takes more registers for the same tile.
_KEPT = ((64, 4, 3), (64, 4, 2), (32, 4, 3), (32, 4, 2), (32, 8, 2), (16, 4, 2), (16, 8, 2))
_STREAMED = (
    (64, 4, 8),
    (64, 2, 4),
    (64, 1, 4),
    (64, 1, 8),
    (32, 4, 8),
    (32, 2, 8),
    (32, 2, 4),
    (32, 1, 4),
    (32, 1, 8),
)
