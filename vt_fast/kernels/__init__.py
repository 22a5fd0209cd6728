"""Triton source of the GPU kernels.

Nothing here imports anything of vt_fast. The functions that launch these kernels are in
:mod:`vt_fast.backends.triton`.

One scheme for all: a program goes over tiles of pixels, ``TILE`` at a time. In a first walk through a tile's
channels, in chunks of ``CHUNK``, it sums scores; in a second one it goes over its *own* chunks, to write
them or to add up sums over pixels, [channels, tokens]. There are three forms:

keep
    All chunks are its own, and the tile stays on the chip from the first walk to the second: each map is
    read once. Sums for all channels stay in registers: channels * tokens may be some 32 thousand.
stream
    The second walk reads the tile again, from the cache if it is still there. ``OWN`` chunks are a program's
    own, ``BLOCKS`` programs share the channels, and each takes the first walk through all of them.
whole
    One tile holds all pixels of a sample (up to 256). Then nothing has to stay in registers: the second walk
    is a loop, ``LOOPS`` long, that stores each chunk's sums at once. For any number of channels.

Pixels are the rows of the scores' products and channels those of the sums', so that the few tokens are always
the narrow side. The settings in ``settings`` say for each class of calls which form, tile and chunk to take.
"""
