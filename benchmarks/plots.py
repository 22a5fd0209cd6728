"""Pictures of a run: drawings for the page, in light and dark, and PNGs on white."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.results import CEILING, OK, OURS, PEER, SHORT, SKIPPED, Cell, Row, Run, cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Our time in multiples of the floor, at most.
TARGETS = {"fp32": 1.25, "bf16": 1.6}
FASTEST = "fastest alternative"

# The page replaces these two by its own colours; nothing else may have them.
INK, LINE = "#1b1f25", "#d5dae1"
# Okabe and Ito's colours, which colour-blind readers can tell apart, adjusted to be seen on white and on black.
BLUE, ORANGE, GREEN, RED, PINK, SKY, OLIVE, GREY = (
    "#1f7fc4 #de8f05 #029e73 #d55e00 #cc78bc #56b4e9 #a8962b #8a94a0".split()
)
_CYCLE = (ORANGE, GREEN, RED, PINK, OLIVE, "#7b6fd0", "#a3705a", GREY)
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{part}color": INK for part in ("axes.edge", "axes.label", "axes.title", "text.", "xtick.", "ytick.")},
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # an error message may have a $ in it
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
}
# A line of a range is cut beyond so many times the mean.
_LONGEST = 10.0
_TOO_LARGE = re.compile(r"[\d.]+ GB")


class Drawing(NamedTuple):
    """A picture: its name behind that of the result file, its title, a text in place of it, and a caption."""

    name: str
    title: str
    alternative: str
    caption: str
    figure: Figure


class Point(NamedTuple):
    """A value of a curve with the ends of its spread, or why there is none."""

    x: float
    value: float | None
    low: float = 0.0
    high: float = 0.0
    reason: str = ""


def draw(run: Run) -> list[Drawing]:
    """All pictures that the rows of a run have something for."""
    from matplotlib import rc_context

    found: list[Drawing] = []
    with rc_context(_RC):
        for mode in dict.fromkeys(row.mode for row in run.rows):
            rows = [row for row in run.rows if row.mode == mode]
            for make in _MAKERS.get(mode, ()):
                found += make(rows, [row for row in run.rows if row.role == CEILING])
        for drawing in found:
            # Once here, and not again each time that it is saved.
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")
    return found


def svg(figure: Figure, name: str, alternative: str) -> str:
    """An element of a page, in the page's ink; the identifiers in it begin with ``name``."""
    from matplotlib import rc_context

    stream = io.StringIO()
    # The salt gives the parts the same names in each run, different from those of other drawings.
    with rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").replace(LINE, "var(--line)")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(alternative)}"', 1).strip()


def png(figure: Figure, path: Path) -> Path:
    """Write a file, on white; returns its path."""
    from matplotlib import rc_context

    with rc_context(_RC):
        figure.savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return path


def geometric_mean(values: Iterable[float]) -> float:
    """Of at least one number.

    Example:
        >>> geometric_mean([1.0, 4.0])
        2.0
    """
    return math.exp(statistics.fmean(math.log(value) for value in values))


def place(dtype: str, threads: int | None) -> str:
    """Dtype and threads, of which a GPU has none.

    Example:
        >>> place("fp32", 2), place("fp32", None)
        ('fp32, 2 threads', 'fp32')
    """
    return dtype if threads is None else f"{dtype}, {threads} thread{'s' * (threads != 1)}"


def unique(values: Iterable[Any]) -> list[Any]:
    """Values once each, in their order."""
    return list(dict.fromkeys(values))


