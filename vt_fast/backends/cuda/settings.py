"""Launch settings of the CUDA kernels: from files, for classes of calls. csrc/cuda/plan.h has the rules."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SCHEMA = 1
FILE = Path(__file__).resolve().parent / "settings.json"
# An environment variable: a file like it whose entries come first. ``python -m vt_fast tune`` writes it.
VARIABLE = "VT_FAST_CUDA_SETTINGS"

OPS = (
    "tokenize",
    "project",
    "project_tokenize",
    "tokenize_backward",
    "project_backward",
    "project_tokenize_backward",
)
DTYPES = ("fp32", "bf16", "fp16")
# Channels contiguous; or pixels, with rows aligned to 16 bytes, to less than 8, or to 8 bytes alone.
LAYOUTS = ("last", "first", "shifted", "halves")
ROWS = (16, 32, 64)
MT, RANKS, STAGES = (1, 2, 4, 8), (1, 2, 4, 8, 16), (2, 3, 4)


class Setting(NamedTuple):
    """A class of calls and what it gets: ``Setting`` in csrc/cuda/settings.h."""

    op: str
    dtype: str
    layout: str
    rows: int
    channels: int
    backend: str = "cuda"  # "next": backend=None leaves such calls to the next backend
    mt: int = 0
    ranks: int = 1
    stages: int = 4

    @property
    def group(self) -> tuple[str, str, str, int, int]:
        """The class of calls."""
        return self[:5]


class _Record(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("op", "dtype", "layout", "rows", "channels", "other", "mt", "ranks", "stages")
    ]


def read(path: Path, *, required: bool = True) -> list[Setting]:
    """A file's entries.

    Raises:
        ValueError: it is no such file.
    """
    if not required and not path.exists():
        return []
    try:
        data = json.loads(path.read_text())
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}, not {SCHEMA}")
        return [_checked(Setting(**entry)) for entry in data["entries"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} (see {VARIABLE}) must be a file of launch settings: {error}") from error


def write(path: Path, settings: Iterable[Setting], source: str) -> None:
    """Write a file; ``source`` says what they were measured on."""
    data = {"schema": SCHEMA, "source": source, "entries": [each._asdict() for each in settings]}
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(data, indent=1) + "\n")
    draft.replace(path)


def merged(old: Iterable[Setting], new: Iterable[Setting]) -> list[Setting]:
    """The entries of both; for a class that both have, the new one."""
    return list({each.group: each for each in [*old, *new]}.values())


def in_files() -> list[Setting]:
    """The entries of the package, and of the file in the environment variable.

    Without Triton, plain PyTorch would come next: calls are left to Triton alone.
    """
    extra = os.environ.get(VARIABLE)
    found = merged(read(FILE), read(Path(extra)) if extra else [])
    return [
        each for each in found if each.backend == "cuda" or importlib.util.find_spec("triton") is not None
    ]


def use(library: ctypes.CDLL, settings: Sequence[Setting]) -> None:
    """From now on the library looks these up."""
    records = (_Record * len(settings))(
        *(
            _Record(
                OPS.index(each.op),
                DTYPES.index(each.dtype),
                LAYOUTS.index(each.layout),
                each.rows,
                each.channels,
                int(each.backend == "next"),
                each.mt,
                each.ranks,
                each.stages,
            )
            for each in settings
        )
    )
    library.vt_fast_cuda_use_settings(records, len(settings))


@contextlib.contextmanager
def using(library: ctypes.CDLL, setting: Setting) -> Iterator[None]:
    """Within, only this setting is in use."""
    use(library, [setting])
    try:
        yield
    finally:
        use(library, in_files())


def _checked(setting: Setting) -> Setting:
    allowed = {
        "op": OPS,
        "dtype": DTYPES,
        "layout": LAYOUTS,
        "rows": ROWS,
        "backend": ("cuda", "next"),
        "mt": (0, *MT),
        "ranks": RANKS,
        "stages": STAGES,
    }
    for name, values in allowed.items():
        if getattr(setting, name) not in values:
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(str, values))}, got {getattr(setting, name)!r}"
            )
    if setting.channels < 1:
        raise ValueError(f"`channels` must be positive, got {setting.channels}")
    return setting
