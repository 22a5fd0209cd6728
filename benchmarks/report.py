"""A run in tables: for the terminal, as Markdown beside PNGs, and as an HTML page that needs nothing else."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import plots
from benchmarks.plots import FASTEST, digits
from benchmarks.results import OK, OURS, PART, PEER, SHORT, SKIPPED, Run, frame, place

if TYPE_CHECKING:
    from pandas import DataFrame

# Our time in multiples of the floor, at most, on a CPU.
_TARGETS = {"fp32": 1.25, "bf16": 1.6}
# How many cells or times are listed as the worst.
_WORST = 5
_NUMBER = "|".join(["-?", r"[-+]?[\d.]+%?( [-+]\d+%)?", "needs .*", *SHORT.values()])
_NOTE = (
    "Times are medians, the spread that of the 20 % and 80 % quantiles. Extra: peak memory above inputs, "
    "results and gradients."
)
# Columns that tell a cell from others. The second four move to the title where they are the same in all rows.
_NAMES = ["case", "shape", "pass", "dtype", "layout", "threads", "clock"]
_SHARED = ["dtype", "layout", "threads", "clock"]


class Section(NamedTuple):
    """Lines of text and titled tables under a heading."""

    title: str
    lines: Sequence[str]
    tables: Sequence[tuple[str, DataFrame]]


def show(run: Run) -> str:
    """All tables of a run for the terminal, the summary last, where it is seen first."""
    parts = ["\n".join(_head(run))]
    for section in sorted(_sections(frame(run.rows)), key=lambda section: section.title == "Summary"):
        parts.append(f"{section.title}\n{'=' * len(section.title)}")
        parts += [f"{title}\n{as_text(part)}".strip() for title, part in section.tables]
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
    frames = {name: frame(run.rows) for name, run in runs}
    drawn = {
        name: [each._replace(name=f"{name}-{each.name}") for each in plots.draw(data)]
        for name, data in frames.items()
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
                "sections": [*_sections(frames[name]), _environment(run)],
            }
            for name, run in runs
        ]
        for suffix, text in (("html", _page(parts)), ("md", "\n\n".join(_markdown(parts)) + "\n")):
            written.append(folder / f"report.{suffix}")
            written[-1].write_text(text)
    return written


def as_text(data: DataFrame, form: str = "simple") -> str:
    """A table in one of tabulate's formats; nothing if it is empty."""
    if data.empty:
        return ""
    sides = ["right" if numeric else "left" for numeric in _numeric(data).values()]
    if form == "simple":
        data = data.rename(columns=lambda name: textwrap.fill(name, 10, break_long_words=False))
    else:
        data = data.replace(r"\|", r"\\|", regex=True)  # a bar would end the cell
    return str(data.to_markdown(index=False, tablefmt=form, disable_numparse=True, colalign=sides))


def spread(median: float, low: float, high: float) -> str:
    """How far the 20 % and 80 % quantiles are from the median."""
    return f"{low / median - 1:+.0%} {high / median - 1:+.0%}" if median > 0 else "-"


def table(title: str, data: DataFrame) -> tuple[str, DataFrame]:
    """A table of texts. What is the same in all rows moves to the title; empty columns are left out."""
    data = data.astype(object).fillna("")
    data = data.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
    same = [name for name in _SHARED if name in data and data[name].nunique() == 1]
    title = ", ".join(filter(None, [title, *(data[name].iloc[0] for name in same)]))
    return title, data.drop(columns=[*same, *(name for name in data if (data[name] == "").all())])


def _numeric(data: DataFrame) -> dict[str, bool]:
    """Whether each column holds numbers."""
    return {name: bool(data[name].str.fullmatch(_NUMBER).all()) for name in data.columns}


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
    for reason in dict.fromkeys(absent.values()):
        yield f"Not installed: {', '.join(name for name in absent if absent[name] == reason)}: {reason}"
    left_out = run.facts.get("left_out", [])
    for why in dict.fromkeys(each["why"] for each in left_out):
        names = [each["case"] for each in left_out if each["why"] == why]
        yield f"Left out for lack of {why}: {len(names)} cases, such as {names[0]}"
    yield from (f"Problem: {problem}" for problem in run.facts["problems"])


def _environment(run: Run) -> Section:
    import pandas as pd

    facts = pd.json_normalize(run.facts).iloc[0].map(lambda value: "unknown" if value is None else str(value))
    return Section("Environment", (), [("Facts", facts.rename_axis("fact").reset_index(name="value"))])


def _sections(data: DataFrame) -> list[Section]:
    found: list[Section] = []
    for mode, part in _written(data).groupby("mode", sort=False):
        found += _MODES.get(mode, _contenders)(part)
    lost = data[data.status != OK].assign(first=lambda rows: rows.cell + ": " + rows.reason)
    if len(lost):
        groups = lost.groupby(["contender", "status"], sort=False)
        records = groups.agg(cells=("cell", "size"), first=("first", "first")).reset_index()
        found.append(Section("Without a time", (), [table("", records)]))
    return found