def _speedups(rows: Sequence[Row], _: Sequence[Row]) -> Iterable[Drawing]:
    """Each peer's time in multiples of ours: a panel for each dtype and pass, a bar for each count of threads."""
    found = [cell for cell in cells(rows) if cell.speedup is not None]
    if not found:
        return
    names = [FASTEST, *sorted(unique(r.contender for r in rows if r.role == PEER), key=_compiled)]
    places = unique((cell.rows[0].dtype, cell.rows[0].which) for cell in found)
    threads = unique(cell.rows[0].threads for cell in found)
    height = 0.17 * len(names) * len(threads) + 0.75
    columns = len(unique(which for _, which in places))
    figure, panels = _grid(len(places), columns, 1.4 + 4.4 * columns, height)
    ends = [1.0]
    for panel, (dtype, which) in zip(panels, places, strict=False):
        for row, name in enumerate(names):
            for index, count in enumerate(threads):
                part = [c for c in found if (dtype, which, count) == _place(c)]
                at = row + (index - (len(threads) - 1) / 2) * 0.8 / len(threads)
                ends += _speedup(panel, part, name, at, 0.72 / len(threads), _shade(index, threads))
        panel.axvline(1.0, color=INK, linewidth=1.2)
        panel.set_title(f"{dtype}, {which}")
        _categories(panel, names)
    for panel in panels:
        panel.set_xscale("log")
        panel.set_xlim(min(0.9, *ends), max(ends) * 2.2)
        _plain(panel.xaxis)
    _outer(panels, "alternative's time / our time")
    if threads != [None]:
        _legend(figure, {f"{n} thread{'s' * (n != 1)}": (BLUE, "s", _shade(i, threads)) for i, n in enumerate(threads)})
    yield Drawing(
        "speedup",
        "Against each alternative",
        "Bars: each alternative's time in multiples of ours, by dtype and pass",
        "Time of each alternative in multiples of ours: the bar is the geometric mean over all cells, the line the "
        "range. Right of 1 the alternative is slower. In brackets: in how many cells it has a time, if not in all.",
        figure,
    )


def _speedup(
    panel: Axes, part: Sequence[Cell], name: str, at: float, height: float, shade: float
) -> Sequence[float]:
    """One bar; returns where its line begins and ends."""
    peers = [_named(cell, name) for cell in part]
    ratios = [
        peer.median / cell.ours.median
        for cell, peer in zip(part, peers, strict=True)
        if peer is not None and peer.median and cell.ours is not None and cell.ours.median
    ]
    taking = [peer for peer in peers if peer is not None]
    if not ratios:
        why = ", ".join(unique(SHORT.get(peer.status, peer.status) for peer in taking)) or "takes no part"
        panel.text(1.0, at, f"  ✕ {why}", va="center", fontsize=7.5, color=RED)
        return ()
    mean = geometric_mean(ratios)
    # One cell where an alternative is hopeless should not squeeze all bars.
    least, most = min(ratios), min(max(ratios), _LONGEST * mean)
    panel.barh(at, mean - 1.0, height, left=1.0, color=ORANGE if name == FASTEST else BLUE, alpha=shade)
    panel.plot([least, most], [at, at], color=INK, linewidth=1.0)
    share = f" ({len(ratios)} of {len(taking)})" if len(ratios) < len(taking) else ""
    _beside(panel, max(1.0, most), at, f"{'… ' * (most < max(ratios))}{mean:.2f}{share}")
    return least, most


def _rooflines(rows: Sequence[Row], ceilings: Sequence[Row]) -> Iterable[Drawing]:
    """What each cell reaches below the ceilings: a panel for each dtype and number of threads."""
    found = [cell for cell in cells(rows) if cell.ours and cell.ours.median and cell.rows[0].case in _MAPS]
    places = unique((c.rows[0].dtype, c.rows[0].threads) for c in found)
    if not found or not ceilings:
        return
    figure, panels = _grid(len(places), min(len(places), 2), 4.9 * min(len(places), 2) + 0.4, 3.4)
    ops = unique(cell.rows[0].case for cell in found)
    colours = dict(zip(_MAPS, (BLUE, ORANGE, GREEN), strict=True))
    for panel, (dtype, threads) in zip(panels, places, strict=False):
        part = [c for c in found if (c.rows[0].dtype, c.rows[0].threads) == (dtype, threads)]
        for cell in part:
            for row in (cell.fastest_peer, cell.ours):
                if row is None or not row.median:
                    continue
                flops, intensity = _job(row)
                full = row.layout == "channels_last"
                colour = colours[row.case] if row.role == OURS else GREY
                mark = {"marker": "." if row.role == PEER else "o" if row.which == "forward" else "D"}
                face = {"markerfacecolor": colour if full else "none", "markersize": 4.5}
                panel.plot(intensity, flops / row.median, color=colour, linestyle="", **mark, **face)
        panel.set_title(place(dtype, threads))
        _ceilings(panel, [row for row in ceilings if row.threads == threads], dtype, [_job(c.rows[0])[1] for c in part])
        panel.set_ylabel("GFLOP/s")
    _outer(panels, "FLOPs per compulsory byte", own_rows=True)
    _legend(
        figure,
        {
            **{op: (colours[op], "s", 1.0) for op in ops},
            FASTEST: (GREY, ".", 1.0),
            "forward": (INK, "o", 1.0),
            "forward+backward": (INK, "D", 1.0),
        },
    )
    yield Drawing(
        "roofline",
        "Against the machine",
        "Roofline: FLOP rate of each cell over its FLOPs per byte, below the measured ceilings",
        "Each point is a cell: its compulsory FLOPs over our median time; grey, over the fastest alternative's. "
        "Hollow: NCHW. Lines: bandwidth and FMA rate as the probe measured them in this run. A map that fits into a "
        "cache may lie above the line of the memory.",
        figure,
    )


