"""The command line: modes that measure, and commands that read result files; see README.md beside this."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results, shapes
from benchmarks.processes import CPU, UsageError, conduct
from benchmarks.results import BACKEND, OK, OURS, SKIPPED, WRONG, Run

RESULTS = Path(__file__).resolve().parent / "results"


# The module with a mode's arguments and plans (:mod:`benchmarks.runner`), and what it measures.
MODES = {
    "ops": ("ops", "each op against its floor and its peers"),
    "stack": ("ops", "a stack of modules against the paper's equations"),
    "cpu": ("ops", "ops and stack on this machine's CPU"),
    "gpu": ("ops", "ops and stack on a GPU, the most important cases first"),
    "scaling": ("scaling", "time and memory against each size, one at a time"),
    "overhead": ("overhead", "the cost of a call at tiny shapes, and of the first one of a process"),
    "models": ("networks", "the paper's networks against those that they replace"),
    "layers": ("layers", "layers of other models against the same computation by our ops"),
    "hosts": ("hosts", "models of other libraries, as they are and after `vt_fast.patch`"),
    "switches": ("switches", "each switch of the ops at the shapes of other models"),
    "profile": ("profile", "what the time of our CPU kernels goes into; needs perf"),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ops": {"op": [*shapes.OPS]},
    "stack": {"op": [shapes.STACK]},
    "gpu": {"device": "cuda:0"},
}
# Options that leave nothing out of a run, whatever they are. A run that was stopped says so.
_ASIDE = ("command", "device", "results", "output", "compare", "force", "budget", "memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, as benchmarks/README.md explains it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        if options.command in MODES:
            return _measure(options)[0]
        commands = {"all": _all, "list": _list, "show": _show, "report": _report, "compare": _compare}
        commands["claims"] = _claims
        return commands[options.command](options)
    except (UsageError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser(command: str) -> argparse.ArgumentParser:
    """Only the command's own arguments are added, for those of other modes may take seconds to import."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="vt_fast against its floor and its peers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in MODES.items():
        measuring = commands.add_parser(name, help=f"measure {text}")
        if name == command:
            _module(name).add_arguments(measuring)
            _add_common(measuring)
            measuring.add_argument("--output", type=Path, metavar="FILE", help="default: a file in --results")
            measuring.set_defaults(**_DEFAULTS.get(name, {}))
    _add_common(commands.add_parser("all", help="measure all of these on one device, and report them"))
    commands.add_parser("list", help="shapes and the models that have them, peers, and absent packages")
    claims = commands.add_parser(
        "claims", help="train small networks to try the paper's claims, and report them"
    )
    if command == "claims":
        importlib.import_module("benchmarks.claims.command").add_arguments(claims)
    show = commands.add_parser("show", help="print a result file")
    show.add_argument("file", type=Path, metavar="FILE")
    report = commands.add_parser("report", help="result files as an HTML page, Markdown and pictures")
    report.add_argument("files", type=Path, nargs="+", metavar="FILE")
    report.add_argument("--output", type=Path, default=RESULTS / "report", metavar="FOLDER")
    report.add_argument("--pictures", nargs="+", metavar="NAME", help="default: all")
    compare = commands.add_parser("compare", help="print what has become slower or faster by more than noise")
    compare.add_argument("new", type=Path, metavar="NEW")
    compare.add_argument("old", type=Path, metavar="OLD")
    compare.add_argument("--force", action="store_true", help="even if they are of different machines")
    compare.add_argument("--all", action="store_true", help="print every row")
    return parser


def _module(mode: str) -> Any:
    return importlib.import_module(f"benchmarks.{MODES[mode][0]}")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="tiny shapes, few rounds: does it run?")
    text = "cpu, cuda or cuda:N; default: %(default)s"
    parser.add_argument("--device", type=device_name, default=CPU, help=text)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where files go")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="compare with this result, or folder")
    parser.add_argument("--force", action="store_true", help="even if OLD is of another machine")


def device_name(text: str) -> str:
    """A device of the command line."""
    if text != CPU and re.fullmatch(r"cuda(:\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text}")
    return "cuda:0" if text == "cuda" else text


