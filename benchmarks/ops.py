"""``python -m benchmarks ops`` and ``stack``, and ``cpu`` and ``gpu``: both of them, in one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import cases, origins, running
from benchmarks.cases import OPS, STACK
from benchmarks.records import Run
from benchmarks.running import CPU, CUDA, Finished, UsageError
from benchmarks.timing import QUICK, Budget

if TYPE_CHECKING:
    from benchmarks.compare import Before

GPU = "gpu"
MODES = {
    "ops": "each op against its floor and peers",
    STACK: "a stack of modules against the paper's equations",
    CPU: "ops and stack on this machine's CPU",
    GPU: "ops and stack on a GPU, the most important cases first",
}
# Of quick runs: compiling takes longer than all the rest of one.
_QUICK_PEERS = ("eager", "folded", "transposed", "sdpa")
# How long a run may take leaves nothing out: it is then not complete, and says so.
_ASIDE = ("budget",)
# Options that one kind of device alone has, with what they are where they were not given.
_OF_A_CPU = {"threads": None}
_OF_A_GPU = {"budget": None, "tf32": False, "max_autotune": False}


def add_arguments(parser: argparse.ArgumentParser, mode: str) -> None:
    """The options of a mode."""
    devices = {CPU: (CPU,), GPU: (CUDA,)}.get(mode, (CPU, CUDA))
    ops = {"ops": [*OPS], STACK: [STACK]}.get(mode, [*OPS, STACK])
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, few rounds, nothing compiled: a smoke test"
    )
    if mode == CPU:
        parser.set_defaults(device=CPU)
    else:
        text = "cpu, cuda or cuda:N; default: %(default)s"
        parser.add_argument("--device", type=running.device_name, default=devices[0], help=text)
    if mode == STACK:
        parser.set_defaults(op=ops, shape=None)
    else:
        parser.add_argument("--op", nargs="+", choices=ops, default=ops)
        _add_shape(parser, devices)
    default = ", ".join(cases.DTYPES)
    if CUDA in devices:
        default += f" ({', '.join(cases.GPU_DTYPES)} on a GPU)"
    parser.add_argument("--dtype", nargs="+", choices=cases.GPU_DTYPES, help=f"default: {default}")
    parser.add_argument("--layout", nargs="+", choices=cases.LAYOUTS, default=list(cases.LAYOUTS))
    parser.add_argument("--pass", nargs="+", choices=cases.PASSES, default=list(cases.PASSES), dest="passes")
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help='as python -m benchmarks list names them; on a GPU also "plain" for all that are not compiled; '
        "default: all",
    )
    parser.add_argument("--seconds", type=float, help="for each cell; the default is in benchmarks/README.md")
    if CPU in devices:
        parser.add_argument("--threads", type=int, nargs="+", metavar="T", help="of a CPU; default: 1 and 2")
    if CUDA in devices:
        parser.add_argument(
            "--budget", type=_positive, metavar="MINUTES", help="of a GPU: stop then; default: no limit"
        )
        parser.add_argument("--tf32", action="store_true", help="of a GPU: all sides multiply fp32 in TF32")
        parser.add_argument(
            "--max-autotune", action="store_true", help="of a GPU: also peers compiled with tuned kernels"
        )


def _add_shape(parser: argparse.ArgumentParser, devices: Sequence[str]) -> None:
    standard = {CPU: cases.SHAPES, CUDA: cases.GPU_SHAPES}
    texts = [", ".join(shape.label for shape in standard[device]) for device in devices]
    parser.add_argument(
        "--shape",
        nargs="+",
        choices=list(dict.fromkeys(shape.label for shape in origins.REGISTRY)),
        metavar="BxNxCxL",
        help=f"of {'; on a GPU: '.join(texts)} (the default), or another one of those that "
        "python -m benchmarks list prints",
    )


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def main(options: argparse.Namespace, before: Before | None = None) -> Finished:
    """Run, save, print; 1 where a result of ours was wrong or a case could not be measured.

    Raises:
        UsageError: the arguments cannot be carried out.
        Incomparable: the run cannot be compared with that before.
    """
    mode = options.command
    on_gpu = options.device != CPU
    if mode == GPU and not on_gpu:
        raise UsageError("--device must be cuda or cuda:N, got cpu; python -m benchmarks cpu measures that")
    foreign = _OF_A_CPU if on_gpu else _OF_A_GPU
    for name, default in foreign.items():
        if getattr(options, name, default) != default:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is for another device than {options.device}")
    full = running.is_full(options, partial(add_arguments, mode=mode), _ASIDE)
    if on_gpu:
        from benchmarks import gpu

        status, run, path = gpu.run(options, full=full, before=before)
    else:
        status, run, path = _on_cpu(options, full=full, before=before)
    print(render(run))
    print(f"\nwritten to {path} after {run.settings['elapsed_seconds']:.0f} s")
    compared = 0 if before is None else before.report(run)
    return Finished(status or running.verdict(run) or compared, path)


def render(run: Run) -> str:
    """The tables of a run."""
    from benchmarks import report

    return report.render(run)


def _on_cpu(options: argparse.Namespace, *, full: bool, before: Before | None) -> tuple[int, Run, Path]:
    from benchmarks.peers import NAMES
    from benchmarks.peers_gpu import ABSENT

    cpus = running.cpus_of(None)
    threads = options.threads or [count for count in (1, 2) if count <= len(cpus)]
    selections = [running.cpus_of(count) for count in threads]
    todo = plan(options)
    if todo["peers"] is not None:
        todo["peers"] = running.known_peers(todo["peers"], NAMES)
    settings = {name: value for name, value in todo.items() if name != "cases"}
    settings |= {"threads": threads, "absent": ABSENT}
    run = Run(running.machine_of(CPU), settings, [], complete=False)
    if before is not None:
        before.accept(run)
    status, path = running.conduct(run, [(todo, chosen) for chosen in selections], options, full=full)
    return status, run, path


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """What the children are told, apart from their CPUs.

    Raises:
        UsageError: a dtype is measured on a GPU alone.
    """
    shapes: tuple[cases.Shape, ...] = cases.QUICK_SHAPES if options.quick else cases.SHAPES
    if options.shape:
        shapes = origins.by_label(options.shape)
    stack = cases.QUICK_STACK_SHAPE if options.quick else cases.STACK_SHAPE
    dtypes = options.dtype or list(cases.DTYPES)
    unknown = [dtype for dtype in dtypes if dtype not in cases.DTYPES]
    if unknown:
        raise UsageError(f"--dtype must be of {', '.join(cases.DTYPES)} on a CPU, got {', '.join(unknown)}")
    peers = options.peers
    if options.quick and peers is None:
        peers = list(_QUICK_PEERS)
    budget = QUICK if options.quick else Budget()
    if options.seconds is not None:
        budget = budget._replace(seconds=options.seconds)
    return {
        "cases": list(cases.select(shapes, stack, options.op, dtypes, options.layout)),
        "passes": options.passes,
        "peers": peers,
        "budget": budget._asdict(),
        "quick": options.quick,
    }