def _written(data: DataFrame) -> DataFrame:
    """The frame with the columns of tables, whose numbers are texts."""
    rows = list(data.itertuples())
    replaced = data[data.contender == "convolutions"].set_index("cell")["median"]
    images = data["shape"].str.partition("x")[0].where(data["mode"] == "models").astype(float)
    short = data.status.map(SHORT)
    return data.assign(
        **{
            "pass": data.which.str.replace("forward", "fwd").str.replace("backward", "bwd"),
            "threads": data.threads.map(place),
            "clock": data.clock.replace("wall", ""),
            "ms": [_time(row, 1e3) for row in rows],
            "us": [_time(row, 1e6) for row in rows],
            "spread": [spread(row.median, row.low, row.high) for row in rows],
            "floor ms": (1e3 * data.floor).map(digits),
            "time / floor": data.over_floor.map(_ratio),
            "faster": data.speedup.map(_ratio),
            FASTEST: data.fastest.fillna("-"),
            "this / ours": short.fillna(data.relative.map(_ratio)),
            "extra MB": (data.extra_bytes / 1e6).map(digits),
            "its extra MB": (data.fastest_bytes / 1e6).map(digits),
            "images/s": (images / data["median"]).map(digits),
            "convolutions / this": (data.cell.map(replaced) / data["median"]).map(_ratio),
            "rate": (data.work / data["median"] / 1e9).map(digits),
        }
    )


def _time(row: Any, units: float) -> str:
    """In so many of the unit a second."""
    if row.status == SKIPPED and row.needs_bytes > 0:
        return f"needs {digits(row.needs_bytes / 1e9)} GB"
    return SHORT.get(row.status) or digits(row.median * units)


