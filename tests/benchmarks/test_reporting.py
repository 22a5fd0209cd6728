"""The report: well-formed, self-contained, and without a number of its own."""

import json
import re
import statistics
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests._support.made_up import network_cell, ops_run, report, save_networks

pytest.importorskip("matplotlib")

from benchmarks import cli, records, summary
from benchmarks.networks.cases import CLASSIFIER, NECK, STAGE
from benchmarks.networks.records import NetworkRun
from benchmarks.networks.sides import INFERENCE, TRAINING
from benchmarks.reporting import bars, command, markdown, page, style
from benchmarks.reporting.blocks import Heading, Marks, Number, Paragraph, Picture, Table, Tiles
from benchmarks.reporting.sources import read, read_all

ROOT = Path(__file__).resolve().parents[2]


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
    (words,) = re.findall(r"^python -m benchmarks (report (?:.*\\\n)*.*)$", text, flags=re.MULTILINE)
    embedded = set(re.findall(r"\]\(docs/([^)]*\.png)\)", text))
    options = cli._parser().parse_args(words.replace("\\\n", " ").split())
    assert options.output == Path("docs")
    files = [ROOT / file for file in options.files]
    report(files, tmp_path, "--pictures", *options.pictures)
    assert {path.name for path in tmp_path.iterdir()} == embedded
    assert all((ROOT / "docs" / name).stat().st_size < 350_000 for name in embedded)
