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
        anchor = self.past or self.before
        if source.count(anchor) != 1:
            raise ValueError(f"{self.name}: `{anchor}` must occur once")
        start = source.index(anchor)
        if self.past:
            begin = start + len(self.past)
            start = source.find(self.before, begin, begin + 800)  # not in another function
            if start < 0:
                raise ValueError(f"{self.name}: no `{self.before}` soon behind `{self.past}`")
        return start, start + len(self.before)