def _ratio(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _wide(data: DataFrame, text: str, *columns: str) -> DataFrame:
    """A row for each cell: these columns of its first row, and a column for each contender."""
    texts = data.pivot(index="cell", columns="contender", values=text)[list(data.contender.unique())]
    first = data.drop_duplicates("cell").set_index("cell")[[*columns]]
    return first.join(texts).reset_index(drop=True)


def _ops(data: DataFrame) -> Iterator[Section]:
    yield _summary(data)
    yield from _cells(data)


def _cells(data: DataFrame) -> Iterator[Section]:
    """A line for each cell, with floors."""
    lines = [
        f"Speedup: the {FASTEST}'s time divided by ours. Columns named after a contender: its time "
        "divided by ours, above 1 it is slower."
    ]
    columns = ["ms", "spread", "floor ms", "time / floor", "bound", "faster", FASTEST]
    tables = []
    for _, part in data.groupby(["dtype", "where"], sort=False):
        part = part.sort_values("role", key=lambda roles: roles != OURS, kind="stable")
        wide = _wide(part, "this / ours", *_NAMES, *columns, "extra MB", "its extra MB")
        mine = part[part.role == OURS].contender.unique()
        tables.append(table("", wide.drop(columns=mine).rename(columns={"faster": "speedup"})))
    yield Section(data["mode"].iloc[0].capitalize(), [*lines, _NOTE], tables)


def _summary(data: DataFrame) -> Section:
    """Means of speedups, times over floors and how many miss their target, and the worst cells."""
    import pandas as pd

    ours = data[data.role == OURS].rename(columns={"case": "op"})
    known, floors = ours.dropna(subset="speedup"), ours.dropna(subset="over_floor")
    floors = floors.assign(target=floors.dtype.map(_TARGETS).where(floors.threads != ""))
    floors = floors.assign(missed=floors.over_floor > floors.target)
    numbers = {"geometric mean": geometric_mean, "least": "min", "largest": "max", "cells": "count"}
    means = [
        known.groupby(keys, sort=False)["speedup"].agg(**numbers).reset_index()
        for keys in (["dtype", "threads", "which"], ["which"])
    ]
    peers = data[data.role == PEER].dropna(subset="relative").groupby("contender", sort=False)["relative"]
    groups = floors.groupby(["op", "dtype", "threads"], sort=False)
    over = groups.agg(
        median=("over_floor", "median"),
        largest=("over_floor", "max"),
        cells=("over_floor", "count"),
        target=("target", "max"),
        missed=("missed", "sum"),
    )
    lines = [f"{(known.speedup < 1).sum()} of {len(known)} cells are slower than their {FASTEST}."]
    for dtype, part in floors.dropna(subset="target").groupby("dtype", sort=False):
        lines.append(f"{dtype}: {part.missed.sum()} of {len(part)} cells miss their target.")
    # No time may be below the floor by more than its own noise.
    timed = data.dropna(subset="over_floor")
    low, below = timed[timed.over_floor < 1], timed[timed.high < timed.floor]
    counts = [part.cell.nunique() for part in (below, timed, low)]
    lines.append(
        f"Below the floor by more than noise (even the 80 % quantile is): {counts[0]} of {counts[1]} cells; "
        f"below it at all: {counts[2]}."
    )
    tables = {
        f"Speedup over the {FASTEST}": pd.concat(means).fillna("all").rename(columns={"which": "pass"}),
        "Alternatives' times, relative to ours": peers.agg(**numbers).reset_index(),
        "Our time in multiples of the floor": over.reset_index(),
        "Least speedups": known.nsmallest(_WORST, "speedup")[["cell", FASTEST, "speedup"]],
        "Furthest below the floor": below.nsmallest(_WORST, "over_floor")[
            ["cell", "contender", "time / floor"]
        ],
    }
    return Section("Summary", lines, [table(title, part) for title, part in tables.items() if len(part)])


def _contenders(data: DataFrame) -> Iterator[Section]:
    """A line for each contender: stacks, layers and networks."""
    mode = data["mode"].iloc[0]
    lines = []
    for which, part in data[data.role == OURS].dropna(subset="speedup").groupby("which", sort=False):
        ends = f"{part.speedup.min():.2f} to {part.speedup.max():.2f}"
        mean = f"{geometric_mean(part.speedup):.2f} times as fast as the {FASTEST}"
        lines.append(f"{which}: {mean} ({ends}, {len(part)} cells).")
    own = ["images/s", "convolutions / this"] if mode == "models" else []
    columns = [*_NAMES, "contender", "ms", "spread", *own, "this / ours", "extra MB"]
    titles = {
        "stack": "Stack of modules",
        "layers": "Real layers",
        "hosts": "Known libraries, patched",
        "models": "Networks",
    }
    yield Section(titles.get(mode, mode), [*lines, _NOTE], [table("", data[columns])])


def _scaling(data: DataFrame) -> Iterator[Section]:
    for name, part in plots.by_series(data):
        part = part.assign(op=part.case.str.split().str[0]).sort_values(["op", "which", name], kind="stable")
        tables = [
            table(text, _wide(part, text, *dict.fromkeys([name, *_NAMES]))) for text in ("ms", "extra MB")
        ]
        yield Section(f"Against {name}", (), tables)


def _overhead(data: DataFrame) -> Iterator[Section]:
    first = data.case.str.startswith("first call")
    for title, part, text in (("Calls, us", data[~first], "us"), ("First calls, ms", data[first], "ms")):
        if len(part):
            yield Section(title, (), [table("", _wide(part, text, *_NAMES))])


def _profile(data: DataFrame) -> Iterator[Section]:
    """A line for each cell, and means by shape; parts in multiples of the floor."""
    parts = data[data.role == PART].pivot(index="cell", columns="contender", values="over_floor")
    products, *others = names = list(data[data.role == PART].contender.unique())
    cells = data[data.role == OURS].join(parts, on="cell").rename(columns={"over_floor": "all"})
    lines, tables = ["All times but those in ms are in multiples of the floor."], []
    for (dtype, where), some in cells.groupby(["dtype", "where"], sort=False):
        target, title = _TARGETS[dtype], f"{dtype}, {where}"
        over = some[some["all"] > target]
        saved = [f"{(over['all'] - over[name] <= target).sum()} without {name}" for name in others]
        lines.append(
            f"{title}: {len(over)} of {len(some)} cells take over {target} floors. "
            f"{products.capitalize()} alone take as long in {(over[products] > target).sum()}; "
            f"{', '.join(saved)} would not be over it."
        )
        means = some.groupby("shape", sort=False)[["all", *names]].mean().reset_index()
        tables.append(table(f"Means, {title}", means))
        tables.append(table("Cells", some[[*_NAMES, "ms", "all", *names]]))
    yield Section("Profile", lines, tables)


def _ceilings(data: DataFrame) -> Iterator[Section]:
    data = data.assign(
        by=data.contender, unit=data.case.map(plots.RATES).map("G{}/s".format, na_action="ignore")
    )
    columns = [*_NAMES, "by", "rate", "unit", "spread", "rounds"]
    yield Section("Ceilings of the machine", (), [table("", data.fillna({"unit": "GHz"})[columns])])


_MODES: Mapping[str, Callable[[DataFrame], Iterator[Section]]] = {
    "ops": _ops,
    "switches": _cells,
    "scaling": _scaling,
    "overhead": _overhead,
    "profile": _profile,
    "ceilings": _ceilings,
}


def _page(parts: Sequence[dict[str, Any]]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    jinja = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return jinja.get_template("report.html.jinja").render(parts=parts, svg=plots.svg, numeric=_numeric)


def _markdown(parts: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "# vt_fast benchmarks"
    for part in parts:
        yield from [f"## {part['name']}", *part["head"]]
        for each in part["pictures"]:
            yield from [f"### {each.title}", f"![{each.title}]({each.name}.png)", each.caption]
        for section in part["sections"]:
            yield from [f"### {section.title}", *section.lines]
            for title, data in section.tables:
                yield from filter(None, [title and f"**{title}**", as_text(data, "pipe")])
