"""Pictures of a run, inside the page and as PNGs."""

from __future__ import annotations

import base64
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.results import BACKEND, CEILING, OURS, PEER, place
from benchmarks.shapes import FORWARD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

FASTEST = "fastest alternative"
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
_SERIES = {"N": "pixels N", "L": "tokens L", "C": "channels C", "B": "samples B"}
_SPOKEN = {"inference": "forward", "forward+backward": "training"}
# How many names a chart of bars has in a column.
_BARS = 12


class Drawing(NamedTuple):
    """A picture: its name behind that of the result file, its title and its caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw(data: DataFrame) -> list[Drawing]:
    """All pictures that a :func:`benchmarks.results.frame` has something for."""
    from matplotlib import rc_context

    ceilings = data[data.role == CEILING]
    found: list[Drawing] = []
    with rc_context(_RC):
        for mode, make in _MAKERS:
            rows = data[data["mode"] == mode]
            # Graphs are what a GPU does; calls beside them include what Python takes.
            graphs = rows[rows.clock == "graph"]
            rows = graphs if len(graphs) else rows
            found += make(rows, ceilings) if rows["median"].notna().any() else ()
        for drawing in found:
            # Once here, and not again each time that it is saved.
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")
    return found


def svg(drawing: Drawing) -> str:
    """The address of an image for a page, which holds the whole image."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({**_RC, "svg.hashsalt": "the same in each run"}):
        drawing.figure.savefig(stream, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"


def png(drawing: Drawing, folder: Path) -> Path:
    """Write a file, on white; returns its path."""
    from matplotlib import rc_context

    path = folder / f"{drawing.name}.png"
    with rc_context(_RC):
        drawing.figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    return path


def digits(value: float) -> str:
    """Three digits in plain notation.

    Example:
        >>> digits(1234.5), digits(1.0), digits(-0.012345), digits(0.0), digits(math.nan)
        ('1234', '1.00', '-0.0123', '0', '-')
    """
    if value != value:
        return "-"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def by_series(data: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """For each size that varies its name, and its rows with the size in a column of that name."""
    names = data.series.str.findall(r"(\w+)=").explode().dropna().unique()
    for name in names:
        values = data.series.str.extract(rf"\b{name}=(\d+)")[0].dropna().astype(int)
        yield name, data.loc[values.index].assign(**{name: values})


def _rooflines(data: DataFrame, ceilings: DataFrame) -> Iterator[Drawing]:
    found = data[data.role == OURS].dropna(subset="over_floor")
    if found.empty or ceilings.empty:
        return
    groups = list(found.groupby(["dtype", "where"], sort=False))
    ops = list(found.case.unique())
    figure, panels = _grid(len(groups), 2, 5.0, 3.4)
    for panel, ((dtype, where), part) in zip(panels, groups, strict=True):
        xs = []
        for row in part.itertuples():
            flops, x = _job(row)
            xs.append(x)
            _dot(panel, x, flops / row.fastest_median, ".", _GREY, row)
            mark = "o" if row.which == FORWARD else "D"
            _dot(panel, x, flops / row.median, mark, _tone(ops.index(row.case)), row)
        panel.set(
            title=place(None, dtype) + f", {where}" * bool(where),
            yscale="log",
            xscale="log",
            ylabel="GFLOP/s",
        )
        mine = ceilings[(ceilings["where"] == where) & ceilings.dtype.isin(["", dtype])]
        if len(mine):
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


def _job(row: Any) -> tuple[float, float]:
    """FLOPs that cannot be avoided, and how many of them there are for each byte."""
    from benchmarks.roofline import op_work

    batch, pixels, channels, tokens = map(int, row.shape.split("x"))
    work = op_work(row.case, row.which, batch, pixels, channels, tokens, 4 if row.dtype == "fp32" else 2)
    flops = sum(each.flops for each in work)
    return flops, flops / sum(each.reads + each.writes for each in work)


# What a ceiling is a rate of.
RATES = {"stream": "B", "multiply-add": "FLOP", "product": "FLOP"}


def _ceilings(panel: Axes, ceilings: DataFrame, left: float, right: float) -> None:
    """A level line for the fastest rate of products, a sloped one for the largest and the least bandwidth."""
    rated = ceilings.assign(rate=ceilings.work / ceilings["median"], of=ceilings.case.map(RATES))
    streams = rated[rated.of == "B"].sort_values("rate")
    top = rated[rated.of == "FLOP"].rate.max()
    for row in streams.iloc[sorted({0, len(streams) - 1})].itertuples():
        start, end = min(left, top / streams.rate.max() / 4), min(top / row.rate, right)
        panel.plot([start, end], [start * row.rate, end * row.rate], color=_INK, linewidth=1.0)
        size = sum(map(int, row.shape.split("+"))) / 1e6
        text = f"{digits(size)} MB: {row.rate / 1e9:.0f} GB/s"
        _beside(panel, start, start * row.rate, text, xytext=(10, 0), fontsize=7.0)
    panel.plot([top / streams.rate.max(), right], [top, top], color=_INK, linewidth=1.0)
    panel.text(right, top * 1.03, f"{top / 1e9:.0f} GFLOP/s", ha="right", va="bottom", fontsize=7.5)


def _curves(data: DataFrame, _: DataFrame) -> Iterator[Drawing]:
    caption = (
        "The line is the median, shaded from the 20 % to the 80 % quantile. A cross marks a size that does "
        "not fit into memory, fails the accuracy check or has no time for another reason."
    )
    for name, part in by_series(data):
        part = part.assign(title=[_curve_title(row, name) for row in part.itertuples()]).sort_values(name)
        memory = part.extra_bytes.where(part["median"].notna()) / 1e6
        units = {
            ("time", "ms"): part.assign(
                middle=1e3 * part["median"], low=1e3 * part.low, high=1e3 * part.high
            ),
            ("memory", "extra MB"): part.assign(middle=memory, low=memory, high=memory),
        }
        for (what, unit), points in units.items():
            title = f"{what.capitalize()} against {_SERIES.get(name, name)}"
            yield Drawing(f"{name}-{what}", title, caption, _curve_figure(name, unit, points))


def _curve_figure(name: str, unit: str, data: DataFrame) -> Figure:
    """A panel for each op and pass."""
    names = list(data.contender.unique())
    groups = list(data.groupby("title", sort=False))
    figure, panels = _grid(len(groups), 2, 5.2, 3.4)
    for panel, (title, part) in zip(panels, groups, strict=True):
        crossed = 0
        for contender, points in part.groupby("contender", sort=False):
            colour, line, _ = _style(contender, names)
            known, missing = points[points["median"].notna()], points[points["median"].isna()]
            panel.plot(
                known[name], known.middle, line, marker="o", markersize=3.5, linewidth=1.5, color=colour
            )
            panel.fill_between(known[name], known.low, known.high, color=colour, alpha=0.2, linewidth=0)
            height = [0.96 - 0.045 * crossed] * len(missing)
            panel.plot(
                missing[name], height, "x", color=colour, mew=1.8, transform=panel.get_xaxis_transform()
            )
            crossed += bool(height)
        panel.set(title=title, xlabel=_SERIES.get(name, name), ylabel=unit, xscale="log", yscale="log")
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** (0.06 * crossed))  # room for crosses
        xs = part[name].unique()
        panel.set_xticks(xs, [f"{x:.0f}" for x in xs], rotation=30 if xs[-1] >= 1e4 else 0)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.6)
        _plain(panel.yaxis)
    _legend(figure, {each: (*_style(each, names)[:2], 1.0) for each in names})
    return figure


