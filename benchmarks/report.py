"""A run in tables: for the terminal, as Markdown beside PNGs, and as one HTML page that needs no other file."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import plots
from benchmarks.plots import FASTEST, TARGETS, geometric_mean, images, place, unique
from benchmarks.results import CEILING, OK, OURS, PEER, SHORT, SKIPPED, Cell, Row, Run, cells

TITLE = "vt_fast benchmarks"
# Longer tables are folded away in the page; all of them are in the terminal.
_FOLDED = 60
# How many cells below the floor are named.
_NAMED = 10
_NUMBER = re.compile(r"[-+]?[\d.]+( ?%)?( [-+].*)?")
_Record = Mapping[str, str]


class Table(NamedTuple):
    """Records with the same keys, which are the columns."""

    title: str
    records: Sequence[_Record]
    folded: bool = False

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """The columns, and whether each holds numbers."""
        names = unique(name for record in self.records for name in record)
        return [(name, _numeric([record.get(name, "") for record in self.records])) for name in names]


class Section(NamedTuple):
    """Lines of text and tables under a heading."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()


class Part(NamedTuple):
    """What a page says of one file; ``tiles`` are its most important numbers, each with what it is."""

    name: str
    head: Sequence[str]
    tiles: Sequence[tuple[str, str]]
    pictures: Sequence[plots.Drawing]
    sections: Sequence[Section]


def show(run: Run) -> str:
    """All tables of a run for the terminal."""
    parts = ["\n".join(_head(run))]
    # The end is what is seen first.
    for section in sorted(_sections(run), key=lambda section: section.title == "Summary"):
        parts.append(f"{section.title}\n{'=' * len(section.title)}")
        for table in section.tables:
            parts.append("\n".join(filter(None, (table.title, as_text(table.records)))))
        parts += ["\n".join(section.lines)] if section.lines else []
    return "\n\n".join(parts)


