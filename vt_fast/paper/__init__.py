"""The paper's tables of multiply-accumulates and parameters, counted anew: ``python -m vt_fast paper``."""

from vt_fast.paper.command import main
from vt_fast.paper.counting import Counted, counted
from vt_fast.paper.rows import Network, networks

__all__ = ["Counted", "Network", "counted", "main", "networks"]
