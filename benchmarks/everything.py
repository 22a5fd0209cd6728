"""``python -m benchmarks all``: every mode on a device, one after another, and a report of their results."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import running
from benchmarks.reporting import command as reporting
from benchmarks.running import CPU, CUDA, Finished, UsageError

# By kind of device; what people look at first comes first.
MODES = {CPU: (CPU, "scaling", "overhead", "models"), CUDA: ("gpu", "scaling", "overhead", "models")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument(
        "--device",
        type=running.device_name,
        default=CPU,
        help="cpu, cuda or cuda:N; default: %(default)s",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=running.RESULTS,
        metavar="FOLDER",
        help="where the results go, and the folder of the report; default: %(default)s",
    )
    parser.add_argument("--compare", type=Path, metavar="FOLDER", help="and with the results there")
    parser.add_argument("--force", action="store_true", help="even if those are of another machine")


def main(
    options: argparse.Namespace,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    measure: Callable[[argparse.Namespace], Finished],
) -> int:
    """Run all; returns the worst exit status of the parts. Ctrl-C ends it with what has been measured.

    Args:
        options: the command's.
        parse: the parser of the modes' options.
        measure: carries one mode out.

    Raises:
        UsageError: the arguments cannot be carried out.
    """
    if options.compare is not None and not options.compare.is_dir():
        raise UsageError(f"--compare must be a folder with results, got {options.compare}")
    if options.compare is not None and options.compare.resolve() == options.results.resolve():
        raise UsageError(f"--compare must be another folder than --results, got {options.compare} for both")
    status, paths = 0, []
    for mode in MODES[CPU if options.device == CPU else CUDA]:
        words = [mode, "--results", str(options.results), *(["--quick"] if options.quick else [])]
        words += [] if mode == CPU else ["--device", options.device]
        print(f"\n=== {mode}\n", flush=True)
        done = measure(parse(words))
        paths.append(done.path)
        status = max(status, done.status)
        if status == 130:
            break
        if options.compare is not None:
            status = max(status, _compared(done.path, options.compare / done.path.name, force=options.force))
    print()
    wanted = argparse.Namespace(files=paths, output=options.results / "report", pictures=None)
    return max(status, reporting.main(wanted))


def _compared(new: Path, old: Path, *, force: bool) -> int:
    from benchmarks import compare

    if not old.exists():
        print(f"not compared: there is no {old}")
        return 0
    try:
        return compare.main(new, old, force=force, everything=False)
    except ValueError as error:
        print(f"not compared: {error}")
        return 1
