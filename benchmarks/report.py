"""A run in tables: for the terminal, as Markdown beside PNGs, and as an HTML page that needs nothing else."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import plots
from benchmarks.plots import FASTEST, by, digits, images, is_first_call, place, target, unique
from benchmarks.results import OK, REPLACED, SHORT, SKIPPED, Cell, Row, Run, cells

if TYPE_CHECKING:
    from pandas import DataFrame

# How many cells or times are listed as the worst.
_WORST = 5
_NUMBER = "|".join(["-?", r"[-+]?[\d.]+%?( [-+]\d+%)?", "needs .*", *SHORT.values()])
_NOTE = (
    "Times are medians, the spread that of the 20 % and 80 % quantiles. Extra: peak memory above inputs, "
    "results and gradients."
)

Record = dict[str, Any]


class Section(NamedTuple):
    """Lines of text and titled tables under a heading."""

    title: str
    lines: Sequence[str]
    tables: Sequence[tuple[str, DataFrame]]


def show(run: Run) -> str:
    """All tables of a run for the terminal, the summary last, where it is seen first."""
    parts = ["\n".join(_head(run))]
    for section in sorted(_sections(run), key=lambda section: section.title == "Summary"):
        parts.append(f"{section.title}\n{'=' * len(section.title)}")
        parts += [f"{title}\n{as_text(frame)}".strip() for title, frame in section.tables]
        parts += ["\n".join(section.lines)] if section.lines else []
    return "\n\n".join(parts)


def write(runs: Sequence[tuple[str, Run]], folder: Path, pictures: Sequence[str] | None = None) -> list[Path]:
    """Write report.html, and report.md with its pictures; returns the paths.

    Args:
        runs: named runs; a picture is called after its run and what it shows, such as "cpu-roofline".
        folder: made if need be.
        pictures: write the PNGs of these names and nothing else.

    Raises:
        ValueError: there is no picture of that name.
    """
    drawn = {
        name: [each._replace(name=f"{name}-{each.name}") for each in plots.draw(run)] for name, run in runs
    }
    drawings = {each.name: each for some in drawn.values() for each in some}
    unknown = [name for name in pictures or () if name not in drawings]
    if unknown:
        raise ValueError(f"`pictures` must be of {', '.join(drawings)}, got {', '.join(unknown)}")
    folder.mkdir(parents=True, exist_ok=True)
    written = [plots.png(drawings[name], folder) for name in (drawings if pictures is None else pictures)]
    if pictures is None:
        parts = [
            {
                "name": name,
                "head": list(_head(run)),
                "pictures": drawn[name],
                "sections": [*_sections(run), _environment(run)],
            }
            for name, run in runs
        ]
        for suffix, text in (("html", _page(parts)), ("md", "\n\n".join(_markdown(parts)) + "\n")):
            written.append(folder / f"report.{suffix}")
            written[-1].write_text(text)
    return written


def as_text(frame: DataFrame, form: str = "simple") -> str:
    """A table in one of tabulate's formats; nothing if it is empty."""
    if frame.empty:
        return ""
    sides = ["right" if numeric else "left" for numeric in _numeric(frame).values()]
    if form == "simple":
        frame = frame.rename(columns=lambda name: textwrap.fill(name, 10, break_long_words=False))
    else:
        frame = frame.replace(r"\|", r"\\|", regex=True)  # a bar would end the cell
    return str(frame.to_markdown(index=False, tablefmt=form, disable_numparse=True, colalign=sides))


def spread(row: Row | None) -> str:
    """How far the 20 % and 80 % quantiles of its times are from the median."""
    if row is None or not row.median:
        return "-"
    return " ".join(f"{(end or row.median) / row.median - 1:+.0%}" for end in (row.low, row.high))


def _numeric(frame: DataFrame) -> dict[str, bool]:
    """Whether each column holds numbers."""
    return {name: bool(frame[name].str.fullmatch(_NUMBER).all()) for name in frame.columns}