# What an op cannot avoid, forward and backward: maps that are read or written, and products of N x L x C.
_MAPS = {"tokenize": (1, 2), "project": (2, 3), "project_tokenize": (2, 3)}
_PRODUCTS = {"tokenize": (2, 4), "project": (2, 4), "project_tokenize": (4, 8)}


def _job(row: Row) -> tuple[float, float]:
    """FLOPs, and FLOPs per byte of the map."""
    batch, pixels, channels, tokens = map(int, row.shape.split("x"))
    passes = 1 if row.which == "forward" else 2
    maps, products = sum(_MAPS[row.case][:passes]), sum(_PRODUCTS[row.case][:passes])
    elements = batch * pixels * channels
    return 2.0 * products * elements * tokens, 2 * products * tokens / (maps * (4 if row.dtype == "fp32" else 2))


def _ceilings(panel: Axes, ceilings: Sequence[Row], dtype: str, intensities: Sequence[float]) -> None:
    rates = {row: row.work / row.median for row in ceilings if row.work and row.median}
    bandwidths = {row: rate for row, rate in rates.items() if row.bound == "bytes"}
    flops = max((r for row, r in rates.items() if row.bound == "flops" and row.dtype in ("", dtype)), default=None)
    panel.set_xscale("log")
    panel.set_yscale("log")
    left, right = min(intensities) / 3, max(intensities) * 3
    # The bandwidth of each size of buffer: memory is the last and slowest.
    for shape in unique(row.shape for row in bandwidths):
        best = max((row for row in bandwidths if row.shape == shape), key=lambda row: bandwidths[row])
        slope = bandwidths[best]
        bend = right if flops is None else min(flops / slope, right)
        panel.plot([left, bend], [left * slope, bend * slope], color=INK, linewidth=1.3)
        text = f"{best.case} {shape} {slope / 1e9:.0f} GB/s".replace("  ", " ")
        panel.annotate(text, (left, left * slope), xytext=(10, 0), textcoords="offset points", va="center", fontsize=7.5)
    if flops is not None:
        start = flops / max(bandwidths.values(), default=flops / left)
        panel.plot([start, right], [flops, flops], color=INK, linewidth=1.3)
        text = f"FMA {flops / 1e9:.0f} GFLOP/s"
        panel.annotate(text, (right, flops), xytext=(0, 4), textcoords="offset points", ha="right", fontsize=7.5)
    _plain(panel.xaxis)
    _plain(panel.yaxis, 1e9)
    panel.grid(alpha=0.6)


