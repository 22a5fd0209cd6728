"""Backend ``"torch"``: the ops in plain PyTorch on the folded operands, on any device.

A map is walked in tiles, forward and backward each read it once, and no temporary is larger than a
tile or the small operands: nothing of the size of N x C or N x L but the results. Only a (B, C, H, W)
map whose H and W do not merge, such as a cropped one, is copied first. Sums and statistics are in
float32 (float64 for float64).
"""

from vt_fast.backends.contract import Call
from vt_fast.backends.eager.project import project, project_backward
from vt_fast.backends.eager.project_tokenize import project_tokenize, project_tokenize_backward
from vt_fast.backends.eager.tokenize import tokenize, tokenize_backward

__all__ = [
    "project",
    "project_backward",
    "project_tokenize",
    "project_tokenize_backward",
    "refuses",
    "tokenize",
    "tokenize_backward",
    "unavailable",
]


def unavailable() -> str | None:
    """None: this backend runs wherever PyTorch does."""
    return None


def refuses(call: Call) -> str | None:
    """None: it takes every call."""
    return None
