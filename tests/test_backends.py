"""Choosing a backend, and saying why one cannot be had."""

import pytest
import torch

import vt_fast
from vt_fast import backends


def test_the_plain_backend_always_runs():
    assert ("torch", None) in backends.report()
    assert backends.choose(None) == "torch"
    assert backends.choose("torch") == "torch"


@pytest.fixture
def broken(monkeypatch):
    """A backend that comes first and cannot run here."""
    reasons = {"broken": "no such device; buy one", **backends._REASONS}
    monkeypatch.setattr(backends, "_REASONS", reasons)


@pytest.mark.usefixtures("broken")
def test_an_explicit_backend_never_falls_back():
    x = torch.randn(2, 5, 8)
    with pytest.raises(
        RuntimeError, match='`backend="broken"` is not available here: no such device; buy one'
    ):
        vt_fast.tokenize(x, x, backend="broken")


@pytest.mark.usefixtures("broken")
def test_none_takes_the_first_that_can_run():
    x = torch.randn(2, 5, 8)
    assert backends.choose(None) == "torch"
    assert torch.equal(vt_fast.tokenize(x, x), vt_fast.tokenize(x, x, backend="torch"))
    assert backends.report() == [("broken", "no such device; buy one"), ("torch", None)]
