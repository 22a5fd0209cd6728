"""A fault that was written by hand."""

from __future__ import annotations

from typing import NamedTuple

TOKENIZE = "tokenize,tokenize_backward"
PROJECT = "project,project_backward"
BOTH = "project_tokenize,project_tokenize_backward"


class Fault(NamedTuple):
    """``after`` in place of ``before``, which is unique in its file, or the first one behind ``past``."""

    name: str
    effect: str  # on a GPU
    before: str
    after: str
    past: str = ""
    kernels: str = f"{BOTH}:Bf16"  # that are built and tested
    harmless: str = ""  # why tests need not notice it, if they need not

    def span(self, source: str) -> tuple[int, int]:
        """Where ``before`` lies in the text of its file."""
        begin = 0
        if self.past:
            if source.count(self.past) != 1:
                raise ValueError(f"{self.name}: `{self.past}` must occur once")
            begin = source.index(self.past) + len(self.past)
        elif source.count(self.before) != 1:
            raise ValueError(f"{self.name}: `{self.before}` must occur once")
        start = source.find(self.before, begin)
        if start < 0:
            raise ValueError(f"{self.name}: no `{self.before}` behind `{self.past}`")
        return start, start + len(self.before)
