"""Every test of the ops runs once for each backend that can run on this machine."""

import problems
import pytest

from vt_fast import backends

USABLE = [name for name, reason in backends.report() if reason is None]


@pytest.fixture(autouse=True, params=USABLE)
def backend(request, monkeypatch):
    """The backend that :meth:`problems.Problem.call` asks for."""
    monkeypatch.setattr(problems, "BACKEND", request.param)
    return request.param
