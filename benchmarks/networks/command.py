"""``python -m benchmarks models``, in a process of its own, whose memory and threads are set up for it."""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import launch, running
from benchmarks.networks import records
from benchmarks.running import CPU, Finished

if TYPE_CHECKING:
    from benchmarks.compare import Before

MODE = "models"


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
    parser.add_argument(
        "--device", type=running.device_name, default=CPU, help="cpu, cuda or cuda:N; default: %(default)s"
    )
    parser.add_argument("--threads", type=int, metavar="T", help="of a CPU; default: all that may be used")
    parser.add_argument("--only", metavar="NAME", help="cases whose name holds this")


def main(options: argparse.Namespace, before: Before | None = None) -> Finished:
    """Run, print, save, and compare with what was before, where it is given.

    1 where a result was wrong, a case could not be measured, or something has become slower; 130 after
    Ctrl-C.

    Raises:
        UsageError: the arguments cannot be carried out.
        Incomparable: its times cannot be compared with those before.
    """
    from tqdm import tqdm

    from benchmarks.networks.report import render

    cpus = running.cpus_of(options.threads)
    aside = ("command", "threads", *running.ASIDE)
    plan = {key: value for key, value in vars(options).items() if key not in aside}
    plan["device"] = options.device
    settings = {"networks": True, **plan, "threads": len(cpus)}
    run = records.NetworkRun(running.machine_of(options.device), settings, [], complete=False)
    if before is not None:
        before.accept(run)
    start = time.monotonic()
    status = 0
    try:
        with tqdm(unit="case", dynamic_ncols=True) as bar:
            for message in launch.messages({"networks": plan}, cpus):
                bar.total = message["total"]
                bar.set_description(message["case"])
                bar.update()
                run.problems += message.get("problems", [])
                run.cells += [records.cell_from(cell) for cell in message.get("cells", [])]
        run.complete = True
    except KeyboardInterrupt:
        status = 130
    except RuntimeError as error:
        run.problems.append(str(error))
    elapsed = run.settings["elapsed_seconds"] = time.monotonic() - start
    full = run.complete and running.is_full(options, add_arguments)
    output = running.file_of(options, MODE, run.machine, full=full)
    records.save(run, output)
    print(render(run))
    print(f"\nwritten to {output} after {elapsed:.0f} s")
    wrong = any(side.reason is not None for cell in run.cells for side in cell.sides)
    compared = 0 if before is None else before.report(run)
    return Finished(status or int(wrong or bool(run.problems) or not run.cells) or compared, output)


def show(path: Path) -> str:
    """A result file's tables.

    Raises:
        ValueError: the file is of another schema.
    """
    from benchmarks.networks.report import render

    return render(records.load(path))


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
    if plan["device"] != CPU:
        from benchmarks.gpu_device import Gpu

        device = Gpu(running.index_of(plan["device"]))
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
