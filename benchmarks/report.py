"""A run in tables: for the terminal, as Markdown beside PNGs, and as one HTML page that needs nothing else."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import plots
from benchmarks.plots import FASTEST, digits, geometric_mean, images, place, target, unique
from benchmarks.results import OK, OURS, SHORT, SKIPPED, Cell, Row, Run, cells

TITLE = "vt_fast benchmarks"
SUMMARY = "Summary"
# How many cells below the floor are named.
_NAMED = 10
_NUMBER = re.compile(r"[-+]?[\d.]+( ?%)?( [-+].*)?")

Record = Mapping[str, str]


class Table(NamedTuple):
    """Records, whose keys are the columns."""

    title: str
    records: Sequence[Record]

    @property
    def columns(self) -> dict[str, bool]:
        """The columns, and whether each holds numbers."""
        names = unique(name for record in self.records for name in record)
        return {name: _is_numeric([record.get(name, "") for record in self.records]) for name in names}


class Section(NamedTuple):
    """Lines of text and tables under a heading."""

    title: str
    lines: Sequence[str]
    tables: Sequence[Table]


class Part(NamedTuple):
    """What a page says of one file; ``tiles`` are its most important numbers, each with what it is."""

    name: str
    head: Sequence[str]
    tiles: Sequence[tuple[str, str]]
    pictures: Sequence[plots.Drawing]
    sections: Sequence[Section]


def show(run: Run) -> str:
    """All tables of a run for the terminal, the summary last, where it is seen first."""
    parts = ["\n".join(_head(run))]
    for section in sorted(_sections(run), key=lambda section: section.title == SUMMARY):
        parts.append(f"{section.title}\n{'=' * len(section.title)}")
        parts += ["\n".join(filter(None, (each.title, as_text(each.records)))) for each in section.tables]
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
    parts = [
        Part(
            name,
            list(_head(run)),
            list(_tiles(run)),
            [drawing._replace(name=f"{name}-{drawing.name}") for drawing in plots.draw(run)],
            [] if pictures is not None else [*_sections(run), _environment(run)],
        )
        for name, run in runs
    ]
    drawings = {drawing.name: drawing for part in parts for drawing in part.pictures}
    unknown = [name for name in pictures or () if name not in drawings]
    if unknown:
        raise ValueError(f"`pictures` must be of {', '.join(drawings)}, got {', '.join(unknown)}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if pictures is None:
        for name, text in (("report.html", _page(parts)), ("report.md", "\n".join(_markdown(parts)))):
            (folder / name).write_text(text)
            written.append(folder / name)
    for name in drawings if pictures is None else pictures:
        written.append(plots.png(drawings[name].figure, folder / f"{name}.png"))
    return written


def as_text(records: Sequence[Record], form: str = "simple") -> str:
    """A table in one of tabulate's formats; nothing if there are no records."""
    import pandas as pd

    if not records:
        return ""
    columns = Table("", records).columns
    frame = pd.DataFrame(records, columns=list(columns), dtype=str).fillna("")
    if form == "simple":
        frame.columns = pd.Index([textwrap.fill(name, 10, break_long_words=False) for name in columns])
    else:
        frame = frame.replace(r"\|", r"\\|", regex=True)  # a bar would end the cell
    sides = ["right" if numeric else "left" for numeric in columns.values()]
    return str(frame.to_markdown(index=False, tablefmt=form, disable_numparse=True, colalign=sides))


def duration(seconds: float | None) -> str:
    """A time with its unit.

    Example:
        >>> duration(0.00123), duration(4.56e-5), duration(None)
        ('1.23 ms', '45.6 us', '-')
    """
    if seconds is None:
        return "-"
    return f"{digits(1e3 * seconds)} ms" if seconds >= 1e-3 else f"{digits(1e6 * seconds)} us"


def spread(row: Row | None) -> str:
    """How far the 20 % and 80 % quantiles of its times are from the median."""
    if row is None or not row.median:
        return "-"
    return " ".join(f"{(end or row.median) / row.median - 1:+.0%}" for end in (row.low, row.high))


def _head(run: Run) -> Iterator[str]:
    """The machine, the versions, and what concerns the run as a whole."""
    machine, settings, commit = run.facts["machine"], run.facts["settings"], run.facts["commit"]
    devices, versions, gpu = machine.get("devices", {}), machine.get("versions", {}), machine.get("gpu")
    if gpu:
        yield f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB"
    else:
        yield f"{devices.get('cpu')}, {devices.get('cores')} cores, {devices.get('instructions')}"
    changes = " with changes" if commit and commit.get("dirty") else ""
    yield (
        f"torch {versions.get('torch')}, vt_fast {versions.get('vt_fast')}, "
        f"commit {commit['hash'][:12] if commit else 'unknown'}{changes}"
    )
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
        mine = [each for each in left_out if each["why"] == why]
        yield f"Left out for lack of {why}: {len(mine)} cases, first {mine[0]['case']}: {mine[0]['reason']}"
    yield from (f"Problem: {problem}" for problem in run.facts["problems"])


