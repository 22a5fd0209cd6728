"""The paper in plain PyTorch: every other implementation is tested against it.

It imports nothing else of the package. It runs on any device, in any floating dtype including float64, and
can be differentiated any number of times. Nothing is optimised and nothing is folded;
:mod:`vt_fast.functional` gives the same results in one pass.

``ops`` defines the three public ops. The paper's equations: ``tokenizers`` (eqs. 1 and 2, pooling),
``clustering`` (appendix), ``transformer`` (eqs. 3 and 4, and its alternatives), ``projector`` (eq. 5),
``v1`` (the first version's tokenizers), ``position`` (its position codes), ``linear`` (1x1 convolutions).
"""

from vt_fast.reference import clustering, linear, ops, position, projector, tokenizers, transformer, v1

__all__ = ["clustering", "linear", "ops", "position", "projector", "tokenizers", "transformer", "v1"]
