"""Tables, page and pictures of made-up runs: every number in them is the file's."""

import base64
import re
from itertools import product
from xml.etree import ElementTree

import pytest

pytest.importorskip("pandas")
pytest.importorskip("tabulate")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from benchmarks import plots, report
from benchmarks.results import BACKEND, CEILING, OURS, PART, PEER, Row, Run, frame

FACTS = {
    "machine": {
        "devices": {"cpu": "Made-up <1> & Co", "cores": "2", "instructions": "none"},
        "versions": {"torch": "2.99", "vt_fast": "0.77"},
    },
    "settings": {"absent": {"flex": "needs <a GPU>"}},
    "commit": {"hash": "0123456789abcdef", "dirty": True},
    "complete": False,
    "problems": ["a case | died"],
}


def row(name, role, median=None, **fields):
    cell = {"mode": "ops", "case": "project", "shape": "3x20x16x4", "dtype": "fp32", "layout": "nchw"}
    times = {} if median is None else {"low": 0.9 * median, "high": 1.2 * median, "rounds": 7}
    given = cell | {"threads": 1, "which": "forward", "median": median} | times | fields
    return Row(contender=name, role=role, **given)


def cell(ours=4e-3, **fields):
    yield row("vt_fast cpu", OURS, ours, extra_bytes=1_110_000, **fields)
    yield row("vt_fast torch", BACKEND, 9e-3, **fields)
    yield row("eager", PEER, 12e-3, extra_bytes=9_990_000, **fields)
    yield row("compile eager", PEER, 8e-3, **fields)
    yield row("sdpa", PEER, status="wrong", reason="dx is off by <much> & more | see", **fields)


def ceilings(**given):
    for case, shape, work in (("stream", "960+960", 3e9), ("multiply-add", "", 7e10), ("clock", "", 4e9)):
        fields = {"mode": "ceilings", "case": case, "shape": shape, "layout": "", "which": "", **given}
        yield row("avx512", CEILING, 1.0, work=work, **fields)


def ops_run():
    """Ours in multiples of the floor: 1.3 (missed), 1.0 and, below by more than noise, 0.5."""
    rows = [*cell(3.9e-3, floor=3e-3, bound="bytes"), *cell(3e-3, floor=3e-3, case="tokenize", bound="flops")]
    rows += cell(4e-3, floor=8e-3, which="forward+backward", bound="flops", layout="channels_last")
    rows += cell(10e-3, dtype="bf16", floor=8e-3, bound="bytes")
    return Run(FACTS, [*rows, *ceilings()])


def scaling_run():
    rows = []
    for pixels in (4, 16, 64):
        fields = {"mode": "scaling", "series": f"N={pixels} B=3", "shape": f"3x{pixels}x16x4"}
        rows += [row("vt_fast cpu", OURS, 1e-3 * pixels, extra_bytes=pixels, **fields)]
        lost = {"status": "skipped", "reason": "too large", "needs_bytes": 16_300_000_000}
        rows += [row("eager", PEER, **(lost if pixels == 64 else {"median": 3e-3 * pixels}), **fields)]
    return Run(FACTS, rows)


def other_run(mode, *contenders):
    """The first one takes 20 ms, the second one a half of it, and so on."""
    rows = []
    for case, which in product(("thing, 7 x 7", "other"), ("inference", "training step")):
        for number, (name, role) in enumerate(contenders, 1):
            fields = {"mode": mode, "case": case, "shape": "8x3x7x7", "which": which}
            rows.append(row(name, role, 0.02 / number, **fields))
    return Run(FACTS, rows)


RUNS = {
    "a": ops_run(),
    "b": scaling_run(),
    "models": other_run(
        "models",
        ("reference", PEER),
        ("vt_fast", OURS),
        ("convolutions", "replaced"),
        ("laterals alone", "replaced"),
    ),
    "layers": other_run("layers", ("compile original", PEER), ("folded sdpa", PEER), ("vt_fast", OURS)),
    "hosts": other_run("hosts", ("original", PEER), ("compile original", PEER), ("vt_fast", OURS)),
    "overhead": other_run("overhead", ("eager", PEER), ("vt_fast cpu", OURS)),
}
RUNS["overhead"].rows.append(row("vt_fast cpu", OURS, 2e-3, mode="overhead", case="first call of tokenize"))


def table(text, *first):
    """The cells behind the first ones of the first line that begins with these."""
    lines = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return next(line[len(first) :] for line in lines if line[: len(first)] == list(first))


