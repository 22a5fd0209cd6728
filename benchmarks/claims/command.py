"""``python -m benchmarks claims``: the trainings that are missing in the result file, and the report."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import machine, results
from benchmarks.claims import plan, training
from benchmarks.claims.data import TEST
from benchmarks.claims.training import Job, Row
from benchmarks.processes import ROOT, UsageError, cpus_of

FILE = ROOT / "benchmarks" / "results" / "claims-cpu.csv"
_COLUMNS = [column.encode_name for column in msgspec.structs.fields(Row)]
# Freed memory is kept: giving pages back after each step takes longer than some steps.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("what", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--file", type=Path, default=FILE, help="the result file, which a run continues")
    text = "trainings side by side, one thread each; default: one for each core"
    parser.add_argument("--processes", type=int, default=len(cpus_of(None)), help=text)
    parser.add_argument("--choose", action="store_true", help="only choose learning rates: no test data")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")


def main(options: argparse.Namespace) -> int:
    """Run what is missing, or write the report; returns the exit status."""
    if options.what == "report":
        from benchmarks.claims import report

        facts, rows = load(options.file)
        check_plan(options.file, facts)
        print(*report.write(facts, rows, options.docs), sep="\n")
        return 0
    if options.processes < 1:
        raise UsageError(f"--processes must be at least 1, got {options.processes}")
    path: Path = options.file
    facts, rows = load(path) if path.exists() else (dict[str, Any](), list[Row]())
    if facts:
        check_plan(path, facts)
    facts = {"machine": machine.describe(), "commit": None, "plan": plan.digest(), "complete": False} | facts
    try:
        for _ in range(2):  # the second time at the edges
            run(path, facts, rows, plan.choosing(rows), options.processes)
        if not options.choose:
            check_committed()
            facts["commit"] = facts["commit"] or machine.commit()
            run(path, facts, rows, plan.tests(rows), options.processes)
            facts["complete"] = True
            results.write(path, facts, _COLUMNS, map(_written, rows))
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on after the {len(rows)} results in {path}")
        return 130
    print(f"{len(rows)} results are in {path}")
    return 0


def run(path: Path, facts: dict[str, Any], rows: list[Row], jobs: Sequence[Job], processes: int) -> None:
    """Train what has no row yet, side by side, and add each row to the file as it comes."""
    from tqdm import tqdm

    done = {row.key for row in rows}
    missing = [job for job in jobs if job.key not in done]
    known = tuple(rows) if any(job.part == TEST for job in missing) else ()
    os.environ.update(_ENVIRONMENT)  # for the workers, which read it when they start
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)
    with tqdm(total=len(missing), unit="run", dynamic_ncols=True, smoothing=0.1) as bar:
        try:
            for future in as_completed([pool.submit(training.run, job, known) for job in missing]):
                row = future.result()
                rows.append(row)
                results.write(path, facts, _COLUMNS, map(_written, rows))
                bar.set_postfix_str(f"{row.net} on {row.task} ({row.part}): {row.score:.2f}")
                bar.update()
        except BaseException:
            # A worker has its next training already, and would finish it.
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The facts and the rows of a result file; raises ValueError for another one."""
    facts, table = results.read(path)
    missing = [name for name in ("plan", "complete") if name not in facts]
    if missing:
        raise ValueError(f"{path} must be a result file of claims, got none with {' and '.join(missing)}")
    # A training that diverges at once has no scores on the way.
    given = [
        {"validation": ""} | {name: value for name, value in values.items() if value != ""}
        for values in table
    ]
    try:
        rows = msgspec.convert(given, list[Row], strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} must be a result file of claims: {error}") from None
    keys = set()
    for row in rows:
        if row.net not in plan.NETS.get(row.task, ()):
            raise ValueError(f"{path} must have networks of the plan, got {row.net} on {row.task}")
        if row.key in keys:
            raise ValueError(f"{path} must have a training once, got {row.net} on {row.task} twice")
        keys.add(row.key)
    return facts, rows


def check_plan(path: Path, facts: dict[str, Any]) -> None:
    """Results of another plan are neither continued nor reported."""
    if facts["plan"] != plan.digest():
        raise UsageError(f"{path} must have results of this plan, got another's; give another --file")


def _written(row: Row) -> dict[str, Any]:
    return {
        name: "" if value is None else f"{value:.7g}" if isinstance(value, float) else value
        for name, value in msgspec.structs.asdict(row).items()
    }


def _begin() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    torch.set_num_threads(1)


def check_committed() -> None:
    """Test data is for a plan that is committed as it is."""
    folder = Path(__file__).parent
    changes = machine.output("git", "-C", str(ROOT), "status", "--porcelain", "--", str(folder))
    if changes is None or changes.strip():
        raise UsageError(f"the plan must be committed before test data is used, got changes in {folder}")
