"""Two results side by side: figures in pairs and judged, and those that are gone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks import noise
from benchmarks.figures import OURS, AnyRun, Figure, Incomparable, figures
from benchmarks.noise import SAME, SLOWER, Verdict

# What must be the same for times to be comparable: where it is found, and what it is called.
_MACHINE = (
    (("devices", "cpu"), "CPU"),
    (("devices", "cores"), "number of cores"),
    (("devices", "instructions"), "instruction set"),
    (("gpu", "name"), "GPU"),
    (("versions", "torch"), "torch"),
)
# What memory may grow by: a share, and bytes.
_MEMORY_SHARE, _MEMORY_BYTES = 0.02, 1 << 16
_SETTINGS = (("mode", "mode"), ("quick", "--quick"), ("tf32", "--tf32"))


class Lost(NamedTuple):
    """A figure of ours that OLD has and NEW has not."""

    cell: str
    name: str
    why: str


class Grown(NamedTuple):
    """A figure of ours that takes more memory than before, in bytes."""

    cell: str
    name: str
    old: int
    new: int


class Comparison(NamedTuple):
    """What two runs have in common, and how it differs.

    ``verdicts`` are of single cells and ``groups`` of the means of those that are the same singly.
    ``grown``: where memory is no longer what it was.
    ``alone``: how many cells are in NEW or in OLD only. ``forced``: differences for which they would not have
    been compared.
    """

    pairs: Mapping[tuple[str, str], tuple[Figure, Figure]]
    verdicts: list[Verdict]
    groups: list[Verdict]
    lost: list[Lost]
    grown: list[Grown]
    cells: int
    alone: tuple[int, int]
    forced: list[str]

    @property
    def regressions(self) -> list[Verdict]:
        """Ours that are slower by more than noise, single ones first, the worst of each first."""
        return ours_that_are(SLOWER, self.verdicts) + ours_that_are(SLOWER, self.groups)

    @property
    def status(self) -> int:
        """What a command exits with."""
        return 1 if self.regressions or self.lost or self.grown else 0


def differences(
    new: Mapping[str, Any],
    new_settings: Mapping[str, Any],
    old: Mapping[str, Any],
    old_settings: Mapping[str, Any],
) -> list[str]:
    """Why times of two machines and settings cannot be compared."""
    found = []
    for (part, name), title in _MACHINE:
        values = [machine.get(part, {}).get(name) for machine in (new, old)]
        if values[0] != values[1]:
            found.append(f"{title}: {values[0]} and {values[1]}")
    for name, title in _SETTINGS:
        values = [settings.get(name) for settings in (new_settings, old_settings)]
        if values[0] != values[1]:
            found.append(f"{title}: {values[0]} and {values[1]}")
    return found


def refuse(new: AnyRun, old: AnyRun, *, force: bool = False) -> list[str]:
    """Whether two runs can be compared, which can be said before NEW has any figure; returns what was forced.

    Raises:
        Incomparable: they are of different kinds, or differ in what times depend on and it is not forced.
    """
    if type(new) is not type(old) or new.on_gpu != old.on_gpu:
        raise Incomparable("results of ops, of networks and of GPUs can only be compared with their like")
    found = differences(new.machine, new.settings, old.machine, old.settings)
    if found and not force:
        raise Incomparable(
            f"NEW and OLD differ in what times depend on: {'; '.join(found)}. --force compares our times in "
            "multiples of the peers' all the same"
        )
    return found


def compare(new: AnyRun, old: AnyRun, *, force: bool = False) -> Comparison:
    """Compare two runs of one kind.

    Cells are the same where op or network, shape, dtype, layout, pass and threads are; others are left out.

    Raises:
        Incomparable: see :func:`refuse`; or no cell is in both, or nothing tells the machine's drift.
    """
    forced = refuse(new, old, force=force)
    after, before = figures(new), figures(old)
    cells = [{figure.cell: None for figure in each.values()} for each in (after, before)]
    common = [cell for cell in cells[0] if cell in cells[1]]
    if not common:
        raise Incomparable(f"no cell is in both: NEW has {_some(cells[0])}, OLD has {_some(cells[1])}")
    lost, pairs = [], {}
    for key, was in before.items():
        now = after.get(key)
        if was.cell not in cells[0] or not _counts(was):
            continue
        if now is not None and _counts(now):
            pairs[key] = (was, now)
        elif was.role == OURS and now is None and not _left_out(new, was.name):
            lost.append(Lost(was.cell, was.name, "it took no part"))
        elif was.role == OURS and now is not None and now.missing is not None:
            lost.append(Lost(was.cell, was.name, now.missing))
    changes = noise.without_drift(noise.change(was, now) for was, now in pairs.values())
    verdicts = noise.judged(changes)
    # One cell that is named anyway should not have its group named too.
    quiet = [each.change for each in verdicts if each.word == SAME]
    return Comparison(
        pairs,
        verdicts,
        noise.judged(noise.means(quiet)),
        lost,
        [grown for pair in pairs.values() if (grown := _grown(*pair)) is not None],
        len(common),
        (len(cells[0]) - len(common), len(cells[1]) - len(common)),
        forced,
    )


def _counts(figure: Figure) -> bool:
    return len(figure.seconds) >= noise.LEAST_TIMES and statistics.median(figure.seconds) > 0


def _grown(was: Figure, now: Figure) -> Grown | None:
    """Memory has no noise but what an allocator rounds to, and the bytes that its bookkeeping takes."""
    if was.role != OURS or was.memory is None or now.memory is None:
        return None
    allowed = max(_MEMORY_SHARE * was.memory, _MEMORY_BYTES)
    return Grown(was.cell, was.name, was.memory, now.memory) if now.memory > was.memory + allowed else None


def _left_out(run: AnyRun, name: str) -> bool:
    """Whether the command line has asked for other sides."""
    return "sides" in run.settings and name not in run.settings["sides"]


def _some(cells: Mapping[str, None]) -> str:
    first = next(iter(cells), None)
    return "none" if first is None else f"{len(cells)} such as {first}"


def ours_that_are(word: str, verdicts: list[Verdict]) -> list[Verdict]:
    """Ours with that verdict, those first that have changed most."""
    found = [each for each in verdicts if each.change.role == OURS and each.word == word]
    return sorted(found, key=lambda each: -abs(each.change.left))