def write(runs: Sequence[tuple[str, Run]], folder: Path, pictures: Sequence[str] | None = None) -> list[Path]:
    """Write report.html, and report.md with its pictures; or only the pictures of these names.

    Args:
        runs: named runs; a picture is called after its run and what it shows, as "cpu-roofline".
        folder: made if need be.
        pictures: write these PNGs and nothing else.

    Returns the paths.

    Raises:
        ValueError: there is no picture of that name.
    """
    parts = [
        Part(
            name,
            list(_head(run)),
            list(_tiles(run)),
            [drawing._replace(name=f"{name}-{drawing.name}") for drawing in plots.draw(run)],
            [*_sections(run), _environment(run), _every_row(run)] if pictures is None else [],
        )
        for name, run in runs
    ]
    drawings = {drawing.name: drawing for part in parts for drawing in part.pictures}
    unknown = sorted(set(pictures or ()) - set(drawings))
    if unknown:
        raise ValueError(f"`pictures` must be of {', '.join(drawings)}, got {', '.join(unknown)}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if pictures is None:
        for name, text in (("report.html", _page(parts)), ("report.md", "\n".join(_markdown(parts)))):
            (folder / name).write_text(text)
            written.append(folder / name)
    for name, drawing in drawings.items():
        if pictures is None or name in pictures:
            written.append(plots.png(drawing.figure, folder / f"{name}.png"))
    return written


def as_text(records: Sequence[_Record], form: str = "simple") -> str:
    """A table in one of tabulate's formats; nothing if there are no records."""
    import pandas as pd

    if not records:
        return ""
    table = Table("", records)
    frame = pd.DataFrame(records).fillna("")
    if form == "simple":
        frame.columns = [textwrap.fill(name, 10, break_long_words=False) for name in frame.columns]
    else:
        frame = frame.map(lambda text: text.replace("|", "\\|"))  # it would end the cell
    sides = ["right" if numeric else "left" for _, numeric in table.columns]
    return str(frame.to_markdown(index=False, tablefmt=form, disable_numparse=True, colalign=sides))


def duration(seconds: float | None) -> str:
    """A time with its unit.

    Example:
        >>> duration(0.00123), duration(4.56e-5), duration(None)
        ('1.23 ms', '45.6 us', '-')
    """
    if seconds is None:
        return "-"
    return f"{number(seconds, 1e-3)} ms" if seconds >= 1e-3 else f"{number(seconds, 1e-6)} us"


def spread(row: Row) -> str:
    """How far the 20 % and 80 % quantiles of its times are from the median."""
    if not row.median or row.low is None or row.high is None:
        return "-"
    return f"{row.low / row.median - 1:+.0%} {row.high / row.median - 1:+.0%}"


def number(value: float | None, unit: float = 1.0) -> str:
    """Three digits in plain notation, or a dash.

    Example:
        >>> number(1234.5), number(0.012345), number(1.0), number(None)
        ('1234', '0.0123', '1.00', '-')
    """
    if value is None:
        return "-"
    return plots.digits(value / unit) if value else "0"


def _head(run: Run) -> Iterator[str]:
    """The machine, the versions, and what concerns the run as a whole."""
    facts = run.facts
    machine, settings, commit = facts["machine"], facts["settings"], facts["commit"]
    versions = machine.get("versions", {})
    devices = machine.get("devices", {})
    gpu = machine.get("gpu")
    if isinstance(gpu, Mapping):
        yield f"{gpu.get('name')}, {(gpu.get('memory_bytes') or 0) / 2**30:.0f} GiB"
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
    if not facts["complete"]:
        yield "This run was stopped before its end."
    absent = settings.get("absent") or {}
    for reason in unique(absent.values()):
        yield f"Not installed: {', '.join(name for name in absent if absent[name] == reason)}: {reason}"
    for problem in facts["problems"]:
        yield f"Problem: {problem}"


def _tiles(run: Run) -> Iterator[tuple[str, str]]:
    found = [cell for cell in cells(run.rows) if cell.rows[0].mode != "scaling"]
    for which in unique(cell.rows[0].which for cell in found):
        speedups = [cell.speedup for cell in found if cell.rows[0].which == which and cell.speedup]
        if speedups:
            yield f"{geometric_mean(speedups):.2f} ×", f"as fast as the {FASTEST}, {which}, geometric mean"
    over = sorted(cell.over_floor for cell in found if cell.over_floor)
    if over:
        yield f"{over[len(over) // 2]:.2f} ×", "the floor, in the median cell"
    yield str(len(cells(run.rows))), "cells"


def _sections(run: Run) -> Iterator[Section]:
    for mode in unique(row.mode for row in run.rows):
        rows = [row for row in run.rows if row.mode == mode]
        yield from _MODES.get(mode, _contenders)(rows)
    yield from _missing(run)


def _ops(rows: Sequence[Row]) -> Iterator[Section]:
    yield from _summary(cells(rows))
    tables = []
    for dtype, threads in unique((row.dtype, row.threads) for row in rows):
        part = cells(row for row in rows if (row.dtype, row.threads) == (dtype, threads))
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
                    "spread": spread(ours) if ours else "-",
                    f"floor {unit}": number(first.floor, factor),
                    "time / floor": _ratio(cell.over_floor),
                    "bound": first.bound,
                    "speedup": _ratio(cell.speedup),
                    FASTEST: peer.contender if peer else "-",
                    **{name: _multiple(by_name.get(name), ours) for name in others},
                    "extra MB": _megabytes(ours),
                    "its extra MB": _megabytes(peer),
                }
            )
        tables.append(Table(place(dtype, threads), records))
    yield Section(
        "Ops",
        [
            f"Times are medians; the spread is that of the 20 % and 80 % quantiles. Speedup: the {FASTEST}'s time in "
            "multiples of ours. Columns with a contender's name: its time in multiples of ours, above 1 it is slower. "
            "Extra: peak memory above inputs, results and gradients."
        ],
        tables,
    )


