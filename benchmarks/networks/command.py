"""``python -m benchmarks models``, in a process of its own, whose memory and threads are set up for it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import launch, machine

SCHEMA = 1
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


def main(options: argparse.Namespace) -> int:
    """Run, print, save. 1 where a result was wrong or a case could not be measured."""
    from tqdm import tqdm

    from benchmarks.networks.measuring import NetworkCell, Side
    from benchmarks.networks.report import render

    cpus = launch.available_cpus()
    threads = len(cpus) if options.threads is None else options.threads
    if not 1 <= threads <= len(cpus):
        print(f"error: --threads must be from 1 to {len(cpus)}, the CPUs that may be used", file=sys.stderr)
        return 2
    plan = {key: value for key, value in vars(options).items() if key not in ("command", "output", "threads")}
    cells: list[NetworkCell] = []
    problems: list[str] = []
    start = time.monotonic()
    complete = False
    try:
        with tqdm(unit="case", dynamic_ncols=True) as bar:
            for message in launch.messages({"networks": plan}, cpus[:threads]):
                bar.total = message["total"]
                bar.set_description(message["case"])
                bar.update()
                problems += message.get("problems", [])
                for data in message.get("cells", []):
                    sides = [Side(**side) for side in data.pop("sides")]
                    cells.append(NetworkCell(**data, sides=sides))
        complete = True
    except KeyboardInterrupt:
        problems.append("interrupted")
    except RuntimeError as error:
        problems.append(str(error))
    output = options.output or RESULTS / f"models-{options.device if _is_full(options) else 'partial'}.json"
    record = {
        "schema": SCHEMA,
        "machine": machine.describe(),
        "settings": {
            "networks": True,
            **plan,
            "threads": threads,
            "elapsed_seconds": time.monotonic() - start,
        },
        "complete": complete,
        "problems": problems,
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(render(cells))
    for problem in problems:
        print(f"problem: {problem}")
    print(f"\nwritten to {output} after {time.monotonic() - start:.0f} s")
    wrong = any(side.reason is not None for cell in cells for side in cell.sides)
    return 1 if wrong or problems or not cells else 0


def _is_full(options: argparse.Namespace) -> bool:
    """Whether everything was measured: else the file of a full run is not written over."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    aside = ("device", "threads", "output")
    return all(getattr(options, name) == value for name, value in defaults.items() if name not in aside)


def show(path: Path) -> str:
    """A result file's tables.

    Raises:
        ValueError: the file is of another schema.
    """
    from benchmarks.networks.measuring import NetworkCell, Side
    from benchmarks.networks.report import render

    data = json.loads(path.read_text())
    if data.get("schema") != SCHEMA or any("sides" not in cell for cell in data.get("cells", [])):
        raise ValueError(f"{path} must be a result of python -m benchmarks models, with schema {SCHEMA}")
    return render(
        NetworkCell(**{**cell, "sides": [Side(**side) for side in cell["sides"]]}) for cell in data["cells"]
    )


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
