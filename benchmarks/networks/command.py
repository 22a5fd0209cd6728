"""``python -m benchmarks models``, in a process of its own, whose memory and threads are set up for it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import launch, machine
from benchmarks.networks import records

if TYPE_CHECKING:
    from benchmarks.compare import Before

RESULTS = Path(__file__).resolve().parents[1] / "results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    from benchmarks.networks.cases import KINDS
    from benchmarks.networks.sides import PASSES, SIDES

    parser.add_argument(
        "--quick", action="store_true", help="small networks, few rounds, nothing compiled: a smoke test"
    )
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--pass", nargs="+", choices=PASSES, default=list(PASSES), dest="passes")
    parser.add_argument("--side", nargs="+", choices=SIDES, default=list(SIDES), dest="sides")
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--layout", nargs="+", choices=("nchw", "channels_last"), default=["channels_last"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, metavar="T", help="of a CPU; default: all that may be used")
    parser.add_argument("--only", metavar="NAME", help="cases whose name holds this")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: a file in benchmarks/results")


def main(options: argparse.Namespace, before: Before | None = None) -> int:
    """Run, print, save, and compare with what was before, where it is given.

    Returns 1 where a result was wrong, a case could not be measured, or something has become slower.

    Raises:
        Incomparable: its times cannot be compared with those before.
    """
    from tqdm import tqdm

    from benchmarks.networks.report import render

    cpus = launch.available_cpus()
    threads = len(cpus) if options.threads is None else options.threads
    if not 1 <= threads <= len(cpus):
        print(f"error: --threads must be from 1 to {len(cpus)}, the CPUs that may be used", file=sys.stderr)
        return 2
    aside = ("command", "output", "threads", "compare", "force")
    plan = {key: value for key, value in vars(options).items() if key not in aside}
    settings = {"networks": True, **plan, "threads": threads}
    run = records.NetworkRun(_machine(options.device), settings, [], complete=False)
    if before is not None:
        before.accept(run)
    start = time.monotonic()
    try:
        with tqdm(unit="case", dynamic_ncols=True) as bar:
            for message in launch.messages({"networks": plan}, cpus[:threads]):
                bar.total = message["total"]
                bar.set_description(message["case"])
                bar.update()
                run.problems += message.get("problems", [])
                run.cells += [records.cell_from(cell) for cell in message.get("cells", [])]
        run.complete = True
    except KeyboardInterrupt:
        run.problems.append("interrupted")
    except RuntimeError as error:
        run.problems.append(str(error))
    elapsed = run.settings["elapsed_seconds"] = time.monotonic() - start
    output = options.output or RESULTS / f"models-{options.device if _is_full(options) else 'partial'}.json"
    records.save(run, output)
    print(render(run.cells))
    for problem in run.problems:
        print(f"problem: {problem}")
    print(f"\nwritten to {output} after {elapsed:.0f} s")
    wrong = any(side.reason is not None for cell in run.cells for side in cell.sides)
    compared = 0 if before is None else before.report(run)
    return 1 if wrong or run.problems or not run.cells else compared


def _machine(device: str) -> dict[str, Any]:
    """Where it runs; of a GPU its driver and clocks too."""
    if device != "cuda":
        return machine.describe()
    from benchmarks import gpu_machine

    return gpu_machine.describe()


def _is_full(options: argparse.Namespace) -> bool:
    """Whether everything was measured: else the file of a full run is not written over."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    aside = ("device", "threads", "output", "compare", "force")
    return all(getattr(options, name) == value for name, value in defaults.items() if name not in aside)


def show(path: Path) -> str:
    """A result file's tables.

    Raises:
        ValueError: the file is of another schema.
    """
    from benchmarks.networks.report import render

    return render(records.load(path).cells)


def work(plan: dict[str, Any], threads: int) -> Iterator[dict[str, Any]]:
    """In the child: a message for each case."""
    import torch

    from benchmarks.device import Device
    from benchmarks.networks.cases import cases
    from benchmarks.networks.measuring import BUDGET, measure
    from benchmarks.networks.sides import COMPILED
    from benchmarks.timing import QUICK

    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
    device = Device(threads)
    if plan["device"] == "cuda":
        from benchmarks.gpu_device import Gpu

        device = Gpu()
    quick = plan["quick"]
    sides = tuple(side for side in plan["sides"] if not (quick and side == COMPILED))
    wanted = [
        (case, dtype, layout)
        for case in cases(quick)
        for dtype in plan["dtype"]
        for layout in plan["layout"]
        if case.kind in plan["kind"] and (plan["only"] is None or plan["only"] in case.name)
    ]
    for case, dtype, layout in wanted:
        message: dict[str, Any] = {"case": case.name, "total": len(wanted)}
        try:
            found = measure(
                case, dtype, layout, tuple(plan["passes"]), sides, device, QUICK if quick else BUDGET
            )
            message["cells"] = [dataclasses.asdict(cell) for cell in found]
        except Exception as error:  # the other cases are still worth their time
            message["problems"] = [f"{case.name}: {type(error).__name__}: {error}"]
        yield message
