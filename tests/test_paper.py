"""``python -m vt_fast paper``: the tables, and what they say of the counts."""

import csv
import re
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from vt_fast import __main__ as cli
from vt_fast.paper import counted, counting, networks
from vt_fast.paper.counting import Counted
from vt_fast.paper.tables import as_csv, markdown

NAMED = {network.name: network for network in networks()}


def test_all_rows_of_both_tables():
    assert len([name for name in NAMED if name.startswith("VT-R")]) == 24
    assert len([name for name in NAMED if "FPN" in name]) == 12
    assert len(NAMED) == len(networks())


def test_a_row_is_counted_as_written_and_as_executed():
    found = counted(NAMED["VT-R18, filter + recurrent"])
    assert found.written == pytest.approx(1578.95, rel=1e-3)
    assert found.executed < found.written
    assert found.parameters == pytest.approx(11.64, rel=1e-3)
    assert abs(found.residual) < 0.05
    assert abs(found.parameter_residual) < 0.5


def test_counters_that_disagree_are_an_error(monkeypatch):
    pytest.importorskip("fvcore")
    monkeypatch.setattr(counting, "fvcore_macs", lambda *_: 1)
    with pytest.raises(RuntimeError, match="fvcore 1"):
        counted(NAMED["R18, plain ResNet"])


def test_the_residual_is_to_the_nearest_number_printed():
    row = replace(NAMED["VT-R18, filter + recurrent"], printed_macs="3369 (read 3269)", printed_parameters="")
    found = Counted(row, written=3268.9, executed=3000.0, parameters=20.0, by_both=True)
    assert found.residual == pytest.approx(-0.1 / 32.69)
    assert found.parameter_residual is None
    assert "| - |" in markdown([found])


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    assert cli.main(["paper", "--only", "VT-FPN neck, 473", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "paper.md").read_text().strip() in printed
    (row,) = csv.DictReader((tmp_path / "paper.csv").open())
    assert row["macs_paper"] == "2.0"
    assert float(row["macs_written"]) == pytest.approx(2.10, abs=0.005)
    assert re.search(r"\| VT-FPN neck, 473 x 473 \| 2\.0 \| 2\.10 \| \+\d\.\d\d % \|", printed)


def test_a_name_that_is_not_there(capsys):
    assert cli.main(["paper", "--only", "ResNet-1000"]) == 2
    assert "ResNet-1000" in capsys.readouterr().err


def test_unknown_configurations_are_marked():
    row = NAMED["VT-R50, filter + recurrent"]
    assert not row.known
    found = Counted(row, written=3678.95, executed=3000.0, parameters=27.31, by_both=False)
    text = markdown([found])
    assert "VT-R50, filter + recurrent \\*" in text
    assert "No configuration is known" in text
    assert as_csv([found]).splitlines()[1].endswith("False,False")
