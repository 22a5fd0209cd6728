"""Pictures of a run: drawings inside the page, in light and dark, and PNGs on white."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.results import CEILING, OURS, PEER, SHORT, Cell, Row, Run, cells
from benchmarks.roofline import op_work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FASTEST = "fastest alternative"
# Our time in multiples of the floor, at most: on a CPU by dtype, on a GPU by pass, see :func:`target`.
_CPU_TARGETS = {"fp32": 1.25, "bf16": 1.6}
_GPU_TARGETS = {"forward": 1 / 0.90, "forward+backward": 1 / 0.85}
# The page puts its own colours in place of these two; nothing else may have them.
INK, LINE = "#1b1f25", "#d5dae1"
# After Okabe and Ito: colour-blind readers can tell them apart, and they are seen on white and on black.
BLUE, ORANGE, GREEN, RED, SKY, GREY = "#1f7fc4", "#de8f05", "#029e73", "#d55e00", "#56b4e9", "#8a94a0"
_CYCLE = (ORANGE, GREEN, RED, "#cc78bc", "#a8962b", "#7b6fd0", "#a3705a", GREY)
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{
        f"{part}color": INK for part in ("axes.edge", "axes.label", "axes.title", "text.", "xtick.", "ytick.")
    },
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # an error message may have a $ in it
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
}
# The line of a range is cut beyond so many times the mean: one hopeless cell should not squeeze all bars.
_LONGEST = 10.0
_SERIES = {"N": "pixels N", "L": "tokens L", "C": "channels C", "B": "samples B"}
_PLAIN_NAMES = {"inference": "forward", "forward+backward": "training", "training step": "training"}


class Drawing(NamedTuple):
    """A picture: its name behind that of the result file, its title, a caption, and what it is of."""

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
            # On a GPU, of captured graphs.
            rows = [row for row in run.rows if row.mode == mode and row.clock != "calls"]
            found += make(rows, ceilings) if rows else ()
        for drawing in found:
            # Once here, and not again each time that it is saved.
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")
    return found


def svg(figure: Figure, name: str, title: str) -> str:
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
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1).strip()


def png(figure: Figure, path: Path) -> Path:
    """Write a file, on white; returns its path."""
    from matplotlib import rc_context

    with rc_context(_RC):
        figure.savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return path


def target(row: Row) -> float | None:
    """What our time in multiples of the floor should not exceed; None where there is no target."""
    if row.threads is not None:
        return _CPU_TARGETS.get(row.dtype)
    bound_by_memory = row.dtype in ("bf16", "fp16") and int(row.shape.rpartition("x")[2]) <= 32
    return _GPU_TARGETS.get(row.which) if bound_by_memory else None


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
    return dtype if threads is None else f"{dtype}, {threads} thread{'s' * (threads != 1)}".removeprefix(", ")


def digits(value: float) -> str:
    """Three digits in plain notation.

    Example:
        >>> digits(1234.5), digits(1.0), digits(0.012345), digits(0.0)
        ('1234', '1.00', '0.0123', '0')
    """
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def images(row: Row) -> int:
    """How many images a step takes: the first number of the input's shape."""
    return int(row.shape.partition("x")[0])


def unique(values: Iterable[Any]) -> list[Any]:
    """Values once each, in their order."""
    return list(dict.fromkeys(values))


