"""The report: on tiny made-up runs, well-formed, self-contained, and without a number of its own."""

import json
import re
import statistics
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import standin

pytest.importorskip("matplotlib")

from benchmarks import cases, cli, records, summary, timing
from benchmarks.networks import records as networks
from benchmarks.networks.cases import CLASSIFIER, NECK, STAGE
from benchmarks.networks.records import NetworkCell, NetworkRun, Side
from benchmarks.networks.sides import CONVOLUTIONAL, FUSED, INFERENCE, REFERENCE, TRAINING
from benchmarks.reporting import (
    bars,
    command,
    curves,
    derived,
    markdown,
    overhead,
    page,
    rates,
    roofline,
    scaling,
    style,
)
from benchmarks.reporting.blocks import Heading, Marks, Number, Paragraph, Picture, Table, Tiles
from benchmarks.reporting.curves import Curves, Point
from benchmarks.reporting.sources import read, read_all

ROOT = Path(__file__).resolve().parents[2]
SHAPE = cases.Shape(3, 4, 5, 16, 4)
MACHINE = {
    "versions": {
        "torch": "2.99",
        "vt_fast": "0.77",
        "triton": "3.55",
        **dict.fromkeys(("python", "platform", "numpy"), "some"),
    },
    "devices": {"cpu": "Made-up <1> & Co", "cores": "2", "threads": 2, "instructions": "none", "gpu": "none"},
    "commit": {"hash": "0123456789abcdef", "dirty": False},
    "load": [0.1234567, 0.25],
}
SETTINGS = {"passes": list(cases.PASSES), "peers": None, "budget": {}, "quick": False, "threads": [1]}
GPU_SETTINGS = {"passes": [], "peers": [], "budget": {}, "quick": False, "device": "cuda:0", "tf32": False}


def cell(op="project", which=cases.FORWARD, dtype="fp32", layout="nchw", threads=1, ours=0.0051):
    floor = records.Floor(2, 12345678, 1 << 20, [0.011, 0.013], 987654321, [0.017, 0.019])
    entries = [
        records.Entry("vt_fast cpu", records.OURS, seconds=[ours, 2 * ours, 3 * ours], extra_bytes=1111),
        records.Entry("vt_fast torch", records.BACKEND, seconds=[0.0093], extra_bytes=2222),
        records.Entry("eager", records.PEER, seconds=[0.0313, 0.0333, 0.0373, 0.0411], extra_bytes=9999),
        records.Entry("folded", records.PEER, seconds=[0.0217, 0.0219], extra_bytes=7777),
        records.Entry("sdpa", records.PEER, records.WRONG, "dx is off by <much> & more | see"),
    ]
    return records.Cell(op, SHAPE, dtype, layout, threads, which, 4321, floor, entries)


def stack_cell(**changes):
    found = cell(op=cases.STACK, which=cases.BOTH, **changes)
    found.floor = None
    return found


def ops_run(cells=None, **settings):
    return records.Run(MACHINE, {**SETTINGS, **settings}, [cell(), stack_cell()] if cells is None else cells)


def network_cell(kind=STAGE, which=INFERENCE, name="thing, 7 x 7"):
    sides = [
        Side(CONVOLUTIONAL, 2_340_000_000, [0.0611, 0.0633, 0.0655], 12_345_678),
        Side(REFERENCE, None, [], None, "RuntimeError: out of <luck>"),
        Side(FUSED, 1_230_000_000, [0.0413, 0.0437, 0.0471], 8_765_432),
    ]
    return NetworkCell(kind, name, 3, "fp32", "nchw", 2, which, sides)