def _floors(rows: Sequence[Row], _: Sequence[Row]) -> Iterable[Drawing]:
    """Our time in multiples of the floor: a strip for each op and pass, a panel for each dtype."""
    found = [cell for cell in cells(rows) if cell.over_floor is not None]
    if not found:
        return
    dtypes = unique(cell.rows[0].dtype for cell in found)
    names = unique((cell.rows[0].case, cell.rows[0].which) for cell in found)
    threads = unique(cell.rows[0].threads for cell in found)
    figure, panels = _grid(len(dtypes), min(len(dtypes), 2), 1.9 + 3.9 * min(len(dtypes), 2), 0.42 * len(names) + 0.7)
    most = max(2.0, *(cell.over_floor or 0 for cell in found))
    for panel, dtype in zip(panels, dtypes, strict=False):
        for row, name in enumerate(names):
            part = [c for c in found if (c.rows[0].dtype, c.rows[0].case, c.rows[0].which) == (dtype, *name)]
            for index, count in enumerate(threads):
                mine = [cell for cell in part if cell.rows[0].threads == count]
                for step, cell in enumerate(mine):
                    at = row + (index - (len(threads) - 1) / 2) * 0.36 + 0.26 * (step / max(len(mine) - 1, 1) - 0.5)
                    face = _tone(index) if cell.rows[0].layout == "channels_last" else "none"
                    style = {"color": _tone(index), "markerfacecolor": face, "markersize": 4.5}
                    panel.plot(cell.over_floor, at, "o", **style)
        panel.axvline(1.0, color=INK, linewidth=1.2)
        if dtype in TARGETS:
            panel.axvline(TARGETS[dtype], color=RED, linestyle="--", linewidth=1.2)
        panel.set_xscale("log")
        panel.set_xlim(min(0.9, *(cell.over_floor or 1 for cell in found)) / 1.05, most * 1.1)
        _plain(panel.xaxis)
        panel.set_title(dtype)
        _categories(panel, [f"{case}\n{which}" for case, which in names])
    _outer(panels, "our time / floor")
    if threads != [None]:
        _legend(figure, {f"{n} thread{'s' * (n != 1)}": (_tone(i), "o", 1.0) for i, n in enumerate(threads)})
    yield Drawing(
        "floor",
        "Against the floor",
        "Points: our time in multiples of the floor, by op, pass and dtype",
        "Each point is a cell; the floor, at 1, is the least time that its bytes or its FLOPs take on this machine. "
        "Dashed: the target. Hollow: NCHW.",
        figure,
    )


def _curves(rows: Sequence[Row], _: Sequence[Row]) -> Iterable[Drawing]:
    """Time and memory against each size that varies."""
    series: dict[str, list[tuple[float, Cell]]] = {}
    for cell in cells(rows):
        for text in cell.rows[0].series.split():
            name, _sign, value = text.partition("=")
            series.setdefault(name, []).append((float(value), cell))
    for name, members in series.items():
        label = {"N": "pixels N", "L": "tokens L", "C": "channels C", "B": "samples B"}.get(name, name)
        for what, unit, value in (("time", "ms", _milliseconds), ("memory", "extra MB", _megabytes)):
            panels = _panels(name, members, value)
            if panels:
                yield Drawing(
                    f"{name}-{what}",
                    f"{what.capitalize()} against {label}",
                    f"Curves: {unit} of each contender against {label}",
                    "The line is the median, shaded from the 20 % to the 80 % quantile. A cross at the upper edge marks "
                    "a size that did not fit into memory or has no time for another reason, given beside it.",
                    _curve_figure(panels, label, unit),
                )


def _panels(
    name: str, members: Sequence[tuple[float, Cell]], value: Callable[[float, Row], Point]
) -> dict[str, dict[str, list[Point]]]:
    """Points of each contender, for each op and pass with at least two sizes."""
    found: dict[str, dict[str, list[Point]]] = {}
    for x, cell in sorted(members, key=lambda member: member[0]):
        first = cell.rows[0]
        threads = "" if name == "threads" else place("", first.threads)
        case = re.sub(r" (in|of) \d+( chunks)?$", "", first.case)
        sizes = dict(zip("BNCL", first.shape.split("x"), strict=False))
        shape = "x".join(key if key == name else size for key, size in sizes.items())
        title = f"{case}, {first.which}\n{shape} {first.dtype}{threads}, {first.layout}"
        for row in cell.rows:
            found.setdefault(title, {}).setdefault(row.contender, []).append(value(x, row))
    return {
        title: curves
        for title, curves in found.items()
        if len({point.x for points in curves.values() for point in points}) > 1
        and any(point.value is not None for points in curves.values() for point in points)
    }


def _milliseconds(x: float, row: Row) -> Point:
    if row.median is None:
        return Point(x, None, reason=_why(row))
    return Point(x, *(1e3 * (each or row.median) for each in (row.median, row.low, row.high)))


def _megabytes(x: float, row: Row) -> Point:
    if row.status != OK:
        return Point(x, None, reason=_why(row))
    # A logarithmic axis has no 0.
    if not row.extra_bytes:
        return Point(x, None, reason="not measured" if row.extra_bytes is None else "no extra memory")
    return Point(x, *(row.extra_bytes / 1e6,) * 3)


def _why(row: Row) -> str:
    too_large = row.status == SKIPPED and row.needs_bytes
    return f"{row.needs_bytes / 1e9:.3g} GB" if too_large and row.needs_bytes else row.status