def _tiles(run: Run) -> Iterator[tuple[str, str]]:
    found = cells(row for row in run.rows if row.mode not in ("scaling", "overhead"))
    for which in unique(cell.rows[0].which for cell in found):
        speedups = _speedups(found, which)
        if speedups:
            text = f"times as fast as the {FASTEST}, {which}, geometric mean"
            yield f"{geometric_mean(speedups):.2f}", text
    over = sorted(cell.over_floor for cell in found if cell.over_floor)
    if over:
        yield f"{over[len(over) // 2]:.2f}", "floors in the median cell"
    yield str(len(cells(run.rows))), "cells"


def _speedups(found: Sequence[Cell], which: str) -> list[float]:
    return [cell.speedup for cell in found if cell.speedup and cell.rows[0].which == which]


def _sections(run: Run) -> Iterator[Section]:
    for mode in unique(row.mode for row in run.rows):
        yield from _MODES.get(mode, _contenders)([row for row in run.rows if row.mode == mode])
    failed: dict[tuple[str, str], list[Row]] = {}
    for row in run.rows:
        if row.status != OK:
            failed.setdefault((row.contender, row.status), []).append(row)
    records = [
        {
            "contender": name,
            "status": status,
            "cells": str(len(rows)),
            "first": f"{rows[0].label}: {rows[0].reason}",
        }
        for (name, status), rows in failed.items()
    ]
    if records:
        yield Section("Without a time", (), [Table("", records)])


def _ops(rows: Sequence[Row]) -> Iterator[Section]:
    yield _summary(cells(rows))
    tables = []
    for dtype, threads, clock in unique((row.dtype, row.threads, row.clock) for row in rows):
        part = cells(row for row in rows if (row.dtype, row.threads, row.clock) == (dtype, threads, clock))
        unit, factor = _unit(part)
        others = unique(row.contender for cell in part for row in cell.rows if row.role != OURS)
        records = []
        for cell in part:
            first, ours, peer = cell.rows[0], cell.ours, cell.fastest_peer
            by_name = {row.contender: row for row in cell.rows}
            records.append(
                {
                    "op": first.case,
                    "BxNxCxL": first.shape,
                    "layout": first.layout,
                    "pass": _short(first),
                    unit: _time(ours, factor),
                    "spread": spread(ours),
                    f"floor {unit}": digits(first.floor / factor) if first.floor else "-",
                    "time / floor": _ratio(cell.over_floor),
                    "bound": first.bound,
                    "speedup": _ratio(cell.speedup),
                    FASTEST: peer.contender if peer else "-",
                    **{name: _multiple(by_name.get(name), ours) for name in others},
                    "extra MB": _megabytes(ours),
                    "its extra MB": _megabytes(peer),
                }
            )
        tables.append(Table(place(dtype, threads) + f", {clock}" * (clock != "wall"), records))
    lines = [
        f"Times are medians, the spread that of the 20 % and 80 % quantiles. Speedup: the {FASTEST}'s time in "
        "multiples of ours. Columns named after a contender: its time in multiples of ours, above 1 it is slower. "
        "Extra: peak memory above inputs, results and gradients."
    ]
    yield Section("Ops", lines, tables)


def _summary(found: Sequence[Cell]) -> Section:
    """Means of speedups, times over floors and how many miss their target, and the worst cells."""
    import pandas as pd

    keys = ("case", "dtype", "threads", "which", "bound")
    frame = pd.DataFrame(
        {
            **{key: str(getattr(cell.rows[0], key)) for key in keys},
            "speedup": cell.speedup,
            "over": cell.over_floor,
            "target": target(cell.rows[0]),
        }
        for cell in found
    )
    means, over = [], []
    for by in (["dtype", "threads", "which"], ["which"]):
        for names, part in frame.dropna(subset=["speedup"]).groupby(by, sort=False)["speedup"]:
            numbers = {"geometric mean": geometric_mean(part), "least": part.min(), "largest": part.max()}
            means.append(
                {
                    **{"dtype": "all", "threads": "all", **dict(zip(by, names, strict=True))},
                    **{name: _ratio(number) for name, number in numbers.items()},
                    "below 1": str((part < 1).sum()),
                    "cells": str(len(part)),
                }
            )
    for names, part in frame.dropna(subset=["over"]).groupby(["case", "dtype", "threads"], sort=False):
        limits = "/".join(map(_ratio, unique(part["target"].dropna())))
        over.append(
            {
                **dict(zip(("op", "dtype", "threads"), names, strict=True)),
                "median": _ratio(part["over"].median()),
                "largest": _ratio(part["over"].max()),
                "bound by bytes": str((part["bound"] == "bytes").sum()),
                "target": limits or "-",
                "misses": str((part["over"] > part["target"]).sum()) if limits else "-",
                "cells": str(len(part)),
            }
        )
    nearest = [
        {"cell": cell.rows[0].label, FASTEST: peer.contender, "speedup": _ratio(cell.speedup)}
        for cell in sorted((cell for cell in found if cell.speedup), key=lambda cell: cell.speedup or 0.0)[:5]
        if (peer := cell.fastest_peer)
    ]
    titles = (f"Speedup over the {FASTEST}", "Our time in multiples of the floor", "Least speedups")
    tables = [Table(title, part) for title, part in zip(titles, (means, over, nearest), strict=True)]
    return Section(SUMMARY, list(_counts(found)), [table for table in tables if table.records])


