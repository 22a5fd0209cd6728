"""The paper in plain PyTorch: the oracle that every other implementation is held against.

Any device, any floating dtype including float64, differentiable as often as wanted. Nothing here is
fast and nothing here is folded; see :mod:`vt_fast.functional` for the same results in one pass.
"""