def _curve_figure(panels: dict[str, dict[str, list[Point]]], label: str, unit: str) -> Figure:
    columns = min(2, len(panels))
    figure, axes = _grid(len(panels), columns, 5.2 * columns, 3.6)
    names = unique(name for curves in panels.values() for name in curves)
    for panel, (title, curves) in zip(axes, panels.items(), strict=False):
        panel.set_xscale("log")
        panel.set_yscale("log")
        for name, points in curves.items():
            known = [point for point in points if point.value is not None]
            xs, colour = [point.x for point in known], _colour(name, names)
            line = "--" if _compiled(name) else "-"
            panel.plot(xs, [p.value for p in known], line, marker="o", markersize=3.5, linewidth=1.5, color=colour)
            panel.fill_between(xs, [p.low for p in known], [p.high for p in known], color=colour, alpha=0.2, lw=0)
        xs = sorted({point.x for points in curves.values() for point in points})
        lines = _crosses(panel, xs, curves, names)
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** (0.09 * lines + 0.02))
        panel.set(title=title, xlabel=label, ylabel=unit)
        panel.set_xticks(xs, [f"{x:g}" if x < 1e5 else f"{x:.0f}" for x in xs])
        panel.set_xticks([], minor=True)
        panel.set_xlim(xs[0] / (xs[-1] / xs[0]) ** 0.04, xs[-1] * (xs[-1] / xs[0]) ** 0.04)
        panel.tick_params(axis="x", labelrotation=30 if xs[-1] >= 1e4 else 0)
        panel.grid(alpha=0.6)
        _plain(panel.yaxis)
    _legend(figure, {name: (_colour(name, names), "--" if _compiled(name) else "-", 1.0) for name in names})
    return figure