def _curve_title(row: Any, name: str) -> str:
    sizes = zip("BNCL", row.shape.split("x"), strict=False)
    shape = "x".join(key if key == name else size for key, size in sizes)
    case = re.sub(r" (in|of) \d+( chunks)?$", "", row.case)
    where = place(None if name == "threads" else row.threads, row.dtype)
    return f"{case}, {row.which}\n{shape} {where}, {row.layout}"


def _layers(data: DataFrame, _: DataFrame) -> Iterator[Drawing]:
    """A chart for each dtype: speed over the shipped layer or model, and over its algebra by hand."""
    patched = data["mode"].iloc[0] == "hosts"
    title = "Known libraries, patched" if patched else "Real layers"
    data = data[data["where"] == data.loc[data.threads.fillna(0).idxmax(), "where"]]
    theirs = data[(data.role == PEER) & ~data.contender.str.contains("folded")]
    shipped = theirs.groupby("cell")["median"].min()
    found = data[data.role == OURS].dropna(subset="speedup")
    if patched:  # compiled or not, on both sides
        best = data[data.role.isin([OURS, BACKEND])].groupby("cell")["median"].min()
        gain = found.cell.map(shipped) / found.cell.map(best)
        found = found.assign(shipped=gain, speedup=gain)
    else:
        found = found.assign(shipped=(found.cell.map(shipped) / found.ours).fillna(found.speedup))
    for index, (dtype, part) in enumerate(found.groupby("dtype", sort=False)):
        passes = list(part.which.unique())
        # The largest gains first, in columns that fit on a page.
        columns: list[tuple[str, list[str]]] = []
        for series, some in sorted(part.groupby("series"), reverse=True):
            names = list(some.groupby("case", sort=False).shipped.max().sort_values(ascending=False).index)
            count = -(-len(names) // _BARS)
            length = -(-len(names) // count)
            columns += [(series, names[at : at + length]) for at in range(0, len(names), length)]
        places = {name: (at, line) for at, (_, some) in enumerate(columns) for line, name in enumerate(some)}
        rows = max(len(some) for _, some in columns)
        width, height = 8.0 / len(columns) ** 0.5, 0.3 * rows * len(passes) + 0.2
        figure, panels = _grid(len(columns), len(columns), width, height)
        for row in part.itertuples():
            tone = _tone(passes.index(row.which))
            column, line = places[row.case]
            panel = panels[column]
            at = line + (passes.index(row.which) - (len(passes) - 1) / 2) * 0.38
            panel.barh(at, row.shipped - 1.0, 0.34, left=1.0, color=tone, alpha=0.4)
            panel.barh(at, row.speedup - 1.0, 0.34, left=1.0, color=tone)
            text = f"{_gain(row.shipped)}\N{MULTIPLICATION SIGN}"
            label = _beside(panel, max(1.0, row.shipped), at, text, weight="bold", fontsize=9)
            if row.speedup < row.shipped:
                text = f"{_gain(row.speedup)}\N{MULTIPLICATION SIGN} by hand"
                _beside(panel, 1, 0.5, text, xycoords=label, color=_GREY)
        for panel, (series, names) in zip(panels, columns, strict=True):
            shown = part[part.series == series]  # one axis for all columns of a series
            least, most = shown.speedup.min(), max(1.0, shown.shipped.max())
            ends = least / 1.05 if least < 1 else 1.0, 1.2 * most**1.25
            _categories(panel, [textwrap.fill(name, 24) for name in names], rows)
            panel.set_title(f"{series}s".capitalize() * bool(series))
            panel.set_xscale("log")
            panel.axvline(1.0, color=_INK, linewidth=1.2)
            panel.set_xlim(*ends)
            _plain(panel.xaxis)
        figure.supxlabel("times as fast (logarithmic)", fontsize=9)
        _legend(figure, {_SPOKEN.get(each, each): (_tone(i), "s", 1.0) for i, each in enumerate(passes)})
        where = place(row.threads, dtype)
        caption = (
            f"How many times as fast ({where}) as the layer that its package ships, in the fastest of its "
            "forms (eager, fused attention, compiled). Dark: as the same folded algebra, written by hand in "
            "PyTorch, where that is faster."
        )
        if patched:
            caption = f"How many times as fast ({where}) as the library's own module; {_forms(data)}."
        yield Drawing(f"speedup-{dtype}" if index else "speedup", f"{title}, {where}", caption, figure)


def _forms(data: DataFrame) -> str:
    """Which sides of hosts were compiled, too, and count where that is faster."""
    compiled = data[data["median"].notna() & data.contender.str.startswith("compile ")]
    theirs, ours = compiled.role.eq(PEER).any(), compiled.role.eq(BACKEND).any()
    if theirs and ours:
        return "each in the faster of its forms, eager or compiled"
    return "which may be compiled where that is faster, ours is not" if theirs else "neither is compiled"


def _gain(times: float) -> str:
    return f"{times:.1f}" if times >= 1.95 else f"{times:.2f}"


_MAKERS: Sequence[tuple[str, Callable[[DataFrame, DataFrame], Iterator[Drawing]]]] = (
    ("ops", _rooflines),
    ("layers", _layers),
    ("hosts", _layers),
    ("scaling", _curves),
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
        columns = min(6, len(handles), int(figure.get_figwidth() // 1.5))
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def _categories(panel: Axes, names: Sequence[str], rows: int) -> None:
    """Names down the left side, the first on top, with room for so many rows."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(rows - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", alpha=0.6)


def _plain(axis: Any, unit: float = 1.0) -> None:
    """Plain numbers at the ticks of a logarithmic axis, more of them where the range is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    some = (1.0, 2.0, 5.0) if high > 3 * low else (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 9.0)
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else some))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    axis.set_minor_locator(NullLocator())


def _dot(panel: Axes, x: float, y: float, mark: str, colour: str, row: Any) -> None:
    """A point, hollow for NCHW."""
    face = colour if row.layout == "channels_last" else "none"
    panel.plot([x], [y], mark, color=colour, mfc=face, markersize=4.5)


def _beside(panel: Axes, x: float, y: float, text: str, **style: Any) -> Any:
    """Text to the right of a point; returns it."""
    style = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5, **style}
    return panel.annotate(text, (x, y), **style)


def _tone(index: int) -> str:
    return (_BLUE, *_CYCLE)[index % 9]


def _style(name: str, names: Sequence[str]) -> tuple[str, str, float]:
    """Colour, line and opacity. Blue is ours; a compiled contender has the colour of what it compiles."""
    plain = name.removeprefix("compile ")
    line, alpha = ("-", 1.0) if plain == name else ("--", 0.55)
    ours = [each for each in names if each.startswith("vt_fast")]
    if name in ours:
        return _BLUE if name == ours[0] else _SKY, line, alpha
    others = list(dict.fromkeys(each.removeprefix("compile ") for each in names if each not in ours))
    return _CYCLE[others.index(plain) % len(_CYCLE)], line, alpha
