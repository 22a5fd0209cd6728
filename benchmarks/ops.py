"""The modes ``ops``, ``stack``, ``cpu`` and ``gpu``: each op against its floor and its peers, and a stack."""

from __future__ import annotations

import argparse

import msgspec

from benchmarks import shapes
from benchmarks.processes import CPU, Plan, UsageError, cpus_of
from benchmarks.timing import GPU, QUICK, Budget

# Seconds that one compilation may take on a GPU; with kernels tuned, several times that.
_COMPILE_SECONDS, _TUNE_SECONDS = 120.0, 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The modes' options."""
    add = parser.add_argument
    add("--op", nargs="+", choices=(*shapes.OPS, shapes.STACK), default=[*shapes.OPS, shapes.STACK])
    text = "of those that python -m benchmarks list prints"
    add("--shape", nargs="+", choices=list(shapes.REGISTRY), metavar="BxNxCxL", help=text)
    add("--dtype", nargs="+", choices=shapes.GPU_DTYPES, help="default: fp32 and bf16; fp16 too on a GPU")
    add("--layout", nargs="+", choices=shapes.LAYOUTS, default=list(shapes.LAYOUTS))
    add("--pass", nargs="+", choices=shapes.PASSES, default=list(shapes.PASSES), dest="passes")
    text = 'as python -m benchmarks list names them, or "plain" for all that are not compiled; default: all'
    add("--peers", nargs="*", metavar="NAME", help=text)
    add("--seconds", type=float, help="for each cell; the default is in benchmarks/README.md")
    add("--threads", type=int, nargs="+", metavar="T", help="of a CPU; default: 1 and 2")
    add("--budget", type=_positive, metavar="MINUTES", help="of a GPU: stop then; default: no limit")
    add("--tf32", action="store_true", help="of a GPU: all contenders multiply fp32 in TF32")
    add("--max-autotune", action="store_true", help="of a GPU: also peers compiled with tuned kernels")


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def plans(options: argparse.Namespace) -> list[Plan]:
    """On a CPU a process for each number of threads; on a GPU one, the most important cases first.

    Raises:
        UsageError: the options do not fit the device, or a peer is not known.
    """
    from benchmarks import peers

    on_gpu = options.device != CPU
    for name in ("threads",) if on_gpu else ("budget", "tf32", "max_autotune"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is for another device than {options.device}")
    unknown = [dtype for dtype in options.dtype or () if not on_gpu and dtype not in shapes.DTYPES]
    if unknown:
        raise UsageError(f"--dtype must be of {', '.join(shapes.DTYPES)} on a CPU, got {', '.join(unknown)}")
    # Compiling takes longer than all the rest of a quick run.
    kind = "cuda" if on_gpu else CPU
    chosen = peers.chosen(options.peers, kind, plain=options.quick, tuned=options.max_autotune)
    wanted = [shapes.REGISTRY[label] for label in options.shape or ()]
    wanted = wanted or [*(shapes.QUICK_SHAPES if options.quick else ())]
    stack = shapes.QUICK_STACK_SHAPE if options.quick else None
    cases = shapes.cases(options.op, wanted, stack, options.dtype or (), options.layout, on_gpu=on_gpu)
    budget = QUICK if options.quick else GPU if on_gpu else Budget()
    if options.seconds is not None:
        budget = budget._replace(seconds=options.seconds)
    plan = Plan(
        problems=[case.spec(chosen, options.passes) for case in cases],
        cpus=cpus_of(None),
        device=options.device,
        budget=budget,
        quick=options.quick,
        tf32=options.tf32,
    )
    if on_gpu:
        plan.seconds = None if options.budget is None else 60 * options.budget
        plan.compile_seconds = _TUNE_SECONDS if options.max_autotune else _COMPILE_SECONDS
        return [plan]
    threads = options.threads or [count for count in shapes.THREADS if count <= len(plan.cpus)]
    return [msgspec.structs.replace(plan, cpus=cpus_of(count)) for count in threads]