def _summary(found: Sequence[Cell]) -> Iterator[Section]:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "op": cell.rows[0].case,
            "dtype": cell.rows[0].dtype,
            "threads": "-" if cell.rows[0].threads is None else str(cell.rows[0].threads),
            "pass": cell.rows[0].which,
            "speedup": cell.speedup,
            "over": cell.over_floor,
            "bound": cell.rows[0].bound,
        }
        for cell in found
    )
    means = []
    for keys in (["dtype", "threads", "pass"], ["pass"]):
        for names, group in frame.dropna(subset="speedup").groupby(keys, sort=False)["speedup"]:
            means.append(
                {
                    "dtype": "all",
                    "threads": "all",
                    **dict(zip(keys, names, strict=True)),
                    "geometric mean": f"{geometric_mean(group):.2f}",
                    "least": f"{group.min():.2f}",
                    "largest": f"{group.max():.2f}",
                    "below 1": str((group < 1).sum()),
                    "cells": str(len(group)),
                }
            )
    over = []
    for names, group in frame.dropna(subset="over").groupby(["op", "dtype", "threads"], sort=False):
        target = TARGETS.get(names[1])
        over.append(
            {
                **dict(zip(("op", "dtype", "threads"), names, strict=True)),
                "median": f"{group['over'].median():.2f}",
                "largest": f"{group['over'].max():.2f}",
                "bound by bytes": str((group["bound"] == "bytes").sum()),
                "target": "-" if target is None else f"{target:.2f}",
                "missed": "-" if target is None else str((group["over"] > target).sum()),
                "cells": str(len(group)),
            }
        )
    slowest = sorted((cell for cell in found if cell.speedup), key=lambda cell: cell.speedup or 0.0)[:5]
    near = [
        {"cell": c.rows[0].label, FASTEST: c.fastest_peer.contender if c.fastest_peer else "-", "speedup": _ratio(c.speedup)}
        for c in slowest
    ]
    tables = [
        Table(f"Speedup over the {FASTEST}", means),
        Table("Our time in multiples of the floor", over),
        Table("Cells with the least speedup", near),
    ]
    yield Section("Summary", list(_counts(found)), [table for table in tables if table.records])


def _counts(found: Sequence[Cell]) -> Iterator[str]:
    """What misses its target, and what no time may do: be below the floor by more than its own noise."""
    for dtype, target in TARGETS.items():
        over = [cell.over_floor for cell in found if cell.rows[0].dtype == dtype and cell.over_floor]
        if over:
            yield f"{dtype}: {sum(x > target for x in over)} of {len(over)} cells miss the target of {target} floors."
    rows = [row for cell in found for row in cell.rows if row.floor and row.median]
    if not rows:
        return
    below = [row for row in rows if (row.high or row.median or 0.0) < (row.floor or 0.0)]
    near = [row for row in rows if (row.median or 0.0) < (row.floor or 0.0) and row not in below]
    yield (
        f"Below the floor by more than noise (the 80 % quantile is below it): {len(unique(r.cell for r in below))} of "
        f"{len(unique(r.cell for r in rows))} cells; below it within noise: {len(unique(r.cell for r in near))}."
    )
    for row in below[:_NAMED]:
        yield f"{row.label}, {row.contender}: {(row.median or 0) / (row.floor or 1):.2f} floors ({row.bound})"
    if len(below) > _NAMED:
        yield f"And {len(below) - _NAMED} more."


