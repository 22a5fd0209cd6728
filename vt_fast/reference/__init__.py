"""The paper in plain PyTorch: the oracle that every other implementation is held against.

Any device, any floating dtype including float64, differentiable as often as wanted. Nothing here is
fast and nothing here is folded; see :mod:`vt_fast.functional` for the same results in one pass.

``ops`` defines the three public ops. The paper's equations: ``tokenizers`` (eqs. 1 and 2, pooling),
``clustering`` (appendix), ``transformer`` (eqs. 3 and 4, and what replaces it), ``projector`` (eq. 5),
``v1`` (the first version's tokenizers), ``position`` (its position codes), ``linear`` (1x1 convolutions).
"""

from vt_fast.reference import clustering, linear, ops, position, projector, tokenizers, transformer, v1

__all__ = ["clustering", "linear", "ops", "position", "projector", "tokenizers", "transformer", "v1"]
