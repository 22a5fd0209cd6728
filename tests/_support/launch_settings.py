"""Launch settings of all kinds, and devices that are not there."""

from vt_fast.backends.triton import schedule
from vt_fast.backends.triton.settings import KEEP, STREAM, WHOLE, Setting

SETTINGS = [
    Setting(16, 16, 1, STREAM, 4, 2),
    Setting(16, 16, 2, STREAM, 4, 2),
    Setting(32, 16, 9, STREAM, 4, 2),
    Setting(64, 128, 1, STREAM, 4, 2),
    Setting(16, 16, 0, KEEP, 4, 2),
    Setting(64, 32, 0, KEEP, 4, 2),
    Setting(64, 16, 1, WHOLE, 4, 2),
    Setting(16, 16, 1, WHOLE, 4, 2),
    Setting(128, 32, 1, WHOLE, 4, 2),
]


def pretend(monkeypatch, **traits):
    """Every device has these traits; the others stay as they are."""
    real = schedule.traits
    monkeypatch.setattr(schedule, "traits", lambda where: real(where)._replace(**traits))
