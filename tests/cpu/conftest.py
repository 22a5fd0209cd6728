"""Tests of the backend "cpu", on every instruction set that this machine supports."""

import sys
from pathlib import Path

import pytest
import torch

# Problems and comparisons are those of the ops' tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))

import problems

from vt_fast.backends import cpu


@pytest.fixture(autouse=True)
def cpu_backend(monkeypatch):
    """Public functions run the kernels; the instruction set and the threads are restored afterwards."""
    reason = cpu.unavailable()
    if reason is not None:
        pytest.skip(reason)
    build_facts = pytest.importorskip("vt_fast._native.build_facts", exc_type=ImportError)
    monkeypatch.setattr(problems, "BACKEND", "cpu")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    build_facts.choose(None)
