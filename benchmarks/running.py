"""A run whose cases are measured in processes of their own, one after another, and saved as one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import launch, machine, records
from benchmarks.records import SKIPPED, Cell, Entry, Run


def conduct(
    run: Run,
    plans: Sequence[tuple[dict[str, Any], list[int]]],
    output: Path,
    mark: Callable[[Cell], object] = lambda cell: None,
) -> int:
    """Carry out each plan on its CPUs and save the run; returns 130 after Ctrl-C, else 0.

    ``mark`` is called with each cell before it is kept.
    """
    from tqdm import tqdm

    start = time.monotonic()
    processes = []
    status = 0
    try:
        total = sum(len(plan["cases"]) for plan, _ in plans)
        with tqdm(total=total, unit="case", dynamic_ncols=True) as bar:
            for plan, cpus in plans:
                for message in launch.messages(plan, cpus):
                    if "process" in message:
                        processes.append(message["process"])
                        continue
                    bar.set_description(f"{len(cpus)} thr. {message['case']}")
                    bar.update()
                    cells = [records.cell_from(cell) for cell in message.get("cells", [])]
                    for cell in cells:
                        mark(cell)
                    run.cells += cells
                    run.problems += [message["problem"]] if "problem" in message else []
        run.complete = True
    except KeyboardInterrupt:
        status = 130
    except RuntimeError as error:
        run.problems.append(str(error))
    run.settings |= {"processes": processes, "elapsed_seconds": time.monotonic() - start}
    records.save(run, output)
    return status


def machine_of(device: str) -> dict[str, Any]:
    """What is said of the machine that a run is made on, and of its GPU where that is what is measured."""
    if device == "cpu":
        return machine.describe()
    from benchmarks import gpu_machine

    return gpu_machine.describe()


def verdict(run: Run) -> int:
    """The exit status of a run: 1 where a result of ours was wrong or a case could not be measured at all.

    What was not run because it would not fit into the memory was not wrong.
    """
    amiss = [cell for cell in run.cells if cell.ours is None or not _fine(cell.ours)]
    return 1 if run.problems or not run.cells or amiss else 0


def _fine(entry: Entry) -> bool:
    return entry.timed or entry.status == SKIPPED