def _head(run: Run) -> Iterator[str]:
    """The machine, the versions, and what concerns the run as a whole."""
    machine, settings, commit = run.facts["machine"], run.facts["settings"], run.facts["commit"]
    devices, versions, gpu = machine["devices"], machine["versions"], machine.get("gpu")
    name = gpu["name"] if gpu else f"{devices['cpu']}, {devices['cores']} cores, {devices['instructions']}"
    state = f"{commit['hash'][:12]}{' with changes' * bool(commit['dirty'])}" if commit else "unknown"
    yield f"{name}; torch {versions['torch']}, vt_fast {versions['vt_fast']}, commit {state}"
    if settings.get("quick"):
        yield "A quick run: its shapes are tiny and its numbers mean nothing."
    if settings.get("tf32"):
        yield "TF32: all contenders may multiply fp32 with the precision of fp16."
    if not run.facts["complete"]:
        yield "This run was stopped before its end."
    absent = settings.get("absent", {})
    for reason in unique(absent.values()):
        yield f"Not installed: {', '.join(name for name in absent if absent[name] == reason)}: {reason}"
    left_out = run.facts.get("left_out", [])
    for why in unique(each["why"] for each in left_out):
        names = [each["case"] for each in left_out if each["why"] == why]
        yield f"Left out for lack of {why}: {len(names)} cases, such as {names[0]}"
    yield from (f"Problem: {problem}" for problem in run.facts["problems"])


def _sections(run: Run) -> list[Section]:
    found: list[Section] = []
    for mode in unique(row.mode for row in run.rows):
        rows = [row for row in run.rows if row.mode == mode]
        found += _MODES.get(mode, _contenders)(rows)
    failed: dict[tuple[str, str], list[Row]] = {}
    for row in run.rows:
        if row.status != OK:
            failed.setdefault((row.contender, row.status), []).append(row)
    if failed:
        records = [
            {
                "contender": name,
                "status": status,
                "cells": len(rows),
                "first": f"{rows[0].label}: {rows[0].reason}",
            }
            for (name, status), rows in failed.items()
        ]
        found.append(Section("Without a time", (), [table("", records)]))
    return found


def _environment(run: Run) -> Section:
    return Section("Environment", (), [table("Facts", list(_flat(run.facts)))])


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[Record]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield {"fact": f"{prefix}{name}", "value": "unknown" if value is None else str(value)}


def table(title: str, records: Any) -> tuple[str, DataFrame]:
    """A table of texts. What is the same in all rows moves to the title; empty columns are left out."""
    import pandas as pd

    frame = pd.DataFrame(records).astype(object).fillna("")
    frame = frame.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
    same = [
        name
        for name in ("dtype", "layout", "threads", "clock")
        if name in frame and frame[name].nunique() == 1
    ]
    title = ", ".join(filter(None, [title, *(frame[name].iloc[0] for name in same)]))
    return title, frame.drop(columns=[*same, *(name for name in frame if (frame[name] == "").all())])


def _ops(rows: Sequence[Row]) -> Iterator[Section]:
    yield _summary(rows)
    lines = [
        f"Speedup: the {FASTEST}'s time divided by ours. Columns named after a contender: its time "
        "divided by ours, above 1 it is slower."
    ]
    tables = []
    for part in by(cells(rows), lambda row: (row.dtype, row.threads, row.clock)).values():
        records = []
        for cell in part:
            first, ours, peer = cell.rows[0], cell.ours, cell.fastest_peer
            records.append(
                {
                    **_names(first),
                    "ms": _time(ours),
                    "spread": spread(ours),
                    "floor ms": digits(1e3 * first.floor) if first.floor else "-",
                    "time / floor": cell.over_floor or "-",
                    "bound": first.bound,
                    "speedup": cell.speedup or "-",
                    FASTEST: peer.contender if peer else "-",
                    "extra MB": _megabytes(ours),
                    "its extra MB": _megabytes(peer),
                    **{row.contender: _multiple(row, ours) for row in cell.rows if row is not ours},
                }
            )
        tables.append(table("", records))
    yield Section("Ops", [*lines, _NOTE], tables)