def _measure(options: argparse.Namespace) -> tuple[int, Path]:
    """Run a mode, print and save what it found; returns the exit status and the file."""
    from benchmarks import attention, compare, machine, report

    if options.command in ("cpu", "gpu") and (options.command == "cpu") != (options.device == CPU):
        raise UsageError(f"--device must be of mode {options.command}, got {options.device}")
    before = None if options.compare is None else results.load(options.compare)
    plans = _module(options.command).plans(options)
    reason = machine.unusable(options.device)
    if reason is not None:
        raise UsageError(reason)
    aside = ("command", "results", "output", "compare", "force")
    given = {name: value for name, value in vars(options).items() if name not in aside}
    settings = {"mode": options.command, **given, "absent": attention.absent(options.device != CPU)}
    facts = {"machine": machine.describe(options.device), "settings": settings, "commit": machine.commit()}
    run = Run({**facts, "complete": False, "problems": []})
    if before is not None:
        compare.refuse(run.facts, before.facts, force=options.force)
    path = partial = options.output or options.results / f"{options.command}-partial.csv"
    status = conduct(run, plans, lambda run: results.save(run, partial))
    if options.output is None and run.facts["complete"] and _is_full(options):
        path = options.results / file_name(options.command, run.facts["machine"].get("gpu"))
        partial.replace(path)
    try:
        print(report.show(run))
    except ImportError as error:  # a machine with a GPU needs no packages for tables
        print(f"no tables here, python -m benchmarks show prints them elsewhere: {error}")
    print(f"\nwritten to {path} after {run.facts['elapsed_seconds']:.0f} s")
    status = status or verdict(run)
    if before is not None:
        found = compare.compare(run, before, force=options.force)
        print(compare.render(found))
        status = status or found.status
    return status, path


def _is_full(options: argparse.Namespace) -> bool:
    """Whether everything is measured: else the file of a full run is not written over."""
    defaults = vars(_parser(options.command).parse_args([options.command]))
    return all(getattr(options, name) == value for name, value in defaults.items() if name not in _ASIDE)


def file_name(mode: str, gpu: Mapping[str, Any] | None) -> str:
    """The result file of a full run of a mode.

    Example:
        >>> file_name("scaling", None), file_name("gpu", {"name": "NVIDIA H100 80GB HBM3"})
        ('scaling-cpu.csv', 'gpu-nvidia-h100-80gb-hbm3.csv')
    """
    if gpu is None:
        return "cpu.csv" if mode == "cpu" else f"{mode}-cpu.csv"
    slug = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    return f"{mode}-{slug}.csv"


def verdict(run: Run) -> int:
    """The exit status of a run: 1 where one of our results was wrong or a case could not be measured at all.

    What does not fit into the memory is not wrong.
    """
    ours = [row.status in (OK, SKIPPED) for row in run.rows if row.role == OURS]
    wrong = any(row.status == WRONG for row in run.rows if row.role == BACKEND)
    return 0 if ours and all(ours) and not wrong and not run.facts["problems"] else 1


def _all(options: argparse.Namespace) -> int:
    """Every mode on a device, one after another, and a report of their results."""
    if options.compare is not None and not options.compare.is_dir():
        raise UsageError(f"--compare must be a folder with results, got {options.compare}")
    status, files = 0, []
    others = [mode for mode, (module, _) in MODES.items() if module not in ("ops", "profile")]
    for mode in ("cpu" if options.device == CPU else "gpu", *others):
        words = [mode, "--results", str(options.results), "--device", options.device]
        words += ["--quick"] if options.quick else []
        print(f"\n=== {mode}\n", flush=True)
        one, path = _measure(_parser(mode).parse_args(words))
        files.append(path)
        status = max(status, one)
        old = None if options.compare is None else options.compare / path.name
        if old is not None and old.exists():
            options.new, options.old, options.all = path, old, False
            status = max(status, _compare(options))
        if status == 130:
            break
    _report(argparse.Namespace(files=files, output=options.results / "report", pictures=None))
    return status


def _claims(options: argparse.Namespace) -> int:
    from benchmarks.claims import command

    return command.main(options)


def _list(options: argparse.Namespace) -> int:
    """The registry of shapes and peers."""
    import torch

    from benchmarks import attention, peers

    for label, shape in shapes.REGISTRY.items():
        places = {"cpu": shapes.SHAPES, "gpu": shapes.GPU_SHAPES}
        where = "+".join(name for name, those in places.items() if shape in those)
        print(f"{label:20} {where:8} {shapes.ORIGINS[shape]}")
    print("\n" + "\n".join(peers.listing()))
    for name, reason in attention.absent(torch.cuda.is_available()).items():
        print(f"absent: {name}: {reason}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from benchmarks import report

    run = results.load(options.file)
    print(report.show(run))
    return verdict(run)


def _report(options: argparse.Namespace) -> int:
    from benchmarks import report

    runs = [(path.stem, results.load(path)) for path in options.files]
    print(*report.write(runs, options.output, options.pictures), sep="\n")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from benchmarks import compare

    return compare.main(options.new, options.old, force=options.force, everything=options.all)
