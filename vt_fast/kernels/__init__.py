"""Triton source of the GPU kernels, and the launch settings beside it.

Nothing here imports anything of vt_fast. The functions that launch these kernels are in
:mod:`vt_fast.backends.triton`.

One scheme for all: a program walks over tiles of pixels, ``TILE`` at a time. Of each tile it first sums
scores over chunks of channels, ``CHUNK`` wide, then goes over its *own* chunks, ``OWN`` of them, to
write them or to add up sums over pixels, [channels, tokens], in registers. If all chunks are its own, the
map's tile is read once and stays on the chip; otherwise several programs share the channels, each computes
the scores, and a tile comes from the cache the second time.
"""
