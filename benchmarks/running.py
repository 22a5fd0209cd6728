"""What all commands that measure have in common: their options, their files, and a run in processes."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import launch, machine, records
from benchmarks.records import SKIPPED, Cell, Entry, Run

RESULTS = Path(__file__).resolve().parent / "results"
CPU, CUDA = "cpu", "cuda"
# Options that leave nothing out of a run, whatever they are.
ASIDE = ("device", "results", "output", "compare", "force", "json")


class UsageError(ValueError):
    """A command was given arguments that it cannot carry out."""


class Finished(NamedTuple):
    """The exit status of a command that measures, and the file that it has written."""

    status: int
    path: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that measures."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: a file in --results")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="where that file goes"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result file, and tables on standard error"
    )
    parser.add_argument("--compare", type=Path, metavar="OLD", help="and then with this result file")
    parser.add_argument("--force", action="store_true", help="even if OLD is of another machine")


def device_name(text: str) -> str:
    """A device of the command line.

    Raises:
        argparse.ArgumentTypeError: it is none.

    Example:
        >>> device_name("cuda:1")
        'cuda:1'
    """
    if text != CPU and re.fullmatch(r"cuda(:\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text}")
    return text


def index_of(device: str) -> int:
    """Which GPU.

    Example:
        >>> index_of("cuda"), index_of("cuda:1")
        (0, 1)
    """
    return int(device.partition(":")[2] or 0)


def cpus_of(threads: int | None) -> list[int]:
    """The CPUs for so many threads; for None, all that may be used.

    Raises:
        UsageError: there are not so many.
    """
    cpus = launch.available_cpus()
    if threads is not None and not 1 <= threads <= len(cpus):
        raise UsageError(f"--threads must be from 1 to {len(cpus)}, the CPUs that may be used, got {threads}")
    return cpus[:threads]


def known_peers(names: Sequence[str], known: Collection[str]) -> list[str]:
    """The peers that were asked for, each once.

    Raises:
        UsageError: one is not known.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"--peers must be names that python -m benchmarks list prints, got {', '.join(unknown)}"
        )
    return list(dict.fromkeys(names))


def is_full(
    options: argparse.Namespace,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    aside: Collection[str] = (),
) -> bool:
    """Whether everything is measured: else the file of a full run is not written over."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    return all(
        getattr(options, name) == value for name, value in defaults.items() if name not in (*ASIDE, *aside)
    )


def file_of(options: argparse.Namespace, mode: str, about: dict[str, Any], *, full: bool) -> Path:
    """Where the result of a mode goes.

    Example:
        >>> options = argparse.Namespace(output=None, results=Path("results"))
        >>> file_of(options, "scaling", {}, full=True).as_posix()
        'results/scaling-cpu.json'
    """
    if options.output is not None:
        return Path(options.output)
    if not full:
        name = f"{mode}-partial"
    elif "gpu" not in about:
        name = mode if mode == CPU else f"{mode}-{CPU}"
    else:
        name = f"{mode}-{slug(about['gpu']['name'])}"
    return Path(options.results) / f"{name}.json"


def slug(name: str) -> str:
    """A device's name as a part of a file's.

    Example:
        >>> slug("NVIDIA H100 80GB HBM3")
        'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def conduct(
    run: Run,
    plans: Sequence[tuple[dict[str, Any], list[int]]],
    options: argparse.Namespace,
    *,
    full: bool,
    mark: Callable[[Cell], object] = lambda cell: None,
) -> tuple[int, Path]:
    """Carry out each plan on its CPUs and save the run; returns 130 after Ctrl-C, else 0, and the file.

    Args:
        run: what is known of it so far; its cells are added.
        plans: what each child is told, and its CPUs.
        options: the command line's.
        full: nothing was left out by an option. Where the run is not complete it goes to another file all the
            same.
        mark: called with each cell before it is kept.
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
    path = file_of(options, options.command, run.machine, full=full and run.complete)
    records.save(run, path)
    return status, path


def machine_of(device: str) -> dict[str, Any]:
    """What is said of the machine that a run is made on, and of its GPU where that is what is measured.

    Raises:
        UsageError: it cannot be measured here.
    """
    if device == CPU:
        return machine.describe()
    from benchmarks import gpu_machine

    reason = gpu_machine.unusable(index_of(device))
    if reason is not None:
        raise UsageError(reason)
    return gpu_machine.describe(index_of(device))


def verdict(run: Run) -> int:
    """The exit status of a run: 1 where a result of ours was wrong or a case could not be measured at all.

    What was not run because it would not fit into the memory was not wrong.
    """
    amiss = [cell for cell in run.cells if cell.ours is None or not _fine(cell.ours)]
    return 1 if run.problems or not run.cells or amiss else 0


def _fine(entry: Entry) -> bool:
    return entry.timed or entry.status == SKIPPED