def _counts(found: Sequence[Cell]) -> Iterator[str]:
    """What misses its target; and what no time may be: below the floor by more than its own noise."""
    for dtype in unique(cell.rows[0].dtype for cell in found):
        mine = [
            cell for cell in found if cell.rows[0].dtype == dtype and cell.over_floor and target(cell.rows[0])
        ]
        missed = sum((cell.over_floor or 0.0) > (target(cell.rows[0]) or 0.0) for cell in mine)
        if mine:
            yield f"{dtype}: {missed} of {len(mine)} cells miss their target."
    rows = [row for cell in found for row in cell.rows if row.floor and row.median]
    below = [row for row in rows if (row.high or row.median or 0.0) < (row.floor or 0.0)]
    within = [row for row in rows if row not in below and (row.median or 0.0) < (row.floor or 0.0)]
    if rows:
        counts = [len({row.cell for row in part}) for part in (below, rows, within)]
        yield (
            f"Below the floor by more than noise (even the 80 % quantile is): {counts[0]} of {counts[1]} cells; "
            f"below it within noise: {counts[2]}."
        )
    for row in below[:_NAMED]:
        yield f"{row.label}, {row.contender}: {(row.median or 0.0) / (row.floor or 1.0):.2f} floors ({row.bound})"
    if len(below) > _NAMED:
        yield f"And {len(below) - _NAMED} more."


def _contenders(rows: Sequence[Row]) -> Iterator[Section]:
    """A line for each contender: stacks, layers and networks."""
    found = cells(rows)
    unit, factor = _unit(found)
    records = []
    for cell in found:
        replaced = next((row for row in cell.rows if row.contender == "convolutions"), None)
        for row in cell.rows:
            record = _names(row, rows)
            record |= {"contender": row.contender, unit: _time(row, factor), "spread": spread(row)}
            if row.mode == "models":
                record["images/s"] = digits(images(row) / row.median) if row.median else "-"
                record["GFLOPs"] = digits(row.work / 1e9) if row.work else "-"
                record["convolutions / this"] = _multiple(replaced, row)
            records.append({**record, "this / ours": _multiple(row, cell.ours), "extra MB": _megabytes(row)})
    lines = []
    for which in unique(row.which for row in rows):
        speedups = _speedups(found, which)
        if speedups:
            mean, ends = geometric_mean(speedups), f"{min(speedups):.2f} to {max(speedups):.2f}"
            lines.append(
                f"{which}: {mean:.2f} times as fast as the {FASTEST} ({ends}, {len(speedups)} cells)."
            )
    titles = {"stack": "Stack of modules", "layers": "Real layers", "models": "Networks"}
    yield Section(titles.get(rows[0].mode, rows[0].mode), lines, [Table(_constant(rows), records)])


def _scaling(rows: Sequence[Row]) -> Iterator[Section]:
    """Tables for each size that varies, with a column for each contender."""
    for name in unique(text.partition("=")[0] for row in rows for text in row.series.split()):
        mine = [row for row in rows if f"{name}=" in row.series]
        values = {
            cell: int(dict(text.split("=") for text in cell.rows[0].series.split())[name])
            for cell in cells(mine)
        }
        found = sorted(
            values, key=lambda cell: (cell.rows[0].case.split()[0], cell.rows[0].which, values[cell])
        )
        tables = []
        for title, value in (("ms", lambda row: _time(row, 1e-3)), ("extra MB", _megabytes)):
            records = [{name: str(values[cell]), **_wide(cell, mine, value)} for cell in found]
            tables.append(Table(f"{title}, {_constant(mine)}", records))
        yield Section(f"Against {name}", (), tables)


