"""``python -m vt_fast paper``: the tables that it prints and writes."""

import csv
import re
from dataclasses import replace

import pytest

from tools.paper import counting
from tools.paper.counting import Counted, counted
from tools.paper.rows import ROWS
from tools.paper.tables import as_csv, markdown
from vt_fast.__main__ import main


def test_counters_that_disagree_are_an_error(monkeypatch):
    pytest.importorskip("fvcore")
    monkeypatch.setattr(counting, "fvcore_macs", lambda *_: 1)
    with pytest.raises(RuntimeError, match="fvcore 1"):
        counted(ROWS["R18, plain ResNet"])


def test_the_residual_is_to_the_nearest_printed_number():
    row = replace(ROWS["VT-R18, filter + recurrent"], printed_macs="3369 (read 3269)", printed_parameters="")
    found = Counted(row, written=3268.9, executed=3000.0, parameters=20.0, by_both=True)
    assert found.residual == pytest.approx(-0.1 / 32.69)
    assert found.parameter_residual is None
    assert "| - |" in markdown([found])


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    assert main(["paper", "--only", "VT-FPN neck, 473", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "paper.md").read_text().strip() in printed
    (row,) = csv.DictReader((tmp_path / "paper.csv").open())
    assert row["macs_paper"] == "2.0"
    assert float(row["macs_written"]) == pytest.approx(2.10, abs=0.005)
    assert re.search(r"\| VT-FPN neck, 473 x 473 \| 10 \| ours \| 2\.0 \| 2\.10 \| \+\d\.\d\d % \|", printed)


def test_unknown_row(capsys):
    assert main(["paper", "--only", "ResNet-1000"]) == 2
    assert "ResNet-1000" in capsys.readouterr().err


def test_each_row_says_where_its_configuration_is_from():
    row = ROWS["VT-R34, table 8"]
    found = Counted(row, written=3279.87, executed=3000.0, parameters=21.89, by_both=False)
    (line,) = (line for line in markdown([found]).splitlines() if line.startswith("| VT-R34, table 8"))
    assert "| 8 | unexplained | 3236 | 3279.9 | +1.36 % |" in line
    assert "no natural configuration" in line
    (written,) = csv.DictReader(as_csv([found]).splitlines())
    assert (written["source"], written["note"], written["tables"]) == (row.source, row.note, row.tables)


def test_quotients(monkeypatch):
    monkeypatch.setattr(counting.importlib.util, "find_spec", lambda _: None)
    row = ROWS["VT-R50, last stage"]
    found = counted(replace(row, build=row.against))
    assert (found.written, found.executed, found.parameters) == (1, 1, 1)
    found = counted(row)
    assert found.written == pytest.approx(6.06, abs=0.005)
    assert found.parameters == pytest.approx(1.256, abs=0.0005)
