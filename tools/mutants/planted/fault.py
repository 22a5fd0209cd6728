"""A fault that was written by hand."""

from __future__ import annotations

import re
from typing import NamedTuple

TOKENIZE = "tokenize,tokenize_backward"
PROJECT = "project,project_backward"
BOTH = "project_tokenize,project_tokenize_backward"


class Fault(NamedTuple):
    """``after`` in place of ``before``, which is unique in its file, or the first one behind ``past``.

    Spaces and line breaks need not be those of the file.
    """

    name: str
    effect: str
    before: str
    after: str
    past: str = ""
    kernels: str = f"{BOTH}:Bf16"  # of the CUDA kernels: what is built and tested
    harmless: str = ""  # why tests need not notice it, if they need not

    def span(self, source: str) -> tuple[int, int]:
        """Where ``before`` lies in the text of its file."""
        anchors = list(_pattern(self.past or self.before).finditer(source))
        if len(anchors) != 1:
            raise ValueError(f"{self.name}: `{self.past or self.before}` must occur once")
        if not self.past:
            return anchors[0].span()
        begin = anchors[0].end()
        found = _pattern(self.before).search(source, begin, begin + 800)  # not in another function
        if found is None:
            raise ValueError(f"{self.name}: no `{self.before}` soon behind `{self.past}`")
        return found.span()


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(r"\s*".join(map(re.escape, re.findall(r"\w+|\S", text))))