def _speedups(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    """A panel for each dtype and pass; for each peer a bar for each count of threads."""
    found = [cell for cell in cells(rows) if cell.speedup]
    names = [FASTEST, *sorted(unique(row.contender for row in rows if row.role == PEER), key=_compiled)]
    threads = unique(cell.rows[0].threads for cell in found)
    groups = _by(found, lambda row: (row.dtype, row.which))
    columns = len({which for _, which in groups})
    figure, panels = _grid(
        len(groups), columns, 4.4 * columns, 0.17 * len(names) * len(threads) + 0.6, share=True
    )
    for panel, (key, part) in zip(panels, groups.items(), strict=True):
        for (row, name), (index, count) in product(enumerate(names), enumerate(threads)):
            mine = [cell for cell in part if cell.rows[0].threads == count]
            pairs = [(_named(cell, name), cell.ours) for cell in mine]
            taking = [peer for peer, _ in pairs if peer]
            ratios = [p.median / o.median for p, o in pairs if p and o and p.median and o.median]
            at = row + (index - (len(threads) - 1) / 2) * 0.8 / len(threads)
            if not ratios:
                why = ", ".join(unique(SHORT[peer.status] for peer in taking)) or "takes no part"
                panel.text(1.0, at, f"  ✕ {why}", va="center", fontsize=7.5, color=RED)
                continue
            mean, end = geometric_mean(ratios), min(max(ratios), _LONGEST * geometric_mean(ratios))
            shade, colour = 1.0 if index == len(threads) - 1 else 0.45, ORANGE if name == FASTEST else BLUE
            panel.barh(at, mean - 1.0, 0.72 / len(threads), left=1.0, color=colour, alpha=shade)
            panel.plot([min(ratios), end], [at, at], color=INK, linewidth=1.0)
            share = f" ({len(ratios)} of {len(taking)})" if len(ratios) < len(taking) else ""
            _beside(panel, max(1.0, end), at, f"{'… ' * (end < max(ratios))}{mean:.2f}{share}")
        panel.axvline(1.0, color=INK, linewidth=1.2)
        panel.set_title(", ".join(key))
        _categories(panel, names)
        panel.margins(x=0.25)
    _logarithmic(panels[0])
    _legend(figure, {place("", n): (BLUE, "s", 0.45 + 0.55 * (n == threads[-1])) for n in threads if n})
    figure.supxlabel("alternative's time / our time", fontsize=9)
    yield Drawing(
        "speedup",
        "Against each alternative",
        "Time of each alternative in multiples of ours: the bar is the geometric mean over all cells, the line "
        "the range. Right of 1 the alternative is slower. In brackets: in how many cells it has a time, if not "
        "in all.",
        figure,
    )


def _floors(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    """A panel for each dtype, a strip for each op and pass."""
    found = [cell for cell in cells(rows) if cell.over_floor]
    if not found:
        return
    names = unique(_strip(cell.rows[0]) for cell in found)
    threads = unique(cell.rows[0].threads for cell in found)
    groups = _by(found, lambda row: row.dtype)
    columns = min(len(groups), 2)
    figure, panels = _grid(len(groups), columns, 0.8 + 4.2 * columns, 0.42 * len(names) + 0.5, share=True)
    for panel, (dtype, part) in zip(panels, groups.items(), strict=True):
        for (row, name), (index, count) in product(enumerate(names), enumerate(threads)):
            mine = [c for c in part if (_strip(c.rows[0]), c.rows[0].threads) == (name, count)]
            for step, cell in enumerate(mine):
                at = row + (index - (len(threads) - 1) / 2) * 0.36 + 0.26 * (step / len(mine) - 0.4)
                face = _tone(index) if cell.rows[0].layout == "channels_last" else "none"
                panel.plot([cell.over_floor or 0], [at], "o", color=_tone(index), mfc=face, markersize=4.5)
            limit = target(mine[0].rows[0]) if mine else None
            if limit is not None:
                panel.plot([limit, limit], [row - 0.5, row + 0.5], "--", color=RED, linewidth=1.2)
        panel.axvline(1.0, color=INK, linewidth=1.2)
        panel.set_title(dtype)
        _categories(panel, names)
    _logarithmic(panels[0])
    _legend(figure, {place("", count): (_tone(i), "o", 1.0) for i, count in enumerate(threads) if count})
    figure.supxlabel("our time / floor", fontsize=9)
    yield Drawing(
        "floor",
        "Against the floor",
        "Each point is a cell; the floor, at 1, is the least time that its bytes or its FLOPs take on this "
        "machine. Dashed: the target. Hollow: NCHW.",
        figure,
    )


def _rooflines(rows: Sequence[Row], ceilings: Sequence[Row]) -> Iterator[Drawing]:
    """A panel for each dtype and number of threads, a point for each cell."""
    found = [cell for cell in cells(rows) if cell.over_floor]
    groups = _by(found, lambda row: (row.dtype, row.threads))
    if not found or not ceilings:
        return
    columns = min(len(groups), 2)
    figure, panels = _grid(len(groups), columns, 5.0 * columns, 3.4)
    ops = unique(cell.rows[0].case for cell in found)
    for panel, ((dtype, threads), part) in zip(panels, groups.items(), strict=True):
        ends = []
        for cell in part:
            flops, intensity = _job(cell.rows[0])
            ends.append(intensity)
            for row in filter(None, (cell.fastest_peer, cell.ours)):
                colour = _tone(ops.index(row.case)) if row.role == OURS else GREY
                mark = "." if row.role == PEER else "o" if row.which == "forward" else "D"
                face = colour if row.layout == "channels_last" else "none"
                rate = flops / (row.median or 1.0)
                panel.plot([intensity], [rate], mark, color=colour, mfc=face, markersize=4.5)
        panel.set(title=place(dtype, threads), yscale="log", xscale="log", ylabel="GFLOP/s")
        _ceilings(
            panel, [row for row in ceilings if row.threads == threads], dtype, min(ends) / 3, max(ends) * 3
        )
        panel.grid(alpha=0.6)
    marks = {FASTEST: (GREY, ".", 1.0), "forward": (INK, "o", 1.0), "forward+backward": (INK, "D", 1.0)}
    _legend(figure, {op: (_tone(index), "s", 1.0) for index, op in enumerate(ops)} | marks)
    figure.supxlabel("FLOPs per compulsory byte", fontsize=9)
    yield Drawing(
        "roofline",
        "Against the machine",
        "Each point is a cell: its compulsory FLOPs over our median time; grey, over the fastest alternative's. "
        "Hollow: NCHW. Lines: bandwidths and FMA rate as the probe measured them in the same run.",
        figure,
    )


def _job(row: Row) -> tuple[float, float]:
    """FLOPs that cannot be avoided, and how many of them there are for each byte."""
    batch, pixels, channels, tokens = map(int, row.shape.split("x"))
    work = op_work(row.case, row.which, batch, pixels, channels, tokens, 4 if row.dtype == "fp32" else 2)
    flops = sum(each.flops for each in work)
    return flops, flops / sum(each.reads + each.writes for each in work)


def _ceilings(panel: Axes, ceilings: Sequence[Row], dtype: str, left: float, right: float) -> None:
    """A sloped line for each bandwidth, and a level one for the fastest rate of products."""
    rates = {row: row.work / row.median for row in ceilings if row.work and row.median}
    flops = max((r for row, r in rates.items() if row.bound == "flops" and row.dtype == dtype), default=None)
    slopes = [(row, rate) for row, rate in rates.items() if row.bound == "bytes"]
    for row, slope in slopes:
        end = right if flops is None else min(flops / slope, right)
        panel.plot([left, end], [left * slope, end * slope], color=INK, linewidth=1.0)
        panel.annotate(
            f"{row.case} {row.shape} {slope / 1e9:.0f} GB/s".replace("  ", " "),
            (left, left * slope),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.0,
        )
    if flops is not None:
        panel.plot(
            [flops / max((s for _, s in slopes), default=flops / left), right], [flops, flops], color=INK
        )
        panel.text(right, flops * 1.03, f"{flops / 1e9:.0f} GFLOP/s", ha="right", va="bottom", fontsize=7.5)
    _plain(panel.xaxis)
    _plain(panel.yaxis, 1e9)


def _curves(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    """Time and memory against each size that varies: a panel for each op and pass."""
    varying: dict[str, list[tuple[float, Cell]]] = {}
    for cell in cells(rows):
        for name, _sign, value in (text.partition("=") for text in cell.rows[0].series.split()):
            varying.setdefault(name, []).append((float(value), cell))
    for name, members in varying.items():
        label = _SERIES.get(name, name)
        for what, unit in (("time", "ms"), ("memory", "extra MB")):
            yield Drawing(
                f"{name}-{what}",
                f"{what.capitalize()} against {label}",
                "The line is the median, shaded from the 20 % to the 80 % quantile. A cross marks a size that does "
                "not fit into memory, fails the accuracy check or has no time for another reason.",
                _curve_figure(name, label, unit, sorted(members, key=lambda member: member[0])),
            )


def _curve_figure(name: str, label: str, unit: str, members: Sequence[tuple[float, Cell]]) -> Figure:
    names = unique(row.contender for _, cell in members for row in cell.rows)
    titles = {cell: _curve_title(cell.rows[0], name) for _, cell in members}
    groups = unique(titles.values())
    figure, panels = _grid(len(groups), min(2, len(groups)), 5.2 * min(2, len(groups)), 3.4)
    for panel, title in zip(panels, groups, strict=True):
        part = [(x, cell) for x, cell in members if titles[cell] == title]
        for index, contender in enumerate(names):
            points = [(x, row) for x, cell in part for row in cell.rows if row.contender == contender]
            known = [(x, *_ends(row, unit)) for x, row in points if row.median]
            colour, line = _colour(contender, names), "--" if _compiled(contender) else "-"
            if known:
                xs, values, lows, highs = zip(*known, strict=True)
                panel.plot(xs, values, line, marker="o", markersize=3.5, linewidth=1.5, color=colour)
                panel.fill_between(xs, lows, highs, color=colour, alpha=0.2, linewidth=0)
            missing = [x for x, row in points if not row.median]
            height = [0.99 - 0.04 * index] * len(missing)
            panel.plot(missing, height, "x", color=colour, mew=1.8, transform=panel.get_xaxis_transform())
        xs = sorted({x for x, _ in part})
        panel.set(title=title, xlabel=label, ylabel=unit, xscale="log", yscale="log")
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** (0.04 * len(names)))  # room for crosses
        panel.set_xticks(xs, [f"{x:.0f}" for x in xs], rotation=30 if xs[-1] >= 1e4 else 0)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.6)
        _plain(panel.yaxis)
    _legend(figure, {each: (_colour(each, names), "--" if _compiled(each) else "-", 1.0) for each in names})
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
    yield Drawing(
        "rate",
        "Images per second",
        "Images per second at the median time of a step, the line from the 20 % to the 80 % quantile of the "
        "times. Bars are relative to the longest of their group.",
        _bars(rows, "images per second", lambda row, seconds: images(row) / seconds),
    )


def _overheads(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    yield Drawing(
        "calls",
        "Cost of a call",
        "Microseconds of a call with next to nothing to compute: the median, and the line from the 20 % to the "
        "80 % quantile. Bars are relative to the longest of their group.",
        _bars(
            [row for row in rows if not is_first_call(row)], "µs per call", lambda _, seconds: 1e6 * seconds
        ),
    )


def is_first_call(row: Row) -> bool:
    """Whether it is of a fresh process."""
    return row.case.startswith("first call")


def _bars(rows: Sequence[Row], label: str, value: Callable[[Row, float], float]) -> Figure:
    """A panel for each pass, and in it a group of bars for each case."""
    names, passes = unique(row.contender for row in rows), unique(row.which for row in rows)
    titles = {cell: _bar_title(cell.rows[0], rows) for cell in cells(rows)}
    tops, height = dict[str, int](), 0
    for title in unique(titles.values()):
        tops[title] = height
        height += max(len(cell.rows) for cell in titles if titles[cell] == title) + 1
    figure, panels = _grid(
        len(passes), len(passes), 2.2 + 3.9 * len(passes), 0.165 * height + 0.5, share=True
    )
    for panel, which in zip(panels, passes, strict=True):
        for cell in (cell for cell in titles if cell.rows[0].which == which):
            longest = max((value(row, row.median) for row in cell.rows if row.median), default=1.0)
            for at, row in enumerate(cell.rows, tops[titles[cell]]):
                if not row.median:
                    panel.text(0.0, at, f" ✕ {row.reason[:40]}", va="center", fontsize=7.5, color=RED)
                    continue
                ends = [value(row, end or row.median) / longest for end in (row.low, row.high)]
                size, colour = value(row, row.median), _colour(row.contender, names)
                panel.barh(at, size / longest, 0.85, color=colour, alpha=_opacity(row.contender))
                panel.plot(ends, [at, at], color=INK, linewidth=1.0)
                _beside(panel, max(size / longest, *ends), at, digits(size))
        panel.set(title=f"{which}: {label}", xlim=(0, 1.2), xticks=[], ylim=(height - 1.5, -0.5))
        panel.set_yticks([top + 0.5 for top in tops.values()], list(tops))
        panel.tick_params(axis="y", length=0)
        panel.spines["bottom"].set_visible(False)
    _legend(figure, {name: (_colour(name, names), "s", _opacity(name)) for name in names})
    return figure


def _layers(rows: Sequence[Row], _: Sequence[Row]) -> Iterator[Drawing]:
    """Real layers against their fastest alternative, on the most threads: the README's chart, for each dtype."""
    most = max((row.threads or 0 for row in rows), default=0)
    found = [cell for cell in cells(rows) if cell.speedup and (cell.rows[0].threads or 0) == most]
    for index, (dtype, part) in enumerate(_by(found, lambda row: row.dtype).items()):
        names, passes = (
            unique(cell.rows[0].case for cell in part),
            unique(cell.rows[0].which for cell in part),
        )
        figure, [panel] = _grid(1, 1, 8.0, 0.3 * len(names) * len(passes) + 0.2)
        for cell in part:
            first, peer, speedup = cell.rows[0], cell.fastest_peer, cell.speedup or 0.0
            turn = passes.index(first.which)
            at = names.index(first.case) + (turn - (len(passes) - 1) / 2) * 0.38
            panel.barh(at, speedup, 0.34, color=_tone(turn))
            if first.case == names[0]:
                text = _PLAIN_NAMES.get(first.which, first.which)
                panel.text(0.05, at, text, va="center", color="#000000" if turn else "#ffffff")
            shift = {"textcoords": "offset points", "xytext": (4, 0), "va": "center"}
            times = panel.annotate(f"{speedup:.1f}×", (speedup, at), weight="bold", **shift)
            alternative = f"  {peer.contender if peer else ''}"
            panel.annotate(alternative, (1, 0.5), xycoords=times, va="center", fontsize=8, color=GREY)
        panel.axvline(1.0, color=INK, linewidth=1.2)
        panel.set_xlim(0, 1.35 * max(cell.speedup or 0 for cell in part))
        panel.set_xticks([1.0], ["fastest\nalternative"])
        panel.spines[["bottom", "left"]].set_visible(False)
        _categories(panel, names)
        panel.grid(False)
        where = place(dtype, most or None)
        caption = (
            f"How many times as fast as the fastest alternative, which is named beside the bar ({where})."
        )
        yield Drawing(f"layers-{dtype}" if index else "layers", f"Real layers, {where}", caption, figure)


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
    """``count`` panels; ``width`` of all in inches, ``height`` of one row; ``share``: one pair of axes for all."""
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(width, height * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flatten().tolist()
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _by(found: Iterable[Cell], key: Callable[[Row], Any]) -> dict[Any, list[Cell]]:
    groups: dict[Any, list[Cell]] = {}
    for cell in found:
        groups.setdefault(key(cell.rows[0]), []).append(cell)
    return groups


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


def _beside(panel: Axes, x: float, y: float, text: str) -> None:
    panel.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5)


def _logarithmic(panel: Axes) -> None:
    panel.set_xscale("log")
    _plain(panel.xaxis)


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


def _strip(row: Row) -> str:
    return f"{row.case}\n{row.which}"


def _bar_title(row: Row, rows: Sequence[Row]) -> str:
    """Case and shape, and dtype and layout where they vary."""
    some = [
        getattr(row, key) for key in ("dtype", "layout") if len({getattr(each, key) for each in rows}) > 1
    ]
    return "\n".join([row.case, " ".join([row.shape, *some])])


def _compiled(name: str) -> bool:
    return name.startswith("compile ")


def _opacity(name: str) -> float:
    return 0.55 if _compiled(name) else 1.0


def _tone(index: int) -> str:
    return (BLUE, ORANGE, GREEN, *_CYCLE[3:])[index]


def _colour(name: str, names: Sequence[str]) -> str:
    """Blue is ours; a compiled contender has the colour of the one that it compiles."""
    ours = [each for each in names if each.startswith("vt_fast")]
    if name in ours:
        return BLUE if name == ours[0] else SKY
    plain = unique(each.removeprefix("compile ") for each in names if each not in ours)
    return _CYCLE[plain.index(name.removeprefix("compile ")) % len(_CYCLE)]