def _summary(rows: Sequence[Row]) -> Section:
    """Means of speedups, times over floors and how many miss their target, and the worst cells."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "op": cell.rows[0].case,
            "dtype": cell.rows[0].dtype,
            "threads": place("", cell.rows[0].threads),
            "pass": cell.rows[0].which,
            "cell": cell.rows[0].label,
            FASTEST: cell.fastest_peer.contender if cell.fastest_peer else "-",
            "speedup": cell.speedup,
            "over": cell.over_floor,
            "target": target(cell.rows[0]),
        }
        for cell in cells(rows)
    )
    known, floors = frame.dropna(subset=["speedup"]), frame.dropna(subset=["over"])
    floors = floors.assign(missed=floors["over"] > floors["target"])
    numbers = {"geometric mean": geometric_mean, "least": "min", "largest": "max", "cells": "count"}
    means = [
        known.groupby(keys, sort=False)["speedup"].agg(**numbers).reset_index()
        for keys in (["dtype", "threads", "pass"], ["pass"])
    ]
    columns = {"median": "median", "largest": "max", "cells": "count"}
    groups = floors.groupby(["op", "dtype", "threads"], sort=False)
    over = groups["over"].agg(**columns).join(groups.agg(target=("target", "max"), missed=("missed", "sum")))
    lines = [f"{(known['speedup'] < 1).sum()} of {len(known)} cells are slower than their {FASTEST}."]
    for dtype, part in floors.dropna(subset=["target"]).groupby("dtype", sort=False):
        lines.append(f"{dtype}: {part['missed'].sum()} of {len(part)} cells miss their target.")
    # No time may be below the floor by more than its own noise.
    timed = [row for row in rows if row.floor and row.median]
    low = [row for row in timed if (row.median or 0.0) < (row.floor or 0.0)]
    below = [row for row in low if (row.high or 0.0) < (row.floor or 0.0)]
    counts = [len({row.cell for row in part}) for part in (below, timed, low)]
    lines.append(
        f"Below the floor by more than noise (even the 80 % quantile is): {counts[0]} of {counts[1]} cells; "
        f"below it at all: {counts[2]}."
    )
    below.sort(key=lambda row: (row.median or 0.0) / (row.floor or 1.0))
    under = [
        {
            "cell": row.label,
            "contender": row.contender,
            "time / floor": (row.median or 0.0) / (row.floor or 1.0),
        }
        for row in below[:_WORST]
    ]
    tables = {
        f"Speedup over the {FASTEST}": pd.concat(means).fillna("all"),
        "Our time in multiples of the floor": over.reset_index(),
        "Least speedups": known.nsmallest(_WORST, "speedup")[["cell", FASTEST, "speedup"]],
        "Furthest below the floor": under,
    }
    return Section("Summary", lines, [table(title, part) for title, part in tables.items() if len(part)])


def _contenders(rows: Sequence[Row]) -> Iterator[Section]:
    """A line for each contender: stacks, layers and networks."""
    found, records = cells(rows), []
    for cell in found:
        replaced = next((row for row in cell.rows if row.role == REPLACED), None)
        for row in cell.rows:
            record = {**_names(row), "contender": row.contender, "ms": _time(row), "spread": spread(row)}
            if row.mode == "models":
                record["images/s"] = digits(images(row) / row.median) if row.median else "-"
                record["GFLOPs"] = digits(row.work / 1e9) if row.work else "-"
                record["convolutions / this"] = _multiple(replaced, row)
            records.append({**record, "this / ours": _multiple(row, cell.ours), "extra MB": _megabytes(row)})
    lines = []
    for which, part in by(found, lambda row: row.which).items():
        known = [cell.speedup for cell in part if cell.speedup]
        if known:
            mean, ends = geometric_mean(known), f"{min(known):.2f} to {max(known):.2f}"
            lines.append(f"{which}: {mean:.2f} times as fast as the {FASTEST} ({ends}, {len(known)} cells).")
    titles = {"stack": "Stack of modules", "layers": "Real layers", "models": "Networks"}
    yield Section(titles.get(rows[0].mode, rows[0].mode), [*lines, _NOTE], [table("", records)])


def _scaling(rows: Sequence[Row]) -> Iterator[Section]:
    for name in unique(text.partition("=")[0] for row in rows for text in row.series.split()):
        found = {
            cell: int(dict(text.split("=") for text in cell.rows[0].series.split())[name])
            for cell in cells(row for row in rows if f"{name}=" in row.series)
        }
        order = sorted(
            found, key=lambda cell: (cell.rows[0].case.split()[0], cell.rows[0].which, found[cell])
        )
        yield Section(
            f"Against {name}",
            (),
            [
                table(title, [{name: found[cell], **_wide(cell, text)} for cell in order])
                for title, text in (("ms", _time), ("extra MB", _megabytes))
            ],
        )


def _overhead(rows: Sequence[Row]) -> Iterator[Section]:
    for title, first, text in (("Calls, us", False, _microseconds), ("First calls, ms", True, _time)):
        records = [_wide(cell, text) for cell in cells(row for row in rows if is_first_call(row) == first)]
        if records:
            yield Section(title, (), [table("", records)])


def _ceilings(rows: Sequence[Row]) -> Iterator[Section]:
    records = []
    for row in rows:
        rate = digits(row.work / row.median / 1e9) if row.work and row.median else "-"
        unit = f"G{plots.RATES[row.case]}/s" if row.case in plots.RATES else "GHz"
        record = {**_names(row), "by": row.contender, "rate": rate, "unit": unit, "spread": spread(row)}
        records.append({**record, "rounds": row.rounds})
    yield Section("Ceilings of the machine", (), [table("", records)])


_MODES: Mapping[str, Callable[[Sequence[Row]], Iterator[Section]]] = {
    "ops": _ops,
    "scaling": _scaling,
    "overhead": _overhead,
    "ceilings": _ceilings,
}


def _names(row: Row) -> Record:
    which = row.which.replace("forward", "fwd").replace("backward", "bwd")
    names = {"case": row.case, "shape": row.shape, "pass": which, "dtype": row.dtype, "layout": row.layout}
    return {**names, "threads": place("", row.threads), "clock": row.clock if row.clock != "wall" else ""}


def _wide(cell: Cell, text: Callable[[Row], str]) -> Record:
    """A column for each contender."""
    return {**_names(cell.rows[0]), **{row.contender: text(row) for row in cell.rows}}


def _time(row: Row | None, unit: float = 1e-3) -> str:
    if row is None:
        return "-"
    if row.status == SKIPPED and row.needs_bytes:
        return f"needs {digits(row.needs_bytes / 1e9)} GB"
    return digits(row.median / unit) if row.median else SHORT.get(row.status, "-")


def _microseconds(row: Row) -> str:
    return _time(row, 1e-6)


def _multiple(row: Row | None, of: Row | None) -> str:
    if row is None or not row.median:
        return "" if row is None else SHORT.get(row.status, "-")
    return f"{row.median / of.median:.2f}" if of and of.median else "-"


def _megabytes(row: Row | None) -> str:
    return "-" if row is None or row.extra_bytes is None else digits(row.extra_bytes / 1e6)


def _page(parts: Sequence[Record]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    jinja = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return jinja.get_template("report.html.jinja").render(parts=parts, svg=plots.svg, numeric=_numeric)


def _markdown(parts: Sequence[Record]) -> Iterator[str]:
    yield "# vt_fast benchmarks"
    for part in parts:
        yield from [f"## {part['name']}", *part["head"]]
        for each in part["pictures"]:
            yield from [f"### {each.title}", f"![{each.title}]({each.name}.png)", each.caption]
        for section in part["sections"]:
            yield from [f"### {section.title}", *section.lines]
            for title, frame in section.tables:
                yield from filter(None, [title and f"**{title}**", as_text(frame, "pipe")])
