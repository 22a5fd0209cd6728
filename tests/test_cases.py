"""Faults reported to neighbouring projects, tried on vt_fast; see tests/cases/README.md."""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"
NAMES = sorted(path.stem for path in CASES.glob("[a-z]*.py"))

# They still fail, by kind. A case that passes fails the suite until it leaves this list.
FAILING: set[str] = set()

pytestmark = pytest.mark.cases


def test_every_failing_case_exists():
    assert set(NAMES) >= FAILING


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.xfail(strict=True, raises=AssertionError)] if name in FAILING else []
        )
        for name in NAMES
    ],
)
def test_case(name):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", CASES / f"{name}.py"], capture_output=True, text=True, timeout=300
    )
    said = done.stderr.strip()
    if said.startswith("needs"):
        pytest.skip(said)
    # A traceback is no answer: the case itself is broken, perhaps by a name that has changed.
    if "Traceback" in said:
        raise RuntimeError(said)
    assert done.returncode == 0, said