def save_networks(path, cells):
    networks.save(NetworkRun(MACHINE, standin.NETWORK_SETTINGS, cells), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("results")
    records.save(ops_run(), folder / "cpu.json")
    passes = (INFERENCE, TRAINING)
    cells = [network_cell(kind, which) for kind in (STAGE, NECK, CLASSIFIER) for which in passes]
    return [folder / "cpu.json", save_networks(folder / "models-cpu.json", cells)]


@pytest.fixture(scope="module")
def reported(files, tmp_path_factory):
    """The folder of a report of both."""
    folder = tmp_path_factory.mktemp("report")
    report(files, folder)
    return folder


def report(paths, folder, *words):
    assert cli.main(["report", *map(str, paths), "--output", str(folder), *words]) == 0


def test_page_is_well_formed_and_needs_nothing_else(reported):
    text = (reported / "report.html").read_text()
    root = ElementTree.fromstring(text)
    elements = list(root.iter())
    names = [element.get("id") for element in elements if element.get("id") is not None]
    assert len(set(names)) == len(names)
    pointers = [value for e in elements for key, value in e.attrib.items() if key.endswith("href")]
    assert pointers
    assert {pointer.removeprefix("#") for pointer in pointers} <= set(names)
    assert set(re.findall(r"url\(#?([^)]*)\)", text)) <= set(names)
    assert not [e for e in elements if "src" in e.attrib or e.tag in ("link", "img", "iframe", "object")]
    assert "@import" not in text
    addresses = set(re.findall(r"https?://[^\"' ]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert text.count("<svg") == text.count("<figure") == 4 + 2
    assert "&lt;much&gt; &amp; more" in text
    # A page's own colours, so that a dark one can be read.
    assert style.INK not in text
    assert "currentColor" in text


def told(root):
    """All that a page says outside of its drawings, styles and scripts."""
    skipped = [e for tag in ("svg", "style", "script") for e in root.iter() if e.tag.endswith(tag)]
    inside = {id(each) for e in skipped for each in e.iter()}
    parts = []
    for element in root.iter():
        parts += [element.text] if id(element) not in inside and element.text else []
        parts += [element.tail] if (id(element) not in inside or element in skipped) and element.tail else []
    return " ".join(parts)


NUMBER = re.compile(r"\d+(?:\.\d+)?")


def derivable(run):
    """All numbers that may be said of the cells of a run, computed here and not by the report."""
    found = {str(len(run["cells"])), str(sum(len(c["entries"]) for c in run["cells"]))}
    for each in run["cells"]:
        by_kind = {e["kind"]: e for e in reversed(each["entries"])}
        peers = [e for e in each["entries"] if e["kind"] == "peer" and e["seconds"]]
        best = min(peers, key=lambda e: statistics.median(e["seconds"]))
        ours = float(np.median(by_kind["ours"]["seconds"]))
        batch, height, width, channels, tokens = each["shape"]
        found |= set(map(str, (batch, height * width, channels, tokens, each["threads"])))
        for entry in each["entries"]:
            found.add(str(len(entry["seconds"])))
            if entry["seconds"]:
                quantiles = np.quantile(entry["seconds"], [0.2, 0.5, 0.8])
                found |= {f"{value * 1e3:.2f}" for value in quantiles}
                found.add(f"{quantiles[1] / ours:.2f}")
            if entry["extra_bytes"] is not None:
                found.add(f"{entry['extra_bytes'] / each['map_bytes']:.2f}")
        speed = float(np.median(best["seconds"])) / ours
        found.add(f"{speed:.2f}")
        floor = each["floor"]
        if floor is None:
            eager = next(e for e in each["entries"] if e["name"] == "eager")
            share = by_kind["ours"]["extra_bytes"] / eager["extra_bytes"]
            found.add(f"{100 * share:.0f}")
            continue
        moved = floor["maps"] * each["map_bytes"]
        bandwidth = floor["copy_bytes"] / float(np.median(floor["copy_seconds"]))
        rate = floor["matrix_flops"] / float(np.median(floor["matrix_seconds"]))
        least = max(moved / bandwidth, floor["flops"] / rate)
        found |= {f"{least * 1e3:.2f}", f"{ours / least:.2f}"}
        found |= {f"{moved / ours / 1e9:.1f}", f"{100 * moved / ours / bandwidth:.0f}"}
        found |= {f"{floor['flops'] / ours / 1e9:.1f}", f"{100 * floor['flops'] / ours / rate:.0f}"}
    return found


def test_every_number_comes_from_the_file(files, tmp_path):
    report(files[:1], tmp_path)
    text = files[0].read_text()
    root = ElementTree.fromstring((tmp_path / "report.html").read_text())
    # Marks, whose numbers are in benchmarks/summary.py, and how many of how many.
    marks = [word for mark in summary.marks(records.load(files[0])) for word in NUMBER.findall(str(mark))]
    known = {"20", "80", "1"}  # quantiles, and "right of 1"
    allowed = set(NUMBER.findall(text)) | derivable(json.loads(text)) | {*marks, *known}
    allowed |= {"0.123457", "3", "4", "0123456789"}  # a load and the commit, abridged; "3 of 4" marks
    said = NUMBER.findall(told(root))
    assert len(said) > 100
    assert set(said) - allowed == set()


def test_other_times_give_another_report(reported, files, tmp_path):
    data = json.loads(files[0].read_text())
    for each in data["cells"]:
        for entry in each["entries"]:
            entry["seconds"] = [7 * value for value in entry["seconds"]]
    (tmp_path / "cpu.json").write_text(json.dumps(data))
    report([tmp_path / "cpu.json"], tmp_path)
    before, after = ((folder / "report.html").read_text() for folder in (reported, tmp_path))
    assert ">10.20<" in before
    assert ">10.20<" not in after
    assert ">71.40<" in after


def test_spread_and_comparison():
    values = [5.0, 1.0, 2.0, 3.0, 9.0, 6.0, 8.0]
    np.testing.assert_allclose(timing.quantiles(values), np.quantile(values, [0.5, 0.2, 0.8]))
    assert timing.quantiles([2.0]) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="at least one number"):
        timing.quantiles([])
    pair = [cell(), cell(ours=0.001)]
    found = derived.compare(pair, "eager")
    assert found.ratios == pytest.approx([0.0353 / 0.0102, 0.0353 / 0.002])
    assert found.mean == pytest.approx((found.ratios[0] * found.ratios[1]) ** 0.5)
    assert derived.compare(pair, derived.BEST).ratios == pytest.approx([0.0218 / 0.0102, 0.0218 / 0.002])
    assert derived.compare(pair, "sdpa").without == {"wrong": 2}
    assert derived.compare(pair, "vt_fast torch").ratios == []  # not a peer


def test_speed_bars_are_the_geometric_means_and_name_who_has_none():
    figure = bars.speeds(ops_run([cell(), cell(layout="channels_last", ours=0.001)]))
    (panel,) = figure.axes
    widths = [bar.get_width() + bar.get_x() for bar in panel.patches]
    ratios = {"best": 0.0218, "eager": 0.0353, "folded": 0.0218}
    expected = [(value / 0.0102 * value / 0.002) ** 0.5 for value in ratios.values()]
    assert widths == pytest.approx(expected)
    lines = [line.get_xdata() for line in panel.lines if len(set(line.get_xdata())) > 1]
    assert list(lines[1]) == pytest.approx([0.0353 / 0.0102, 0.0353 / 0.002])
    texts = [text.get_text() for text in panel.texts]
    assert any("✕ wrong in 2" in text for text in texts)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["best peer", "eager", "sdpa", "folded"]


def test_roofline_has_a_point_for_each_cell_and_the_measured_ceilings():
    run = ops_run([cell(), cell(which=cases.BOTH, ours=0.002), stack_cell()])
    (panel,) = roofline.draw(run).axes
    points = [line for line in panel.lines if line.get_marker() in ("o", "D")]
    rates_ = [float(line.get_ydata()[0]) for line in points]
    assert rates_ == pytest.approx([12345678 / 0.0102, 12345678 / 0.004])
    assert [float(line.get_xdata()[0]) for line in points] == pytest.approx([12345678 / (2 * 4321)] * 2)
    texts = " ".join(text.get_text() for text in panel.texts)
    assert f"copy_ {(1 << 20) / 0.012 / 1e9:.1f} GB/s" in texts
    assert f"torch.mm {987654321 / 0.018 / 1e9:.0f} GFLOP/s" in texts
    assert max(max(line.get_ydata()) for line in panel.lines) == pytest.approx(987654321 / 0.018)


def test_memory_bars_are_the_medians_in_maps():
    (panel,) = bars.memory(ops_run([cell()])).axes
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([n / 4321 for n in (1111, 9999, 7777)])


def test_stack_points_are_speed_and_share_of_memory():
    left, right = bars.stacks(ops_run()).axes
    assert list(left.lines[0].get_xdata()) == pytest.approx([0.0353 / 0.0102])
    assert list(right.lines[0].get_xdata()) == pytest.approx([1111 / 9999])


def test_what_was_not_measured_is_not_drawn():
    nothing = ops_run([])
    assert [draw(nothing) for draw in (bars.speeds, bars.memory, bars.stacks, roofline.draw)] == [None] * 4
    assert rates.draw([], "images/s", rates.rate) is None
    assert curves.draw([]) is None


def test_rates_are_images_over_seconds_and_failures_are_named():
    (panel,) = rates.draw([network_cell()], "images/s", rates.rate).axes
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([3 / 0.0633, 3 / 0.0437])
    assert any("✕ RuntimeError: out of <luck>" in text.get_text() for text in panel.texts)


def test_gpu_run_has_no_threads_and_microseconds(tmp_path):
    about = {**MACHINE, "gpu": standin.ABOUT}
    left_out = [{"case": "project 1x2x3x4", "why": "memory", "reason": "8 GiB"}]
    run = records.Run(about, {**GPU_SETTINGS, "left_out": left_out}, [cell(dtype="bf16", threads=None)])
    records.save(run, tmp_path / "gpu.json")
    report([tmp_path / "gpu.json"], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "thread(s)" not in text
    assert ">threads<" not in text
    assert "10200.0" in text
    assert "floor / time" in text
    assert "project 1x2x3x4" in text
    assert "Stand-in 9000, 80 GiB" in text


def test_who_falls_over_is_marked_and_not_left_out():
    xs = [196, 784, 3136]
    series = {
        "ours": [Point(1.0), Point(2.0, low=1.5, high=2.5), Point(3.0)],
        "eager": [Point(2.0), Point(None, "out of memory"), Point(None, "out of memory")],
        "compile eager": [Point(None, "not compiled"), Point(4.0), Point(5.0)],
        "flex": [Point(None, "unsupported")] * 3,
    }
    (panel,) = curves.draw([Curves("tokenize", "N", "ms", xs, series)]).axes
    crosses = [list(line.get_xdata()) for line in panel.lines if line.get_marker() == "x"]
    assert crosses == [[784, 3136], [196], xs]
    assert [text.get_text() for text in panel.texts] == ["out of memory", "not compiled", "unsupported"]
    known = [list(line.get_ydata()) for line in panel.lines if line.get_marker() == "o"]
    assert known == [[1.0, 2.0, 3.0], [2.0], [4.0, 5.0], []]
    with pytest.raises(ValueError, match="must have 3 points, got 1"):
        curves.draw([Curves("", "", "", xs, {"ours": [Point(1.0)]})])
    with pytest.raises(ValueError, match="must have a reason"):
        curves.draw([Curves("", "", "", [1.0], {"ours": [Point(None)]})])


def scaled(pixels, eager):
    found = cell()
    found.shape = SHAPE._replace(height=pixels, width=1)
    found.series = {"N": pixels}
    found.entries[2] = eager
    return found


def test_series_become_curves_of_time_and_memory(tmp_path):
    refused = records.Entry(
        "eager", records.PEER, records.SKIPPED, "needs about 9 GB in all", needs_bytes=9_100_000_000
    )
    cells = [scaled(400, refused), scaled(100, cell().entries[2])]
    run = ops_run(cells, mode="scaling")
    (found,) = scaling.panels(run, "N", "ms", scaling.milliseconds)
    assert found.xs == [100, 400]
    assert found.title == "project, forward\n3xNx16x4 fp32, 1 thread(s), nchw"
    ours = found.series["vt_fast cpu"][0]
    assert [ours.value, ours.low, ours.high] == pytest.approx([10.2, 7.14, 13.26])
    assert [point.value for point in found.series["eager"]] == [pytest.approx(35.3), None]
    assert found.series["eager"][1].reason == "needs 9.1 GB"
    assert [point.reason for point in found.series["sdpa"]] == ["wrong", "wrong"]
    records.save(run, tmp_path / "scaling-cpu.json")
    report([tmp_path / "scaling-cpu.json"], tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "scaling-cpu-N-time.png",
        "scaling-cpu-N-memory.png",
    }
    assert "needs 9.1 GB" in (tmp_path / "report.html").read_text()


def test_overhead_is_in_microseconds(tmp_path):
    run = ops_run(mode="overhead")
    records.save(run, tmp_path / "overhead.json")
    report([tmp_path / "overhead.json"], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| project 3x20x16x4 | forward | 10200.0 |" in text
    assert "Marks" not in text
    assert [path.name for path in tmp_path.glob("*.png")] == ["overhead-calls.png"]
    (forward, *_) = overhead.draw(run).axes
    points = [float(line.get_xdata()[0]) for line in forward.lines if line.get_marker() in "os"]
    assert points[0] == pytest.approx(10200.0)
    assert overhead.draw(records.Run({}, {}, [])) is None


def test_first_calls_are_listed(tmp_path):
    each = records.FirstCall("compile eager", "project", SHAPE, "fp32", True, [1.125], [], [7.5, 8.5], [0.25])
    run = ops_run(mode="overhead")
    run.first_calls = [each]
    records.save(run, tmp_path / "overhead.json")
    report([tmp_path / "overhead.json"], tmp_path)
    assert (
        "| compile eager | project | 3x20x16x4 | fp32 | cold | 1.12e+03 | - | 8e+03 | 250 |"
        in (tmp_path / "report.md").read_text()
    )


def test_markdown_says_what_the_page_says(reported):
    text = (reported / "report.md").read_text()
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (reported / name).read_bytes().startswith(b"\x89PNG")
    assert text.count("![") == 6
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) > 20
    assert "dx is off by <much> & more \\| see" in text
    assert "**NOT met**" in text
    said = told(ElementTree.fromstring((reported / "report.html").read_text()))
    assert set(NUMBER.findall(" ".join(lines))) <= set(NUMBER.findall(said))


def test_every_block_can_be_written_both_ways():
    figure, _ = style.grid(1, 1, 2, 1)
    blocks = [
        Heading("head & shoulders", 2),
        Paragraph("a < b"),
        Tiles([("3.50 x", "faster")]),
        Marks([summary.Mark("goal", met, "detail") for met in (True, False, None)]),
        Picture("some-name", figure, 'an "alternative"', "caption"),
        Table(["a", "b"], [["x", Number("1.0", 1.0)], ["y", Number("-", None)]], "long", folded=True),
    ]
    root = ElementTree.fromstring(page.render("T & T", blocks))
    assert [li.get("class") for li in root.iter("li")] == ["met", "missed", "open"]
    assert [td.get("data-value") for td in root.iter("td")] == [None, "1.0", None, None]
    text = markdown.render("T & T", blocks)
    assert '![an "alternative"](some-name.png)' in text
    assert "|---|---:|" in text
    assert "<details><summary>long</summary>" in text


def test_only_some_pictures(files, tmp_path, capsys):
    out = tmp_path / "out"
    report(files, out, "--pictures", "cpu-speedup", "models-cpu-rate")
    assert sorted(path.name for path in out.iterdir()) == ["cpu-speedup.png", "models-cpu-rate.png"]
    assert cli.main(["report", str(files[0]), "--output", str(out), "--pictures", "cpu-beauty"]) == 2
    assert "must be of cpu-speedup, cpu-roofline" in capsys.readouterr().err


def test_pictures_are_the_same_each_time(reported, files, tmp_path):
    report(files, tmp_path, "--pictures", "cpu-stack")
    assert (tmp_path / "cpu-stack.png").read_bytes() == (reported / "cpu-stack.png").read_bytes()
    drawn = [style.svg(bars.stacks(ops_run()), "cpu-stack", "stack") for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_files_are_told_apart(files, tmp_path):
    again = tmp_path / "other" / "cpu.json"
    records.save(ops_run(), again)
    assert [source.name for source in read_all([*files, again])] == ["cpu", "models-cpu", "cpu-2"]
    assert [type(source.run) for source in read_all(files)] == [records.Run, NetworkRun]
    assert [len(command_cells) for command_cells in (read(files[0]).run.cells, read(files[1]).run.cells)] == [
        2,
        6,
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}', '{"machine": {}, "settings": {}, "cells": []}'])
def test_other_files_end_with_2(text, tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert cli.main(["report", str(path), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} must")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_so(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["report", str(files[0]), "--output", str(tmp_path / "out")]) == 2
    assert "needs matplotlib" in capsys.readouterr().err


def test_the_readme_names_the_command_of_its_pictures(tmp_path):
    text = (ROOT / "README.md").read_text()
    (words,) = re.findall(r"`python -m benchmarks (report [^`]*)`", text)
    embedded = set(re.findall(r"\]\(docs/([^)]*\.png)\)", text))
    options = cli._parser().parse_args(words.split())
    assert options.output == Path("docs")
    files = [ROOT / file for file in options.files]
    report(files, tmp_path, "--pictures", *options.pictures)
    assert {path.name for path in tmp_path.iterdir()} == embedded
    assert all((ROOT / "docs" / name).stat().st_size < 350_000 for name in embedded)