def _overhead(rows: Sequence[Row]) -> Iterator[Section]:
    """Calls that compute next to nothing, and first calls, with a column for each contender."""
    first = [row for row in rows if plots.is_first_call(row)]
    calls = [row for row in rows if not plots.is_first_call(row)]
    for title, part, factor in (("Calls, us", calls, 1e-6), ("First calls, ms", first, 1e-3)):
        records = [_wide(cell, part, lambda row, factor=factor: _time(row, factor)) for cell in cells(part)]
        if records:
            yield Section(title, (), [Table(_constant(part), records)])


def _ceilings(rows: Sequence[Row]) -> Iterator[Section]:
    records = [
        {
            **_names(row, rows),
            "rate": digits(row.work / row.median / 1e9) if row.work and row.median else "-",
            "unit": "GB/s" if row.bound == "bytes" else "GFLOP/s",
            "spread": spread(row),
            "rounds": str(row.rounds),
        }
        for row in rows
    ]
    yield Section("Ceilings of the machine", (), [Table(_constant(rows), records)])


_MODES: Mapping[str, Callable[[Sequence[Row]], Iterator[Section]]] = {
    "ops": _ops,
    "scaling": _scaling,
    "overhead": _overhead,
    "ceilings": _ceilings,
}


def _environment(run: Run) -> Section:
    def flat(values: Any, prefix: str = "") -> Iterator[Record]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield {"fact": f"{prefix}{name}", "value": "unknown" if value is None else str(value)}

    return Section("Environment", (), [Table("Machine and settings", list(flat(run.facts)))])


def _varying(row: Row) -> dict[str, str]:
    return {
        "dtype": row.dtype,
        "layout": row.layout,
        "threads": place("", row.threads),
        "clock": row.clock if row.clock != "wall" else "",
    }


def _names(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    """What a row is of; dtype, layout, threads and clock only where they vary."""
    varying = {
        name: value
        for name, value in _varying(row).items()
        if len({_varying(each)[name] for each in rows}) > 1
    }
    return {"case": row.case, "shape": row.shape, "pass": _short(row), **varying}


def _constant(rows: Sequence[Row]) -> str:
    """What :func:`_names` leaves out."""
    return ", ".join(
        value for name, value in _varying(rows[0]).items() if value and name not in _names(rows[0], rows)
    )


def _wide(cell: Cell, rows: Sequence[Row], value: Callable[[Row], str]) -> dict[str, str]:
    return {**_names(cell.rows[0], rows), **{row.contender: value(row) for row in cell.rows}}


def _short(row: Row) -> str:
    return row.which.replace("forward", "fwd").replace("backward", "bwd")


def _unit(found: Sequence[Cell]) -> tuple[str, float]:
    """Milliseconds, or microseconds where most times are shorter than a tenth of one."""
    times = sorted(cell.ours.median for cell in found if cell.ours and cell.ours.median)
    return ("us", 1e-6) if times and times[len(times) // 2] < 1e-4 else ("ms", 1e-3)


def _time(row: Row | None, factor: float) -> str:
    if row is None or row.median:
        return digits(row.median / factor) if row and row.median else "-"
    if row.status == SKIPPED and row.needs_bytes:
        return f"needs {digits(row.needs_bytes / 1e9)} GB"
    return SHORT.get(row.status, "-")


def _multiple(row: Row | None, of: Row | None) -> str:
    if row is None or not row.median:
        return "" if row is None else SHORT.get(row.status, "-")
    return _ratio(row.median / of.median if of and of.median else None)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _megabytes(row: Row | None) -> str:
    return "-" if row is None or row.extra_bytes is None else digits(row.extra_bytes / 1e6)


def _is_numeric(texts: Sequence[str]) -> bool:
    known = [
        text for text in texts if text not in ("", "-", *SHORT.values()) and not text.startswith("needs ")
    ]
    return bool(known) and all(map(_NUMBER.fullmatch, known))


def _page(parts: Sequence[Part]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(title=TITLE, parts=parts, svg=plots.svg)


def _markdown(parts: Sequence[Part]) -> Iterator[str]:
    yield f"# {TITLE}\n"
    for part in parts:
        yield f"## {part.name}\n"
        yield from (f"{line}\n" for line in part.head)
        yield "\n".join(f"- **{value}** {text}" for value, text in part.tiles) + "\n"
        for each in part.pictures:
            yield f"### {each.title}\n\n![{each.title}]({each.name}.png)\n\n{each.caption}\n"
        for section in part.sections:
            yield f"### {section.title}\n"
            yield from (f"{line}\n" for line in section.lines)
            for table in section.tables:
                yield from (f"**{table.title}**\n",) if table.title else ()
                yield as_text(table.records, "pipe") + "\n"