def test_ops_on_the_terminal():
    text = report.show(RUNS["a"])
    assert text.startswith(
        "Made-up <1> & Co, 2 cores, none; torch 2.99, vt_fast 0.77, commit 0123456789ab with changes"
    )
    for line in (
        "This run was stopped before its end.",
        "Problem: a case | died",
        "fp32: 1 of 3 cells miss their target.\nbf16: 0 of 1 cells miss their target.",
        "1 of 4 cells are slower than their fastest alternative.",
        "(even the 80 % quantile is): 1 of 4 cells; below it at all: 1.",
    ):
        assert f"{line}\n" in f"{text}\n"
    ours = ["3.00", "-10% +20%", "3.00", "1.00", "flops", "2.67", "compile eager", "1.11", "-"]
    assert table(text, "tokenize", "3x20x16x4", "fwd", "nchw") == [*ours, "3.00", "4.00", "2.67", "wrong"]
    # Geometric means of 8 / 3.9, 8 / 3, and 8 / 10.
    assert table(text, "fp32", "1 thread", "forward") == ["2.34", "2.05", "2.67", "2"]
    assert table(text, "bf16", "1 thread", "forward") == ["0.80", "0.80", "0.80", "1"]
    assert table(text, "project", "fp32") == ["0.90", "1.30", "2", "1.25", "1"]
    assert table(text, "compile eager", "1.72") == ["0.80", "2.67", "4"]
    assert table(text, "sdpa", "wrong", "4")[0].endswith(", 1 thread: dx is off by <much> & more | see")
    assert table(text, "multiply-add", "avx512", "70.0", "GFLOP/s", "-10% +20%") == ["7"]
    # A time near the floor, whose 80 % quantile is 3.12 ms, is not below it.
    text = report.show(Run(FACTS, [*cell(2.6e-3, floor=3e-3)]))
    assert "is): 0 of 1 cells; below it at all: 1." in text


def test_other_modes_on_the_terminal():
    text = report.show(RUNS["b"])
    assert table(text, "64", "project", "3x64x16x4", "fwd") == ["64.0", "needs 16.3 GB"]
    assert re.findall(r"^ *(\d+) +project", text, re.MULTILINE)[:3] == ["4", "16", "64"]
    text = report.show(RUNS["models"])
    line = ["10.0", "-10% +20%", "800", "0.67", "1.00"]
    assert table(text, "thing, 7 x 7", "8x3x7x7", "inference", "vt_fast") == [*line, "-"]
    assert "inference: 2.00 times as fast as the fastest alternative (2.00 to 2.00, 2 cells)." in text
    text = report.show(RUNS["overhead"])
    assert table(text, "other", "8x3x7x7", "training step") == ["20000", "10000"]
    assert table(text, "first call of tokenize", "3x20x16x4", "fwd") == ["2.00"]


def test_a_profile_on_the_terminal():
    rows = []
    # In floors: all, products, waiting, outside. One is over its target by products alone, one by waiting.
    for case, times in {"tokenize": (2.0, 1.7, 0.2, 0.1), "project": (1.8, 1.3, 0.4, 0.1)}.items():
        fields = {"mode": "profile", "case": case, "dtype": "bf16", "floor": 2e-3, "bound": "flops"}
        names = ("vt_fast cpu", "products", "waiting", "outside")
        rows += [
            row(name, PART if index else OURS, 2e-3 * time, **fields)
            for index, (name, time) in enumerate(zip(names, times, strict=True))
        ]
    text = report.show(Run(FACTS, rows))
    assert (
        "bf16, 1 thread: 2 of 2 cells take over 1.6 floors. Products alone take as long in 1; "
        "1 without waiting, 0 without outside would not be over it." in text
    )
    lines = [line.split() for line in text.splitlines()]
    assert ["3x20x16x4", "1.90", "1.50", "0.30", "0.10"] in lines
    assert ["project", "3x20x16x4", "fwd", "3.60", "1.80", "1.30", "0.40", "0.10"] in lines


def test_the_page_and_its_pictures(tmp_path):
    paths = report.write(list(RUNS.items()), tmp_path)
    assert {path.name for path in paths} == {
        *("report.html", "report.md", "layers-speedup.png", "hosts-speedup.png", "a-roofline.png"),
        *(f"b-{name}-{what}.png" for name, what in product("NB", ("time", "memory"))),
    }
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths if path.suffix == ".png")
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    # Escaped as it must be, since the page is XML too, and with nothing from elsewhere.
    root = ElementTree.fromstring(page)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    links = {element.get("href").removeprefix("#") for element in root.iter("a")}
    assert links
    assert links <= set(ids)
    assert len(ids) == len(set(ids))
    assert not re.search(r'(src|href)="(?!#|data:)|@import|url\((?!#)', page)
    drawn = [base64.b64decode(element.get("src").partition(",")[2]) for element in root.iter("img")]
    assert len([ElementTree.fromstring(each) for each in drawn]) == 7
    # All that the terminal has is in both.
    for each in ("8x3x7x7", "needs 16.3 GB", "dx is off by", "-10% +20%", "70.0"):
        assert each in page
        assert each in text
    assert "off by <much> & more \\| see" in text


def test_single_pictures(tmp_path):
    runs = [("a", RUNS["a"])]
    assert (
        report.write(runs, tmp_path, ["a-roofline"]) == [*tmp_path.iterdir()] == [tmp_path / "a-roofline.png"]
    )
    with pytest.raises(ValueError, match="`pictures` must be of a-roofline, got b-roofline"):
        report.write(runs, tmp_path, ["b-roofline"])


