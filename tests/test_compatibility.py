"""The table of other tools names tests that exist, and the versions that they run with."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
LINES = PAGE.read_text().splitlines() if PAGE.exists() else []  # it is there in a source tree only
ROWS = [line for line in LINES if re.match(r"\|(?! tool |--)", line)]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_table(row):
    _, version, works, _, tests = [cell.strip() for cell in row.strip("|").split("|")]
    name, number = version.split()
    assert re.search(rf"^{name}=={re.escape(number)}$", (ROOT / "constraints.txt").read_text(), re.M), version
    named = re.findall(r"`([^`]+)`", tests)
    assert named
    assert works in ("yes", "with limits", "with handles", "in part")
    for each in named:
        path, *inside = each.split("::")
        text = (ROOT / path).read_text()
        for part in inside:
            assert re.search(rf"^\s*(?:def|class) {part}\b", text, re.M), each
