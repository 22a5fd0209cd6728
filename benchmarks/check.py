"""The float64 gate: a contender whose results or gradients are wrong gets no time."""

from __future__ import annotations

from typing import NamedTuple


class Judgement(NamedTuple):
    """The largest error in multiples of the allowed one, and what is wrong: "map is off by 2, allowed 0.5"."""

    error: float
    complaint: str | None