def _contenders(rows: Sequence[Row]) -> Iterator[Section]:
    """A line for each contender: stacks, layers and networks."""
    found = cells(rows)
    unit, factor = _unit(found)
    records = []
    for cell in found:
        ours = cell.ours
        base = next((row for row in cell.rows if row.contender == "convolutions"), None)
        for row in cell.rows:
            record = _names(row, rows)
            record |= {"contender": row.contender, unit: _time(row, factor), "spread": spread(row)}
            if row.mode == "models":
                rate = number(images(row) / row.median) if row.median else "-"
                record |= {"images/s": rate, "GFLOPs": number(row.work, 1e9), "against convolutions": _multiple(base, row)}
            record |= {"time / ours": _multiple(row, ours), "extra MB": _megabytes(row)}
            records.append(record)
    means = []
    for which in unique(row.which for row in rows):
        speedups = [cell.speedup for cell in found if cell.rows[0].which == which and cell.speedup]
        if speedups:
            means.append(
                f"{which}: {geometric_mean(speedups):.2f} times as fast as the {FASTEST} (geometric mean of "
                f"{len(speedups)} cells, {min(speedups):.2f} to {max(speedups):.2f})."
            )
    yield Section(
        {"stack": "Stack of modules", "layers": "Real layers", "models": "Networks"}.get(rows[0].mode, rows[0].mode),
        means,
        [Table(_constant(rows), records)],
    )


def _scaling(rows: Sequence[Row]) -> Iterator[Section]:
    """A table for each size that varies, with a column for each contender."""
    for name in unique(text.partition("=")[0] for row in rows for text in row.series.split()):
        mine = [row for row in rows if f"{name}=" in row.series]
        values = {row.cell: dict(text.split("=") for text in row.series.split())[name] for row in mine}
        found = sorted(cells(mine), key=lambda c: (c.rows[0].case.split()[0], c.rows[0].which, float(values[c.rows[0].cell])))
        tables = []
        for title, value in (("ms", lambda row: _time(row, 1e-3)), ("extra MB", _megabytes)):
            records = [{name: values[c.rows[0].cell], **_wide(c, mine, value)} for c in found]
            tables.append(Table(f"{title}, {_constant(mine)}", records))
        yield Section(f"Against {name}", (), tables)


def _overhead(rows: Sequence[Row]) -> Iterator[Section]:
    """A column for each contender: calls that compute next to nothing, and first calls."""
    first = [row for row in rows if row.case.startswith("first call")]
    calls = [row for row in rows if row not in first]
    for title, part, factor in (("us per call", calls, 1e-6), ("First calls, ms", first, 1e-3)):
        if part:
            records = [_wide(cell, part, lambda row, factor=factor: _time(row, factor)) for cell in cells(part)]
            yield Section(title, (), [Table(_constant(part), records)])


def _ceilings(rows: Sequence[Row]) -> Iterator[Section]:
    records = []
    for row in rows:
        rate = row.work / row.median if row.work and row.median else None
        record = {"ceiling": row.case, "size": row.shape, "dtype": row.dtype, "threads": "-" if row.threads is None else str(row.threads)}
        record |= {"rate": number(rate, 1e9), "unit": "GFLOP/s" if row.bound == "flops" else "GB/s"}
        records.append(record | {"spread": spread(row), "rounds": str(row.rounds)})
    yield Section("Ceilings of the machine", (), [Table("", records)])


_MODES: Mapping[str, Callable[[Sequence[Row]], Iterator[Section]]] = {
    "ops": _ops,
    "scaling": _scaling,
    "overhead": _overhead,
    "ceilings": _ceilings,
}


