"""The command line: ``python -m tools.mutants run`` and ``compare``."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import queue
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tools.mutants
from tools.mutants.sampling import TARGETS, Mutant, candidates, planted, sample
from tools.mutants.tree import Tree

SEED = 16
COUNT = 20


def noticed(path: Path) -> dict[str, dict[str, Any]]:
    """The records in a file of the mutants that were noticed, by id."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["id"]: record for record in records if record["status"] == "noticed"}


def chosen(target: str, seed: int, count: int, only: list[str], by_hand: bool = False) -> list[list[Mutant]]:
    """The mutants to try. In each inner list they are tried until one compiles.

    Args:
        only: ids, or files of results, whose noticed mutants are taken.
        by_hand: those that were written by hand, all of them.
    """
    found = planted(target) if by_hand else candidates(target)
    if by_hand and not only:
        return [[mutant] for mutant in found]
    if not only:
        return sample(found, target, seed, count)
    ids = {key for word in only for key in (noticed(Path(word)) if Path(word).is_file() else [word])}
    missing = ids - {mutant.id for mutant in found}
    if missing:
        raise SystemExit(f"error: these sources have no mutants {', '.join(sorted(missing))}")
    return [[mutant] for mutant in found if mutant.id in ids]


def run(options: argparse.Namespace) -> int:
    """Try mutants of one target, as many at a time as there are copies of the tree."""
    parts = chosen(options.target, options.seed, options.count, options.only, options.planted)
    if options.list:
        print(*(shown(part[0]._asdict()) for part in parts), sep="\n")
        return 0
    tests = (f"pytest {options.tests}",) if options.tests else TARGETS[options.target].tests
    trees: queue.Queue[Tree] = queue.Queue()

    def try_part(index: int, part: list[Mutant]) -> None:
        tree = trees.get()
        try:
            for mutant in part:
                begin = time.monotonic()
                status, test = tree.attempt(mutant, tests, options.limit)
                record = {"target": options.target, "index": index, **mutant._asdict()}
                record |= {"status": status, "test": test, "seconds": round(time.monotonic() - begin)}
                output.write(json.dumps(record) + "\n")
                output.flush()
                print(f"{status:15} {record['seconds']:4} s  {shown(record)}  {test}", flush=True)
                if status != "did not compile":
                    return
        finally:
            trees.put(tree)

    def try_none() -> None:
        tree = trees.get()
        try:
            status, test = tree.test(tests, options.limit)
        finally:
            trees.put(tree)
        if status != "survived":
            raise SystemExit(f"error: the tests fail without a fault: {test}")

    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        open(options.output, "a") as output,
        concurrent.futures.ThreadPoolExecutor(options.jobs) as pool,
    ):
        first = Tree.copied(Path(folder) / "0", TARGETS[options.target].build)
        trees.put(first)
        for number in range(1, options.jobs):
            trees.put(first.twin(Path(folder) / str(number)))
        waiting = [pool.submit(try_none), *(pool.submit(try_part, *item) for item in enumerate(parts))]
        try:
            for future in concurrent.futures.as_completed(waiting):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print the mutants that were noticed in the old results and not in the new; 1 if there are any."""
    old, new = noticed(options.old), noticed(options.new)
    lost = [record for key, record in old.items() if key not in new]
    for record in lost:
        print(f"{shown(record)}  was noticed by {record['test']}")
    print(f"{len(old)} were noticed before, {len(old) - len(lost)} of these after")
    return 1 if lost else 0


def shown(record: dict[str, Any]) -> str:
    """A mutant on one line."""
    edit = " -> ".join(" ".join(record[side].split())[:60] for side in ("before", "after"))
    return f"{record['id']} {record['file']}:{record['line']} {record['operator']}: {edit}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants",
        description=tools.mutants.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", help="try mutants of one target")
    one.add_argument("--target", choices=TARGETS, required=True)
    one.add_argument("--seed", type=int, default=SEED)
    one.add_argument("--count", type=int, default=COUNT)
    one.add_argument(
        "--planted", action="store_true", help="those in tools/mutants/planted, with --target cuda or cpu"
    )
    one.add_argument("--only", nargs="+", default=[], metavar="ID", help="or a file: those noticed in it")
    one.add_argument("--tests", metavar="ARGUMENTS", help="pytest's, in place of the target's own")
    one.add_argument("--limit", type=float, default=900, help="seconds for the tests of one mutant")
    one.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants tried at a time")
    one.add_argument("--list", action="store_true", help="print the first choices and try none")
    one.add_argument("--output", default=os.devnull, help="append one JSON line for each mutant")
    one.set_defaults(run=run)
    two = commands.add_parser("compare", help="say which mutants are noticed no longer")
    two.add_argument("old", type=Path)
    two.add_argument("new", type=Path)
    two.set_defaults(run=compare)
    options = parser.parse_args(arguments)
    if getattr(options, "planted", False) and options.target not in ("cpu", "cuda"):
        parser.error("--planted goes with --target cuda or cpu")
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