def test_crosses_are_where_there_is_no_time():
    time = next(each for each in plots.draw(frame(RUNS["b"].rows)) if each.name == "N-time")
    lines = [(line.get_marker(), [*line.get_xdata()]) for line in time.figure.axes[0].lines]
    assert [line for line in lines if line[1]] == [("o", [4, 16, 64]), ("o", [4, 16]), ("x", [64])]


def test_layers_are_drawn_against_what_is_shipped_and_the_algebra_by_hand():
    (drawing,) = plots.draw(frame(RUNS["layers"].rows))
    texts = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert texts == 4 * ["3.0×", "1.50× by hand"]  # noqa: RUF001
    # Light to the speed over the shipped form, dark to that over the algebra by hand, both from 1 on.
    widths = [bar.get_width() for bar in drawing.figure.axes[0].patches]
    assert widths == 4 * [pytest.approx(2.0), pytest.approx(0.5)]


def test_hosts_are_drawn_against_themselves():
    (drawing,) = plots.draw(frame(RUNS["hosts"].rows))
    texts = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert texts == 4 * ["1.50×"]  # noqa: RUF001
    assert drawing.title.startswith("Known libraries, patched, ")
    assert "which may be compiled where that is faster, ours is not" in drawing.caption


def test_the_faster_form_of_a_host_counts_on_both_sides():
    times = {"original": (PEER, 6e-3), "compile original": (PEER, 3e-3)}
    times |= {"vt_fast": (OURS, 4e-3), "compile vt_fast": (BACKEND, 2e-3)}
    fields = {"mode": "hosts", "case": "host", "which": "inference", "series": "module"}
    rows = [row(name, role, time, **fields) for name, (role, time) in times.items()]
    (drawing,) = plots.draw(frame(rows))
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == ["1.50×"]  # noqa: RUF001
    assert "each in the faster of its forms, eager or compiled" in drawing.caption
    (drawing,) = plots.draw(frame([each for each in rows if "compile" not in each.contender]))
    assert drawing.caption.endswith("as the library's own module; neither is compiled.")


def test_bars_of_slower_ones_lie_inside_of_their_panel():
    fields = {"mode": "hosts", "case": "host", "which": "inference", "series": "module"}
    rows = [row("original", PEER, 1e-3, **fields), row("vt_fast", OURS, 4e-3, **fields)]
    (drawing,) = plots.draw(frame(rows))
    low, high = drawing.figure.axes[0].get_xlim()
    assert low < 0.25 < 1.0 < high


def test_many_bars_stand_in_columns_with_the_largest_gains_first():
    rows = []
    for number in range(13):
        fields = {"mode": "hosts", "case": f"host {number}", "which": "inference"}
        rows += [row("original", PEER, 1e-3 * (number + 1), **fields), row("vt_fast", OURS, 2e-3, **fields)]
    (drawing,) = plots.draw(frame(rows))
    panels = drawing.figure.axes
    names = [[label.get_text() for label in panel.get_yticklabels()] for panel in panels]
    ordered = [f"host {number}" for number in reversed(range(13))]
    assert names == [ordered[:7], ordered[7:]]
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert panels[0].get_xlim()[0] < 0.5  # host 0 takes twice the time of the original
    # As the rows come.
    shown = ["0.50×", "1.00×", "1.50×", "2.0×", "2.5×", "3.0×"]  # noqa: RUF001
    assert [text.get_text() for text in panels[1].texts] == shown


def test_whole_models_and_modules_have_panels_of_their_own():
    rows = []
    for number in range(4):
        series = "whole model" if number % 2 else "module"
        fields = {"mode": "hosts", "case": f"host {number}", "which": "inference", "series": series}
        rows += [row("original", PEER, 1e-3 * (number + 1), **fields), row("vt_fast", OURS, 2e-3, **fields)]
    (drawing,) = plots.draw(frame(rows))
    panels = drawing.figure.axes
    assert [panel.get_title() for panel in panels] == ["Whole models", "Modules"]
    names = [[label.get_text() for label in panel.get_yticklabels()] for panel in panels]
    assert names == [["host 3", "host 1"], ["host 2", "host 0"]]
    assert [[text.get_text()[:3] for text in panel.texts] for panel in panels] == [
        ["1.0", "2.0"],
        ["0.5", "1.5"],
    ]


def test_a_gpu_is_drawn_by_its_graphs():
    rows = [*cell(clock="graph", threads=None, floor=3e-3), *cell(1e-5, clock="calls", threads=None)]
    (drawing,) = plots.draw(frame([*rows, *ceilings(clock="graph", threads=None)]))
    (point,) = (line for line in drawing.figure.axes[0].lines if line.get_marker() == "o")
    assert point.get_ydata() == [pytest.approx(2 * 2 * 3 * 20 * 16 * 4 / 4e-3)]