def _missing(run: Run) -> Iterator[Section]:
    """What has no time, and why."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in run.rows:
        if row.status != OK:
            found.setdefault((row.contender, row.status), []).append(row)
    records = [
        {"contender": name, "status": status, "cells": str(len(rows)), "first": f"{rows[0].label}: {rows[0].reason}"}
        for (name, status), rows in found.items()
    ]
    if records:
        yield Section("Without a time", (), [Table("", records)])


def _every_row(run: Run) -> Section:
    records = []
    for row in run.rows:
        if row.role != CEILING:
            times = {f"{name} ms": number(getattr(row, name), 1e-3) for name in ("median", "low", "high")}
            note = "; ".join(filter(None, (row.reason, row.note)))
            status = {"rounds": str(row.rounds), "status": row.status, "note": note}
            records.append({"cell": row.label, "contender": row.contender, **times, **status})
    return Section("Every row", (), [Table(f"{len(records)} rows", records, folded=True)])


def _environment(run: Run) -> Section:
    def flat(values: Any, prefix: str) -> Iterator[_Record]:
        if isinstance(values, Mapping):
            for name, value in values.items():
                yield from flat(value, f"{prefix}.{name}" if prefix else name)
        else:
            yield {"fact": prefix, "value": "unknown" if values is None else str(values)}

    return Section("Environment", (), [Table("Machine and settings", list(flat(run.facts, "")), folded=True)])


def _names(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    """What the cell is; dtype, layout, threads and clock only where they vary."""
    given = {"case": row.case, "shape": row.shape, "pass": _short(row)}
    for name, value in _varying(row):
        if len({getattr(other, name) for other in rows}) > 1:
            given[name] = value
    return given


def _constant(rows: Sequence[Row]) -> str:
    """What :func:`_names` leaves out."""
    first = rows[0]
    given = [value for name, value in _varying(first) if len({getattr(other, name) for other in rows}) == 1]
    return ", ".join(filter(None, given))


def _varying(row: Row) -> list[tuple[str, str]]:
    threads = "" if row.threads is None else f"{row.threads} thread{'s' * (row.threads != 1)}"
    clock = "" if row.clock == "wall" else row.clock
    return [("dtype", row.dtype), ("layout", row.layout), ("threads", threads), ("clock", clock)]


def _wide(cell: Cell, rows: Sequence[Row], value: Callable[[Row], str]) -> dict[str, str]:
    return {**_names(cell.rows[0], rows), **{row.contender: value(row) for row in cell.rows}}


def _short(row: Row) -> str:
    return row.which.replace("forward", "fwd").replace("backward", "bwd")


def _unit(found: Sequence[Cell]) -> tuple[str, float]:
    """Milliseconds, or microseconds where most times are shorter than a tenth of one."""
    times = sorted(cell.ours.median for cell in found if cell.ours and cell.ours.median)
    return ("us", 1e-6) if times and times[len(times) // 2] < 1e-4 else ("ms", 1e-3)


def _time(row: Row | None, factor: float) -> str:
    if row is None:
        return "-"
    if row.status == SKIPPED and row.needs_bytes:
        return f"needs {number(row.needs_bytes, 1e9)} GB"
    return number(row.median, factor) if row.median else SHORT.get(row.status, "-")


def _multiple(row: Row | None, ours: Row | None) -> str:
    if row is None:
        return ""
    if not row.median:
        return SHORT.get(row.status, "-")
    return _ratio(row.median / ours.median if ours and ours.median else None)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _megabytes(row: Row | None) -> str:
    return "-" if row is None or row.extra_bytes is None else number(row.extra_bytes, 1e6)


def _numeric(texts: Sequence[str]) -> bool:
    known = [text for text in texts if text not in ("", "-", *SHORT.values()) and not text.startswith("needs ")]
    return bool(known) and all(_NUMBER.fullmatch(text) for text in known)


def _page(parts: Sequence[Part]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template("report.html.jinja")
    return template.render(title=TITLE, parts=parts, svg=plots.svg, folded=_FOLDED)


def _markdown(parts: Sequence[Part]) -> Iterator[str]:
    yield f"# {TITLE}\n"
    for part in parts:
        yield f"## {part.name}\n"
        yield "\n".join(f"{line}  " for line in part.head) + "\n"
        yield "\n".join(f"- **{value}** {text}" for value, text in part.tiles) + "\n"
        for each in part.pictures:
            yield f"### {each.title}\n\n![{each.alternative}]({each.name}.png)\n\n{each.caption}\n"
        for section in part.sections[:-1]:  # every row is in the page and in the result file
            yield f"### {section.title}\n"
            yield from (f"{line.strip()}\n" for line in section.lines)
            for table in section.tables:
                text = as_text(table.records, "pipe")
                if table.folded:
                    yield f"<details><summary>{table.title}</summary>\n\n{text}\n\n</details>\n"
                else:
                    yield f"**{table.title}**\n\n{text}\n" if table.title else f"{text}\n"
