"""The table of what the kernels compile to, and the check of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import results
from native_build import cuda
from tools.cuda import machine_code
from tools.cuda.machine_code import Facts, Kernel, widths
from tools.cuda.objects import objects, tools

FOLDER = Path(__file__).parent
COLUMNS = ("op", "dtype", *Kernel._fields, *Facts._fields)
# Instances for more rows may spill. With 128 registers, which let 16 warps run, the others keep a few numbers
# in memory that are used once a tile: more warps are worth more than these.
CLEAN_ROWS, MOST_STACK = 32, 128
# What must be as in the committed table if nvcc has the same version.
COMPARED = ("registers", "stack", "copies", "loads")

Row = dict[str, Any]


def table(architecture: str) -> Path:
    """The committed table of an architecture."""
    return FOLDER / f"resources-sm_{architecture}.csv"


def scope(architecture: str, ops: Sequence[str] | None, types: Sequence[str] | None) -> list[tuple[str, str]]:
    """The objects to look at: those asked for, by default those that the committed table has."""
    path = table(architecture)
    known = None
    if ops is None and types is None and path.exists():
        known = {(row["op"], row["dtype"]) for row in results.read(path)[1]}
    return [
        (op, dtype)
        for op, dtype in cuda.kernels()
        if (ops is None or op in ops)
        and (types is None or dtype in types)
        and (known is None or (op, dtype.lower()) in known)
    ]


def rows_of(op: str, dtype: str, path: Path, architecture: str) -> list[Row]:
    """The rows of an object."""
    found = machine_code.facts(path, architecture)
    return [
        {"op": op, "dtype": dtype.lower(), **kernel._asdict(), **facts._asdict()}
        for kernel, facts in sorted(found.items(), key=lambda item: _order(item[0]))
    ]


def _order(kernel: Kernel) -> tuple[int, ...]:
    layout = machine_code.LAYOUTS.index(kernel.layout) if kernel.walks else len(machine_code.LAYOUTS)
    return layout, kernel.mt or 0, kernel.nt or 0, kernel.tp or 0


def run(
    architecture: str,
    ops: Sequence[str] | None,
    types: Sequence[str] | None,
    *,
    check: bool,
    output: Path | None,
) -> int:
    """Look at the kernels and write the table; with ``check`` return 1 if something is wrong instead."""
    kernels = scope(architecture, ops, types)
    paths = objects(architecture, kernels)
    found: list[Row] = []
    with ProcessPoolExecutor() as pool:
        for rows in pool.map(rows_of, *zip(*kernels, strict=True), paths, [architecture] * len(paths)):
            found += rows
    version = "{}.{}".format(*tools(architecture).version)
    wrong = faults(found)
    if check and table(architecture).exists():
        facts, committed = results.read(table(architecture))
        if facts["nvcc"] == version:
            wrong += differences(found, committed)
        else:
            print(f"nvcc is {version} and the table is of {facts['nvcc']}, so they are not compared")
    for line in wrong:
        print(f"FAULT: {line}")
    print(f"sm_{architecture}: {len(found)} kernels, {len(wrong)} faults")
    if not check:
        results.write(output or table(architecture), {"nvcc": version}, COLUMNS, found)
    return int(check and bool(wrong))


def faults(rows: Iterable[Row]) -> list[str]:
    """What breaks a rule, a sentence each."""
    found = []
    for row in rows:
        where = label(row)
        few = not row["nt"] or int(row["nt"]) * 8 <= CLEAN_ROWS
        if few and int(row["stack"]) > MOST_STACK:
            found.append(
                f"{where} spills: {row['stack']} bytes of stack, where kernels for at most {CLEAN_ROWS} rows "
                f"may have {MOST_STACK}."
            )
        if not row["layout"]:
            continue
        copies = widths(row["copies"])
        narrow = [width for width in copies if width < (8 if row["layout"] == "first" else 16)]
        if 16 not in copies:
            found.append(f"{where} does not copy 16 bytes at a time.")
        found += [f"{where} copies {width} bytes at a time." for width in narrow]
        if not int(row["products"]):
            found.append(f"{where} uses no tensor cores.")
    return found


def differences(rows: Iterable[Row], committed: Iterable[Row]) -> list[str]:
    """What is not as the committed table has it, a sentence each."""
    known = {label(row): row for row in committed}
    found = []
    for row in rows:
        before = known.get(label(row))
        if before is None:
            found.append(f"{label(row)} is missing in the table.")
            continue
        for name in COMPARED:
            if str(row[name]) != str(before[name]):
                found.append(
                    f"{label(row)}: {name} {row[name] or 'none'}, in the table {before[name] or 'none'}."
                )
    return found


def label(row: Row) -> str:
    """Which kernel a row is of."""
    sizes = " ".join(
        f"{name.upper()}={row[name]}" for name in ("mt", "nt", "tp") if row[name] not in ("", None)
    )
    return " ".join(filter(None, (row["op"], row["dtype"], row["kernel"], row["layout"], sizes)))
