"""Triton source of the GPU kernels.

Nothing here imports anything of vt_fast. The functions that launch these kernels are in
:mod:`vt_fast.backends.triton`.

One scheme for all: a program walks over tiles of pixels, ``TILE`` at a time. Of each tile it first sums
scores over chunks of channels, ``CHUNK`` wide, then goes over its *own* chunks, ``OWN`` of them, to
write them or to add up sums over pixels, [channels, tokens], in registers. If all chunks are its own,
tokenize's scores and sums, and project's residual, take a tile that was read once and stayed on the chip.
Elsewhere, and where several programs share the channels and each computes the scores, a tile is read again,
from the cache if it is still there.
"""
