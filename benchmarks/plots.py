"""Pictures of a run: drawings inside the page, in light and dark, and PNGs on white."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.results import CEILING, OURS, PEER, SHORT, Cell, Row, Run, cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FASTEST = "fastest alternative"
# Our time in multiples of the floor, at most: on a CPU by dtype, on a GPU by pass.
_CPU_TARGETS = {"fp32": 1.25, "bf16": 1.6}
_GPU_TARGETS = {"forward": 1 / 0.90, "forward+backward": 1 / 0.85}
# The page puts its own colours in place of these two; nothing else may have them.
_INK, _LINE = "#1b1f25", "#d5dae1"
# After Okabe and Ito: colour-blind readers can tell them apart, on white and on black.
_BLUE, _ORANGE, _GREEN, _RED, _SKY, _GREY = "#1f7fc4", "#de8f05", "#029e73", "#d55e00", "#56b4e9", "#8a94a0"
_CYCLE = (_ORANGE, _GREEN, _RED, "#cc78bc", "#a8962b", "#7b6fd0", "#a3705a", _GREY)
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    "grid.color": _LINE,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # an error message may have a $ in it
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
}
# The line of a range is cut beyond so many times the mean: one hopeless cell should not squeeze all bars.
_LONGEST = 10.0
_SERIES = {"N": "pixels N", "L": "tokens L", "C": "channels C", "B": "samples B"}
_SPOKEN = {"inference": "forward", "forward+backward": "training"}


class Drawing(NamedTuple):
    """A picture: its name behind that of the result file, its title and its caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw(run: Run) -> list[Drawing]:
    """All pictures that the rows of a run have something for."""
    from matplotlib import rc_context

    ceilings = [row for row in run.rows if row.role == CEILING]
    found: list[Drawing] = []
    with rc_context(_RC):
        for mode, make in _MAKERS:
            rows = [row for row in run.rows if row.mode == mode]
            # Graphs are what a GPU does; calls beside them include what Python takes.
            if any(row.clock == "graph" for row in rows):
                rows = [row for row in rows if row.clock == "graph"]
            found += make(rows, ceilings) if any(row.median for row in rows) else ()
        for drawing in found:
            # Once here, and not again each time that it is saved.
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")
    return found


def svg(drawing: Drawing) -> str:
    """An element of a page, in the page's ink; the identifiers in it begin with the drawing's name."""
    from matplotlib import rc_context

    stream = io.StringIO()
    # The salt gives the parts the same names in each run, different from those of other drawings.
    with rc_context({**_RC, "svg.hashsalt": drawing.name}):
        drawing.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{drawing.name}-", text)
    text = text.replace(_INK, "currentColor").replace(_LINE, "var(--line)")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(drawing.title)}"', 1).strip()


def png(drawing: Drawing, folder: Path) -> Path:
    """Write a file, on white; returns its path."""
    from matplotlib import rc_context

    path = folder / f"{drawing.name}.png"
    with rc_context(_RC):
        drawing.figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    return path


def target(row: Row) -> float | None:
    """What our time in multiples of the floor should not exceed; None where there is no target."""
    if row.threads is not None:
        return _CPU_TARGETS.get(row.dtype)
    bound_by_memory = row.dtype in ("bf16", "fp16") and int(row.shape.rpartition("x")[2]) <= 32
    return _GPU_TARGETS.get(row.which) if bound_by_memory else None


def place(dtype: str, threads: int | None) -> str:
    """Dtype and threads, of which a GPU has none.

    Example:
        >>> place("fp32", 2), place("fp32", None), place("", 1)
        ('fp32, 2 threads', 'fp32', '1 thread')
    """
    count = "" if threads is None else f"{threads} thread{'s' * (threads != 1)}"
    return ", ".join(filter(None, (dtype, count)))


def digits(value: float) -> str:
    """Three digits in plain notation.

    Example:
        >>> digits(1234.5), digits(1.0), digits(0.012345), digits(0.0)
        ('1234', '1.00', '0.0123', '0')
    """
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def unique(values: Iterable[Any]) -> list[Any]:
    """Values once each, in their order."""
    return list(dict.fromkeys(values))


