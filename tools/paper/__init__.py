"""Count the networks of the paper's tables: ``python -m vt_fast paper``."""

from tools.paper.command import main

__all__ = ["main"]
