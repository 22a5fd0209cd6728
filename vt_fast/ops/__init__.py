"""The ops as PyTorch sees them: ``torch.ops.vt_fast.*``, one file each.

Each file holds an op's schema, its fake kernels, its derivative and its FLOP formulas. The raw ops check
their arguments too, but :mod:`vt_fast.functional` has the better messages.
"""

from vt_fast.ops.project import PROJECT
from vt_fast.ops.project_tokenize import PROJECT_TOKENIZE
from vt_fast.ops.tokenize import TOKENIZE

__all__ = ["PROJECT", "PROJECT_TOKENIZE", "TOKENIZE"]