def _crosses(panel: Axes, xs: Sequence[float], curves: dict[str, list[Point]], names: Sequence[str]) -> int:
    """Mark the sizes without a value in lines below each other; returns how many lines there are.

    Contenders without values at the same sizes share a line, their crosses side by side.
    """
    from matplotlib.transforms import ScaledTranslation

    alike: dict[tuple[float, ...], list[str]] = {}
    for name, points in curves.items():
        missing = tuple(point.x for point in points if point.value is None)
        if missing:
            alike.setdefault(missing, []).append(name)
    where = panel.get_xaxis_transform()  # x as in the data, y as a share of the panel's height
    for line, (missing, members) in enumerate(alike.items()):
        height = 0.97 - 0.075 * line
        # The text goes where the curve has values: left of the first cross, or right of the last.
        left = missing[0] != xs[0]
        step = -8 if left else 8
        for index, name in enumerate(members):
            shift = ScaledTranslation(index * step / 72, 0, panel.figure.get_figure(root=True).dpi_scale_trans)
            style = {"color": _colour(name, names), "markersize": 6, "markeredgewidth": 1.8, "clip_on": False}
            panel.plot(missing, [height] * len(missing), "x", transform=where + shift, **style)
        reasons = [point.reason for name in members for point in curves[name] if point.value is None]
        panel.annotate(
            _together(reasons),
            (missing[0] if left else missing[-1], height),
            xycoords=where,
            xytext=(len(members) * step, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=7.5,
        )
    return len(alike)


def _together(reasons: Sequence[str]) -> str:
    """Reasons in few words.

    Example:
        >>> _together(["16.3 GB", "wrong", "20.9 GB", "18 GB"])
        'needs 16.3 to 20.9 GB; wrong'
    """
    sizes = sorted(float(each.split()[0]) for each in reasons if _TOO_LARGE.fullmatch(each))
    rest = unique(each for each in reasons if not _TOO_LARGE.fullmatch(each))
    if sizes:
        rest.insert(0, f"needs {' to '.join(f'{size:g}' for size in unique((sizes[0], sizes[-1])))} GB")
    return "; ".join(rest)


def _rates(rows: Sequence[Row], _: Sequence[Row]) -> Iterable[Drawing]:
    """Images per second of networks and their parts."""
    figure = _bars(rows, "images per second", lambda row, seconds: images(row) / seconds)
    if figure is not None:
        yield Drawing(
            "rate",
            "Images per second",
            "Bars: images per second of each network and part, by pass",
            "Images per second at the median time of a step, the line from the 20 % to the 80 % quantile of the times. "
            "Bars are relative to the longest of their group.",
            figure,
        )


def _overheads(rows: Sequence[Row], _: Sequence[Row]) -> Iterable[Drawing]:
    """Microseconds per call of tiny shapes."""
    calls = [row for row in rows if not row.case.startswith("first call")]
    figure = _bars(calls, "µs per call", lambda _, seconds: 1e6 * seconds)
    if figure is not None:
        yield Drawing(
            "calls",
            "Cost of a call",
            "Bars: microseconds per call of each contender, by op and pass",
            "Microseconds of a call with next to nothing to compute: the median, and the line from the 20 % to the 80 % "
            "quantile. Bars are relative to the longest of their group.",
            figure,
        )


def images(row: Row) -> int:
    """How many images a step takes: the first number of the input's shape."""
    return int(row.shape.partition("x")[0])


def _bars(rows: Sequence[Row], label: str, value: Callable[[Row, float], float]) -> Figure | None:
    """A panel for each pass and a group of bars for each case; None where nothing has a time."""
    found = [cell for cell in cells(rows) if any(row.median for row in cell.rows)]
    if not found:
        return None
    names, passes = unique(row.contender for row in rows), unique(cell.rows[0].which for cell in found)
    titles = {cell: _title(cell.rows[0], rows) for cell in found}
    # The first row of each group.
    tops, height = dict[str, int](), 0
    for title in unique(titles.values()):
        tops[title] = height
        height += max(len(cell.rows) for cell in found if titles[cell] == title) + 1
    figure, panels = _grid(len(passes), len(passes), 2.2 + 3.9 * len(passes), 0.165 * height + 0.5)
    for panel, which in zip(panels, passes, strict=True):
        for cell in (cell for cell in found if cell.rows[0].which == which):
            longest = max(value(row, row.median) for row in cell.rows if row.median)
            for at, row in enumerate(cell.rows, tops[titles[cell]]):
                if not row.median:
                    panel.text(0.0, at, f" ✕ {row.reason[:40]}", va="center", fontsize=7, color=RED)
                    continue
                ends = [value(row, end or row.median) / longest for end in (row.median, row.low, row.high)]
                shade = _opacity(row.contender)
                panel.barh(at, ends[0], 0.85, color=_colour(row.contender, names), alpha=shade)
                panel.plot(ends[1:], [at, at], color=INK, linewidth=1.0)
                _beside(panel, max(ends), at, digits(value(row, row.median)))
        panel.set_title(f"{which}: {label}")
        panel.set_xlim(0, 1.2)
        panel.set_xticks([])
        panel.spines["bottom"].set_visible(False)
        panel.set_yticks([top + 0.5 for top in tops.values()], tops)
        panel.set_ylim(height - 1.5, -0.5)
        panel.tick_params(axis="y", length=0)
    _outer(panels, "")
    _legend(figure, {name: (_colour(name, names), "s", _opacity(name)) for name in names})
    return figure


def _layers(rows: Sequence[Row], _: Sequence[Row]) -> Iterable[Drawing]:
    """Real layers against their fastest alternative, on most threads: the README's chart."""
    most = max((row.threads or 0 for row in rows), default=0)
    found = [cell for cell in cells(rows) if cell.speedup is not None and (cell.rows[0].threads or 0) == most]
    for dtype in unique(cell.rows[0].dtype for cell in found):
        part = [cell for cell in found if cell.rows[0].dtype == dtype]
        names, passes = unique(cell.rows[0].case for cell in part), unique(cell.rows[0].which for cell in part)
        longest = max(cell.speedup or 0 for cell in part)
        figure, [panel] = _grid(1, 1, 7.6, 0.3 * len(names) * len(passes) + 0.3)
        for cell in part:
            first, peer = cell.rows[0], cell.fastest_peer
            at = names.index(first.case) + (passes.index(first.which) - (len(passes) - 1) / 2) * 0.38
            panel.barh(at, cell.speedup or 0, 0.34, color=_tone(passes.index(first.which)))
            if first.case == names[0]:
                ink = "#ffffff" if first.which == passes[0] else "#000000"
                panel.text(0.06, at, _SPOKEN.get(first.which, first.which), va="center", color=ink)
            text = f"{cell.speedup:.1f}×"
            note = panel.annotate(
                text, (cell.speedup or 0, at), xytext=(4, 0), textcoords="offset points", va="center", weight="bold"
            )
            panel.annotate(
                f"  {peer.contender if peer else ''}", (1, 0.5), xycoords=note, va="center", fontsize=7.5, color=GREY
            )
        panel.axvline(1.0, color=INK, linewidth=1.2)
        panel.set_xlim(0, longest * 1.3)
        panel.set_xticks([1.0], ["fastest\nalternative"])
        panel.spines["bottom"].set_visible(False)
        panel.spines["left"].set_visible(False)
        _categories(panel, names)
        panel.grid(False)
        yield Drawing(
            "layers" if dtype == part[0].rows[0].dtype and dtype == found[0].rows[0].dtype else f"layers-{dtype}",
            f"Real layers, {place(dtype, most or None)}",
            "Bars: speed of real layers in multiples of their fastest alternative's, forward and in training",
            f"How many times as fast as the fastest alternative, whose name is beside the bar ({place(dtype, most or None)}).",
            figure,
        )


_SPOKEN = {"forward+backward": "training", "training step": "training", "inference": "forward"}
_MAKERS: dict[str, Sequence[Callable[[Sequence[Row], Sequence[Row]], Iterable[Drawing]]]] = {
    "ops": (_speedups, _floors, _rooflines),
    "scaling": (_curves,),
    "models": (_rates,),
    "overhead": (_overheads,),
    "layers": (_layers,),
}


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels in so many columns; ``width`` of all in inches, ``height`` of one row of them."""
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(width, height * rows + 0.5), layout="constrained")
    panels = [panel for row in figure.subplots(rows, columns, squeeze=False) for panel in row]
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _legend(figure: Figure, entries: dict[str, tuple[str, str, float]]) -> None:
    """Names above all panels: colour, marker or line, and opacity of each."""
    from matplotlib.lines import Line2D

    handles = []
    for name, (colour, form, alpha) in entries.items():
        line = form if form in ("-", "--") else ""
        handles.append(
            Line2D([], [], color=colour, linestyle=line, marker="" if line else form, alpha=alpha, label=name)
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))


def _categories(panel: Axes, names: Sequence[str]) -> None:
    """Names down the left side, the first on top."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", alpha=0.6)