def by(found: Iterable[Cell], key: Callable[[Row], Any]) -> dict[Any, list[Cell]]:
    """Cells in groups."""
    groups: dict[Any, list[Cell]] = {}
    for cell in found:
        groups.setdefault(key(cell.rows[0]), []).append(cell)
    return groups


def _speedups(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    found = [cell for cell in cells(rows) if cell.speedup]
    peers = unique(row.contender for row in rows if row.role == PEER)
    names = [FASTEST, *sorted(peers, key=lambda name: name.startswith("compile "))]
    threads = unique(cell.rows[0].threads for cell in found)
    groups = by(found, lambda row: (row.dtype, row.which))
    height = 0.17 * len(names) * len(threads) + 0.6
    figure, panels = _grid(len(groups), len({which for _, which in groups}), 4.4, height, share=True)
    for panel, (key, part) in zip(panels, groups.items(), strict=True):
        for (line, name), (index, count) in product(enumerate(names), enumerate(threads)):
            pairs = [(_named(cell, name), cell.ours) for cell in part if cell.rows[0].threads == count]
            taking = [peer for peer, _ in pairs if peer]
            ratios = [p.median / o.median for p, o in pairs if p and o and p.median and o.median]
            at = line + (index - (len(threads) - 1) / 2) * 0.8 / len(threads)
            if not ratios:
                why = ", ".join(unique(SHORT[peer.status] for peer in taking)) or "takes no part"
                _beside(panel, 1.0, at, f"✕ {why}", color=_RED)
                continue
            mean = geometric_mean(ratios)
            end = min(max(ratios), _LONGEST * mean)
            colour, shade = _ORANGE if name == FASTEST else _BLUE, _shade(count, threads)
            panel.barh(at, mean - 1.0, 0.72 / len(threads), left=1.0, color=colour, alpha=shade)
            panel.plot([min(ratios), end], [at, at], color=_INK, linewidth=1.0)
            share = f" ({len(ratios)} of {len(taking)})" if len(ratios) < len(taking) else ""
            _beside(panel, max(1.0, end), at, f"{'… ' * (end < max(ratios))}{mean:.2f}{share}")
        panel.set_title(", ".join(key))
        _categories(panel, names)
    ends = [panel.dataLim.intervalx for panel in panels]
    panels[0].set_xlim(0.95 * min(left for left, _ in ends), 2.5 * max(right for _, right in ends))
    _ratios(figure, panels, "alternative's time / our time")
    _legend(figure, {place("", count): (_BLUE, "s", _shade(count, threads)) for count in threads if count})
    caption = (
        "Time of each alternative divided by ours: the bar is the geometric mean over all cells, the "
        "line the range. In brackets: in how many cells the alternative has a time, if not in all."
    )
    yield Drawing("speedup", "Against each alternative", caption, figure)


def _floors(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    found = [cell for cell in cells(rows) if cell.over_floor]
    if not found:
        return
    threads = unique(cell.rows[0].threads for cell in found)
    groups = by(found, lambda row: row.dtype)
    names = unique((cell.rows[0].case, cell.rows[0].which) for cell in found)
    figure, panels = _grid(len(groups), 2, 4.5, 0.42 * len(names) + 0.5, share=True)
    for panel, (dtype, part) in zip(panels, groups.items(), strict=True):
        strips = by(part, lambda row: (row.case, row.which, row.threads))
        for (line, name), (index, count) in product(enumerate(names), enumerate(threads)):
            mine = strips.get((*name, count), [])
            for step, cell in enumerate(mine):
                at = line + (index - (len(threads) - 1) / 2) * 0.36 + 0.26 * (step / len(mine) - 0.4)
                _dot(panel, cell.over_floor or 0.0, at, "o", _tone(index), cell.rows[0])
            limit = target(mine[0].rows[0]) if mine else None
            if limit is not None:
                panel.plot([limit, limit], [line - 0.5, line + 0.5], "--", color=_RED, linewidth=1.2)
        panel.set_title(dtype)
        _categories(panel, ["\n".join(name) for name in names])
    _ratios(figure, panels, "our time / floor")
    _legend(figure, {place("", count): (_tone(i), "o", 1.0) for i, count in enumerate(threads) if count})
    caption = (
        "Each point is a cell; the floor, at 1, is the least time that its bytes or its FLOPs take on this "
        "machine. Dashed: the target. Hollow: NCHW."
    )
    yield Drawing("floor", "Against the floor", caption, figure)


def _rooflines(rows: Sequence[Row], ceilings: Sequence[Row]) -> Iterator[Drawing]:
    found = [cell for cell in cells(rows) if cell.over_floor]
    if not found or not ceilings:
        return
    groups = by(found, lambda row: (row.dtype, row.threads))
    ops = unique(cell.rows[0].case for cell in found)
    figure, panels = _grid(len(groups), 2, 5.0, 3.4)
    for panel, ((dtype, threads), part) in zip(panels, groups.items(), strict=True):
        xs = []
        for cell in part:
            flops, x = _job(cell.rows[0])
            xs.append(x)
            for row in filter(None, (cell.fastest_peer, cell.ours)):
                mark = "." if row.role == PEER else "o" if row.which == "forward" else "D"
                colour = _tone(ops.index(row.case)) if row.role == OURS else _GREY
                _dot(panel, x, flops / (row.median or math.nan), mark, colour, row)
        panel.set(title=place(dtype, threads), yscale="log", xscale="log", ylabel="GFLOP/s")
        mine = [row for row in ceilings if row.threads == threads and row.dtype in ("", dtype)]
        _ceilings(panel, mine, min(xs) / 3, max(xs) * 3)
        panel.grid(alpha=0.6)
        _plain(panel.xaxis)
        _plain(panel.yaxis, 1e9)
    figure.supxlabel("FLOPs per compulsory byte", fontsize=9)
    marks = {FASTEST: (_GREY, ".", 1.0), "forward": (_INK, "o", 1.0), "forward+backward": (_INK, "D", 1.0)}
    _legend(figure, {op: (_tone(index), "s", 1.0) for index, op in enumerate(ops)} | marks)
    caption = (
        "Each point is a cell: its compulsory FLOPs over our median time; grey, over the fastest "
        "alternative's. Hollow: NCHW. Lines: the rate of products, and the largest and the least bandwidth "
        "over the sizes of the maps, measured in the same run."
    )
    yield Drawing("roofline", "Against the machine", caption, figure)


def _job(row: Row) -> tuple[float, float]:
    """FLOPs that cannot be avoided, and how many of them there are for each byte."""
    from benchmarks.roofline import op_work

    batch, pixels, channels, tokens = map(int, row.shape.split("x"))
    work = op_work(row.case, row.which, batch, pixels, channels, tokens, 4 if row.dtype == "fp32" else 2)
    flops = sum(each.flops for each in work)
    return flops, flops / sum(each.reads + each.writes for each in work)


# What a ceiling is a rate of.
RATES = {"stream": "B", "copy": "B", "multiply-add": "FLOP", "torch.mm": "FLOP"}


def _ceilings(panel: Axes, ceilings: Sequence[Row], left: float, right: float) -> None:
    """A level line for the fastest rate of products, a sloped one for the largest and the least bandwidth."""
    rates = [(row.work / row.median, row) for row in ceilings if row.work and row.median]
    slopes = sorted((rate, row.shape) for rate, row in rates if RATES.get(row.case) == "B")
    top = max((rate for rate, row in rates if RATES.get(row.case) == "FLOP"), default=math.inf)
    for slope, shape in unique([*slopes[:1], *slopes[-1:]]):
        start, end = min(left, top / slopes[-1][0] / 4), min(top / slope, right)
        panel.plot([start, end], [start * slope, end * slope], color=_INK, linewidth=1.0)
        text = f"{digits(sum(map(int, shape.split('+'))) / 1e6)} MB: {slope / 1e9:.0f} GB/s"
        _beside(panel, start, start * slope, text, xytext=(10, 0), fontsize=7.0)
    if top < math.inf:
        panel.plot([top / slopes[-1][0] if slopes else left, right], [top, top], color=_INK, linewidth=1.0)
        panel.text(right, top * 1.03, f"{top / 1e9:.0f} GFLOP/s", ha="right", va="bottom", fontsize=7.5)


def _curves(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    varying: dict[str, list[tuple[float, Cell]]] = {}
    for cell in cells(rows):
        for name, _sign, value in (text.partition("=") for text in cell.rows[0].series.split()):
            varying.setdefault(name, []).append((float(value), cell))
    caption = (
        "The line is the median, shaded from the 20 % to the 80 % quantile. A cross marks a size that does "
        "not fit into memory, fails the accuracy check or has no time for another reason."
    )
    for name, members in varying.items():
        for what, unit in (("time", "ms"), ("memory", "extra MB")):
            title = f"{what.capitalize()} against {_SERIES.get(name, name)}"
            figure = _curve_figure(name, unit, sorted(members, key=lambda member: member[0]))
            yield Drawing(f"{name}-{what}", title, caption, figure)


def _curve_figure(name: str, unit: str, members: Sequence[tuple[float, Cell]]) -> Figure:
    """A panel for each op and pass."""
    names = unique(row.contender for _, cell in members for row in cell.rows)
    titles = {cell: _curve_title(cell.rows[0], name) for _, cell in members}
    groups = unique(titles.values())
    figure, panels = _grid(len(groups), 2, 5.2, 3.4)
    for panel, title in zip(panels, groups, strict=True):
        part = [(x, cell) for x, cell in members if titles[cell] == title]
        crossed = 0
        for contender in names:
            points = [(x, row) for x, cell in part for row in cell.rows if row.contender == contender]
            known = [(x, *_ends(row, unit)) for x, row in points if row.median]
            colour, line, _ = _style(contender, names)
            if known:
                at, values, lows, highs = zip(*known, strict=True)
                panel.plot(at, values, line, marker="o", markersize=3.5, linewidth=1.5, color=colour)
                panel.fill_between(at, lows, highs, color=colour, alpha=0.2, linewidth=0)
            missing = [x for x, row in points if not row.median]
            height = [0.96 - 0.045 * crossed] * len(missing)
            panel.plot(missing, height, "x", color=colour, mew=1.8, transform=panel.get_xaxis_transform())
            crossed += bool(missing)
        panel.set(title=title, xlabel=_SERIES.get(name, name), ylabel=unit, xscale="log", yscale="log")
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** (0.06 * crossed))  # room for crosses
        xs = unique(x for x, _ in part)
        panel.set_xticks(xs, [f"{x:.0f}" for x in xs], rotation=30 if xs[-1] >= 1e4 else 0)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.6)
        _plain(panel.yaxis)
    _legend(figure, {each: (*_style(each, names)[:2], 1.0) for each in names})
    return figure


def _ends(row: Row, unit: str) -> tuple[float, float, float]:
    """Value and quantiles. A logarithmic axis has no 0."""
    median = row.median or math.nan
    if unit == "ms":
        return 1e3 * median, 1e3 * (row.low or median), 1e3 * (row.high or median)
    return ((row.extra_bytes or math.nan) / 1e6,) * 3


def _curve_title(row: Row, name: str) -> str:
    sizes = zip("BNCL", row.shape.split("x"), strict=False)
    shape = "x".join(key if key == name else size for key, size in sizes)
    case = re.sub(r" (in|of) \d+( chunks)?$", "", row.case)
    where = place(row.dtype, None if name == "threads" else row.threads)
    return f"{case}, {row.which}\n{shape} {where}, {row.layout}"


def _rates(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    figure = _bars(rows, "images per second", lambda row, seconds: images(row) / seconds)
    yield Drawing("rate", "Images per second", f"Images per second. {_BARS}", figure)


def _overheads(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    calls = [row for row in rows if not is_first_call(row)]
    figure = _bars(calls, "µs per call", lambda _, seconds: 1e6 * seconds)
    yield Drawing("calls", "Cost of a call", f"Calls with next to nothing to compute. {_BARS}", figure)


_BARS = "Bars are medians, relative to the longest of their group; lines, from the 20 % to the 80 % quantile."


def images(row: Row) -> int:
    """How many images a step takes: the first number of the input's shape."""
    return int(row.shape.partition("x")[0])


def is_first_call(row: Row) -> bool:
    """Whether it is of a fresh process."""
    return row.case.startswith("first call")


def _bars(rows: Sequence[Row], label: str, value: Callable[[Row, float], float]) -> Figure:
    """A panel for each pass, and in it a group of bars for each case."""
    names, passes = unique(row.contender for row in rows), unique(row.which for row in rows)
    keys = [key for key in ("dtype", "layout") if len({getattr(row, key) for row in rows}) > 1]
    groups = by(cells(rows), lambda row: (row.case, row.shape, *(getattr(row, key) for key in keys)))
    tops, height = [], 0
    for part in groups.values():
        tops.append(height)
        height += max(len(cell.rows) for cell in part) + 1
    figure, panels = _grid(len(passes), len(passes), 4.8, 0.165 * height + 0.5, share=True)
    for panel, which in zip(panels, passes, strict=True):
        for top, part in zip(tops, groups.values(), strict=True):
            mine = [row for cell in part for row in cell.rows if row.which == which]
            longest = max((value(row, row.median) for row in mine if row.median), default=1.0)
            for at, row in enumerate(mine, top):
                if not row.median:
                    _beside(panel, 0.0, at, f"✕ {row.reason[:40]}", color=_RED)
                    continue
                size, *ends = (value(row, end or row.median) for end in (row.median, row.low, row.high))
                colour, _, shade = _style(row.contender, names)
                panel.barh(at, size / longest, 0.85, color=colour, alpha=shade)
                panel.plot([end / longest for end in ends], [at, at], color=_INK, linewidth=1.0)
                _beside(panel, max(size, *ends) / longest, at, digits(size))
        panel.set(title=f"{which}: {label}", xlim=(0, 1.2), xticks=[], ylim=(height - 1.5, -0.5))
        panel.set_yticks([top + 0.5 for top in tops], [f"{case}\n{' '.join(rest)}" for case, *rest in groups])
        panel.tick_params(axis="y", length=0)
        panel.spines["bottom"].set_visible(False)
    styles = {name: _style(name, names) for name in names}
    _legend(figure, {name: (colour, "s", alpha) for name, (colour, _, alpha) in styles.items()})
    return figure


def _layers(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    """The README's chart, for each dtype: speed over the shipped layer and over its algebra by hand."""
    most = max(row.threads or 0 for row in rows)
    found = [cell for cell in cells(rows) if cell.speedup and (cell.rows[0].threads or 0) == most]
    for index, (dtype, part) in enumerate(by(found, lambda row: row.dtype).items()):
        names = unique(cell.rows[0].case for cell in part)
        passes = unique(cell.rows[0].which for cell in part)
        figure, [panel] = _grid(1, 1, 8.0, 0.3 * len(names) * len(passes) + 0.2)
        for cell in part:
            first, speedup = cell.rows[0], cell.speedup or 0.0
            shipped = (
                Cell(tuple(row for row in cell.rows if "folded" not in row.contender)).speedup or speedup
            )
            turn = passes.index(first.which)
            at = names.index(first.case) + (turn - (len(passes) - 1) / 2) * 0.38
            panel.barh(at, shipped - 1.0, 0.34, left=1.0, color=_tone(turn), alpha=0.4)
            panel.barh(at, speedup - 1.0, 0.34, left=1.0, color=_tone(turn))
            text = f"{shipped:.1f}\N{MULTIPLICATION SIGN}"
            label = _beside(panel, max(1.0, shipped), at, text, weight="bold", fontsize=9)
            if speedup < shipped:
                text = f"{speedup:.1f}\N{MULTIPLICATION SIGN} by hand"
                _beside(panel, 1, 0.5, text, xycoords=label, color=_GREY)
        _categories(panel, [textwrap.fill(name, 24) for name in names])
        panel.set_xscale("log")
        panel.axvline(1.0, color=_INK, linewidth=1.2)
        panel.set_xlim(panel.get_xlim()[0], 2.2 * panel.get_xlim()[1])
        _plain(panel.xaxis)
        figure.supxlabel("times as fast", fontsize=9)
        _legend(
            figure, {_SPOKEN.get(each, each): (_tone(turn), "s", 1.0) for turn, each in enumerate(passes)}
        )
        where = place(dtype, most or None)
        caption = (
            f"How many times as fast ({where}) as the layer that its package ships, in the fastest of its "
            "forms (eager, fused attention, compiled). Dark: as the same folded algebra, written by hand in "
            "PyTorch, where that is faster."
        )
        yield Drawing(f"speedup-{dtype}" if index else "speedup", f"Real layers, {where}", caption, figure)


_MAKERS: Sequence[tuple[str, Callable[[Sequence[Row], Sequence[Row]], Iterator[Drawing]]]] = (
    ("ops", _speedups),
    ("ops", _floors),
    ("ops", _rooflines),
    ("layers", _layers),
    ("models", _rates),
    ("scaling", _curves),
    ("overhead", _overheads),
)


def _grid(
    count: int, columns: int, width: float, height: float, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """``count`` panels of so many inches; ``share``: they have the same axes."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flatten().tolist()
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _legend(figure: Figure, entries: dict[str, tuple[str, str, float]]) -> None:
    """Names above all panels: colour, marker or line, and opacity of each."""
    from matplotlib.lines import Line2D

    handles = []
    for name, (colour, form, alpha) in entries.items():
        style: Any = {"linestyle": form} if form in ("-", "--") else {"linestyle": "", "marker": form}
        handles.append(Line2D([], [], color=colour, alpha=alpha, label=name, **style))
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))


def _categories(panel: Axes, names: Sequence[str]) -> None:
    """Names down the left side, the first on top."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", alpha=0.6)


def _ratios(figure: Figure, panels: Sequence[Axes], label: str) -> None:
    """A logarithmic axis of ratios, with a line at 1."""
    for panel in panels:
        panel.axvline(1.0, color=_INK, linewidth=1.2)
    panels[0].set_xscale("log")
    _plain(panels[0].xaxis)
    figure.supxlabel(label, fontsize=9)


def _plain(axis: Any, unit: float = 1.0) -> None:
    """Plain numbers at the ticks of a logarithmic axis, more of them where the range is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    axis.set_minor_locator(NullLocator())


def _dot(panel: Axes, x: float, y: float, mark: str, colour: str, row: Row) -> None:
    """A point, hollow for NCHW."""
    face = colour if row.layout == "channels_last" else "none"
    panel.plot([x], [y], mark, color=colour, mfc=face, markersize=4.5)


def _beside(panel: Axes, x: float, y: float, text: str, **style: Any) -> Any:
    """Text to the right of a point; returns it."""
    style = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5, **style}
    return panel.annotate(text, (x, y), **style)


def _named(cell: Cell, name: str) -> Row | None:
    if name == FASTEST:
        return cell.fastest_peer
    return next((row for row in cell.rows if row.contender == name and row.role == PEER), None)


def _shade(count: Any, counts: Sequence[Any]) -> float:
    return 1.0 if count == counts[-1] else 0.45


def _tone(index: int) -> str:
    return (_BLUE, *_CYCLE)[index % 9]


def _style(name: str, names: Sequence[str]) -> tuple[str, str, float]:
    """Colour, line and opacity. Blue is ours; a compiled contender has the colour of what it compiles."""
    plain = name.removeprefix("compile ")
    line, alpha = ("-", 1.0) if plain == name else ("--", 0.55)
    ours = [each for each in names if each.startswith("vt_fast")]
    if name in ours:
        return _BLUE if name == ours[0] else _SKY, line, alpha
    others = unique(each.removeprefix("compile ") for each in names if each not in ours)
    return _CYCLE[others.index(plain) % len(_CYCLE)], line, alpha
