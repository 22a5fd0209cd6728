"""``python -m benchmarks compare NEW OLD``, and ``--compare OLD`` of the commands that measure."""

from __future__ import annotations

from pathlib import Path

from benchmarks.compare_report import render
from benchmarks.comparison import compare, refuse
from benchmarks.figures import AnyRun, load


class Before:
    """The result that a run which is yet to be made will be compared with.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no result.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self._path, self._force = path, force
        self._run = load(path)

    def accept(self, run: AnyRun) -> None:
        """Whether it will be possible, before anything is measured. Of the run, machine and settings suffice.

        Raises:
            Incomparable: see :func:`refuse`.
        """
        refuse(run, self._run, force=self._force)

    def report(self, run: AnyRun) -> int:
        """Compare and print; returns 1 where a figure of ours is slower by more than noise, or gone.

        Raises:
            Incomparable: see :func:`compare`.
        """
        found = compare(run, self._run, force=self._force)
        print(f"\nThis run (NEW) against {self._path} (OLD)\n{render(found)}")
        return found.status


def main(new: Path, old: Path, *, force: bool, everything: bool) -> int:
    """Compare two files and print it.

    Returns 1 where a figure of ours is slower by more than noise, or gone.

    Raises:
        OSError: a file cannot be read.
        ValueError: one is no result, or they cannot be compared.
    """
    found = compare(load(new), load(old), force=force)
    print(f"NEW: {new}\nOLD: {old}\n{render(found, everything=everything)}")
    return found.status