def _outer(panels: Sequence[Axes], label: str, own_rows: bool = False) -> None:
    """A label below the lowest panels, and names beside the leftmost ones only."""
    for panel in panels:
        spec = panel.get_subplotspec()
        if spec is not None and spec.is_last_row():
            panel.set_xlabel(label)
        if spec is not None and not spec.is_first_col() and not own_rows:
            panel.set_yticklabels([])


def _beside(panel: Axes, x: float, y: float, text: str) -> None:
    panel.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5)


def _plain(axis: Any, unit: float = 1.0) -> None:
    """Plain numbers at the ticks of a logarithmic axis, more of them where the range is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    axis.set_minor_locator(NullLocator())


def _named(cell: Cell, name: str) -> Row | None:
    if name == FASTEST:
        return cell.fastest_peer
    return next((row for row in cell.rows if row.contender == name and row.role == PEER), None)


def _place(cell: Cell) -> tuple[str, str, int | None]:
    first = cell.rows[0]
    return first.dtype, first.which, first.threads


def _title(row: Row, rows: Sequence[Row]) -> str:
    """Case and shape, and dtype and threads where they vary."""
    dtype = row.dtype if len({other.dtype for other in rows}) > 1 else ""
    threads = row.threads if len({other.threads for other in rows}) > 1 else None
    return f"{row.case}\n{row.shape} {place(dtype, threads)}".strip()


def _opacity(name: str) -> float:
    return 0.55 if _compiled(name) else 1.0


def digits(value: float) -> str:
    """Three digits of a number from 0.01 on."""
    return f"{value:.{max(0, min(3, 2 - math.floor(math.log10(value))))}f}"


def _compiled(name: str) -> bool:
    return name.startswith("compile ")


def _shade(index: int, threads: Sequence[Any]) -> float:
    return 1.0 if len(threads) == 1 or index else 0.45


def _tone(index: int) -> str:
    return (BLUE, ORANGE, GREEN, PINK, GREY)[index % 5]


def _colour(name: str, names: Sequence[str]) -> str:
    """Blue is ours; a compiled contender has the colour of the one that it compiles."""
    ours = [each for each in names if each.startswith("vt_fast")]
    if name in ours:
        return BLUE if name == ours[0] else SKY
    plain = unique(each.removeprefix("compile ") for each in names if each not in ours)
    return _CYCLE[plain.index(name.removeprefix("compile ")) % len(_CYCLE)]
