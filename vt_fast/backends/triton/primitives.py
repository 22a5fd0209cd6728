"""What all kernels are made of: their compile-time configuration, products, and walks over channels.

One scheme for all: a program goes over tiles of pixels, ``TILE`` at a time. The first walk goes through a
tile's channels, in chunks of ``CHUNK``, and sums scores. The second walk goes through the program's *own*
chunks, writes them, or adds up sums over pixels, [channels, tokens]. There are three forms:

keep
    All chunks are the program's own, and the tile stays on the chip from the first walk to the second: each
    map is read once. Sums for all channels stay in registers: channels * tokens may be some 32 thousand.
stream
    The second walk reads the tile again, from the cache if it is still there. ``OWN`` chunks are a program's
    own, ``BLOCKS`` programs share the channels, and each takes the first walk through all of them.
whole
    One tile holds all pixels of a sample (up to 256). Nothing has to stay in registers: the second walk is a
    loop, ``LOOPS`` long, that stores each chunk's sums at once. For any number of channels.

Pixels are the rows of the scores' products and channels those of the sums', so that the few tokens are always
the narrow side.

A kernel's arguments are NamedTuples: Triton flattens them. Fields that hold None are no parameters of the
compiled kernel. Two limits of Triton shape the code: assigning a tuple to a variable turns its compile-time
numbers into run-time ones (a layout is only known where the argument itself is at hand), and Triton 3.6 wants
a constant in a shape or a ``static_range`` to be a ``tl.constexpr`` of its own first.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

# Integer arguments that say how large maps are. Triton would compile anew where one is 1 or a multiple of 16,
# from which no code gets better: what is aligned is told by ALIGN and PIXEL_ALIGN.
UNSPECIALIZED = ["pixels", "batch", "splits", "parts", "tiles_each", "per_part", "rows"]


class Config(NamedTuple):
    """A kernel's constants.

    Channels of x are CHANNELS; those of project's result, or of what tokenize pools, OUT_CHANNELS.
    """

    # How the work is cut, see :class:`vt_fast.backends.triton.schedule.Cut`.
    TILE: int
    CHUNK: int
    OWN: int
    LOOPS: int
    BLOCKS: int
    KEEP: bool
    ONE_TILE: bool
    # CHUNKS of the first walk, and whether its last chunk, or a program's last own one, is not full.
    CHUNKS: int
    RAGGED: bool
    OUT_RAGGED: bool
    OWN_RAGGED: bool
    OUT_OWN_RAGGED: bool
    # Strides are multiples of ALIGN; the number of pixels comes divided by PIXEL_ALIGN. INT64: offsets within
    # a sample may exceed 32 bits.
    ALIGN: int
    PIXEL_ALIGN: int
    INT64: bool
    # Products: of maps' dtype, of float32, and of float32 that make logits. WIDEN: of operands widened to
    # float32. LIMIT: the largest number.
    PRECISION: str
    SMALL_PRECISION: str
    LOGIT_PRECISION: str
    WIDEN: bool
    ACC: Any
    LIMIT: float
    # The projector's rows are HEADS * TOKENS, the tokenizer's QUERIES for each head; padded for products.
    CHANNELS: int
    OUT_CHANNELS: int = 0
    HEADS: int = 1
    # Keys are of a head's block of the channels; values have full width, and the heads are summed.
    BLOCK_KEYS: bool = False
    SUMMED: bool = False
    HEADS_PADDED: int = 1
    TOKENS: int = 0
    TOKENS_PADDED: int = 0
    QUERIES: int = 0
    QUERIES_PADDED: int = 0
    # Where queries of GROUPS heads see all channels, each head's TOKENS are padded.
    GROUPS: int = 1
    # How logits become weights: "pixels", "tokens", "exp" or "none". PARTIAL: logits of -inf may leave a row,
    # or a pixel's softmax, with nothing.
    POOLING: str = "pixels"
    SPREADING: str = "tokens"
    PARTIAL: bool = False
    # Whether there are queries or keys; otherwise scores are the logits.
    HAS_ROWS: bool = True
    # NORM: pixels are normalised: less their mean, divided by the root of their variance and an epsilon.
    # WIDE_WEIGHTS: weights are not rounded to the maps' dtype, where they may be beyond its range.
    NORM: bool = False
    WIDE_WEIGHTS: bool = False
    EXTRA: int = 0
    EXTRA_PADDED: int = 0
    # DIRECT: a forward's results need no combining. RESIDUAL: "none", "input" or "map". MASKED: some pixels
    # may take no part. ACROSS: a part is of several samples. BIAS_EACH: these do not share token_bias.
    DIRECT: bool = False
    RESIDUAL: str = "none"
    MASKED: bool = False
    ACROSS: bool = False
    BIAS_EACH: bool = False
    HAS_GRAD_MAP: bool = False
    NEEDS_X: bool = False
    NEEDS_RESIDUAL: bool = False
    STORE_MAP: bool = False


@triton.jit
def indices(COUNT: tl.constexpr, cfg: tl.constexpr):
    """0, 1, ..., wide enough for what is made of them."""
    if cfg.INT64:
        return tl.arange(0, COUNT).to(tl.int64)
    else:
        return tl.arange(0, COUNT)


@triton.jit
def program_of(splits, cfg: tl.constexpr):
    """This program's block of channels, split of the pixels, item (a sample, or one and a head), and part.

    Programs are counted in that order, with ``splits`` for each item.
    """
    program = tl.program_id(0)
    block = program % cfg.BLOCKS
    split = program // cfg.BLOCKS % splits
    item = (program // (cfg.BLOCKS * splits)).to(tl.int64)
    return block, split, item, item * splits + split


@triton.jit
def product(a, b, onto, cfg: tl.constexpr):
    """onto + a b. WIDEN: Triton's interpreter multiplies bfloat16 as if it were integers."""
    if cfg.WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, onto, input_precision=cfg.PRECISION, out_dtype=onto.dtype)


@triton.jit
def small_product(a, b, onto, cfg: tl.constexpr):
    """onto + a b, of operands that are sums."""
    return tl.dot(a, b, onto, input_precision=cfg.SMALL_PRECISION, out_dtype=cfg.ACC)


@triton.jit
def rounded_weights(weights, DTYPE: tl.constexpr, cfg: tl.constexpr):
    """Weights, or their gradients, for products: in DTYPE, unless its range is too small for them."""
    if cfg.WIDE_WEIGHTS:
        return weights
    else:
        return weights.to(DTYPE)


@triton.jit
def weighted_product(a, b, onto, cfg: tl.constexpr):
    """onto + a b, one of which is from :func:`rounded_weights`."""
    if cfg.WIDE_WEIGHTS:
        return small_product(a.to(cfg.ACC), b.to(cfg.ACC), onto, cfg)
    else:
        return product(a, b, onto, cfg)


@triton.jit
def small_logits(a, b, onto, cfg: tl.constexpr):
    """The same for logits, whose errors would add up in the lse."""
    return tl.dot(a, b, onto, input_precision=cfg.LOGIT_PRECISION, out_dtype=cfg.ACC)


@triton.jit
def finite(maximum, LIMIT: tl.constexpr):
    """What exponents are taken relative to: an infinite one would make NaN of what is 0 or infinite."""
    return tl.minimum(tl.maximum(maximum, -LIMIT), LIMIT)


@triton.jit
def load_rows(base, rows, row_stride, channels, row_ok, channel_ok, MASK_CHANNELS: tl.constexpr):
    """[channels, rows] of a small operand, rows of channels side by side; 0 where there is none."""
    at = base + channels[:, None] + rows[None, :] * row_stride
    if MASK_CHANNELS:
        return tl.load(at, mask=channel_ok[:, None] & row_ok[None, :], other=0.0)
    else:
        return tl.load(at, mask=row_ok[None, :], other=0.0)


@triton.jit
def zero_sums(ROWS: tl.constexpr, cfg: tl.constexpr):
    """Sums [channels, rows] of a program's own chunks before its first tile."""
    CHUNK: tl.constexpr = cfg.CHUNK
    OWN: tl.constexpr = cfg.OWN
    sums = ()
    for _i in tl.static_range(OWN):
        sums = sums + (tl.zeros((CHUNK, ROWS), cfg.ACC),)
    return sums


@triton.jit
def first_walk(step: tl.constexpr, sums, operands, cfg: tl.constexpr):
    """Sums over a tile's channels: ``sums, chunks = step(sums, operands, i, channels, cfg)`` for chunks i.

    Returns the sums, and the chunks of all steps where KEEP keeps them on the chip.
    """
    CHUNKS: tl.constexpr = cfg.CHUNKS
    c = indices(cfg.CHUNK, cfg)
    kept = ()
    if cfg.KEEP:
        for i in tl.static_range(CHUNKS):
            sums, chunks = step(sums, operands, i, i * cfg.CHUNK + c, cfg)
            kept = kept + (chunks,)
    else:
        for m in tl.range(CHUNKS):
            sums, _chunks = step(sums, operands, m, m * cfg.CHUNK + c, cfg)
    return sums, kept


@triton.jit
def second_walk(step: tl.constexpr, sums, operands, block, cfg: tl.constexpr):
    """``step(sums, operands, i, channels, cfg)`` for each of the program's own chunks.

    A step returns (sums of chunk i with this tile's,), or () where a loop over chunks keeps sums in memory.
    The walk goes backwards: what was read last is in the cache.
    """
    OWN: tl.constexpr = cfg.OWN
    c = indices(cfg.CHUNK, cfg)
    for j in tl.range(cfg.LOOPS):
        group = (block * cfg.LOOPS + cfg.LOOPS - 1 - j) * cfg.OWN
        more = ()
        for i in tl.static_range(OWN):
            more = more + step(sums, operands, i, (group + i) * cfg.CHUNK + c, cfg)
        if cfg.LOOPS == 1:
            sums = more
    return sums


@triton.jit
def own_chunk(block, i, cfg: tl.constexpr):
    """The channels of a program's i-th own chunk, where it has no loop over them."""
    return (block * cfg.OWN + i) * cfg.CHUNK + indices(cfg.CHUNK, cfg)


@triton.jit
def add_previous(to, there, added, follows, scale, ONE_TILE: tl.constexpr):
    """added, onto scale times the sums that the previous tile has left in memory, if one ``follows``.

    They are in the cache. Other threads may have written them: see :func:`next_tile`.
    """
    if ONE_TILE:
        return added
    else:
        return added + tl.load(to, mask=tl.where(follows, there, False), other=0.0).to(added.dtype) * scale


@triton.jit
def store_sums(
    parts,
    part,
    channels,
    rows,
    exists,
    sums,
    follows,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    HEADS: tl.constexpr = 1,
):
    """Sums [channels, rows] of a part, onto those of the previous tile if one ``follows``.

    parts (.., ROWS, CHANNELS / HEADS); ``exists`` [1 or channels, rows]. Where heads have blocks of the
    channels, a row's number is given less its head's.
    """
    WIDTH: tl.constexpr = CHANNELS // HEADS
    to = parts + part * (ROWS * WIDTH) + rows[None, :] * WIDTH + channels[:, None]
    there = (channels < CHANNELS)[:, None] & exists
    sums = add_previous(to, there, sums, follows, 1.0, ONE_TILE)
    tl.store(to, sums.to(parts.dtype.element_ty), mask=there)


@triton.jit
def leave_sums(
    parts, slot, channels, rows, exists, sums, CHANNELS: tl.constexpr, ROWS: tl.constexpr, cfg: tl.constexpr
):
    """What a second walk's step returns: the sums, or () where a loop over chunks stores them.

    ``slot``: the part, and whether the program's previous tile has left sums there.
    """
    if cfg.LOOPS > 1:
        store_sums(parts, slot[0], channels, rows, exists, sums, slot[1], CHANNELS, ROWS, cfg.ONE_TILE)
        return ()
    else:
        return (sums,)


@triton.jit
def next_tile(cfg: tl.constexpr):
    """Ends a tile.

    Correctness rests on this barrier where sums go through memory (LOOPS > 1). The product that makes a sum
    and the load that adds to it may lay the same elements out over other threads, so that a thread reads what
    another has written; the barrier orders the two. Sums in registers would not need it.
    """
    if not cfg.ONE_TILE:
        tl.debug_barrier()


@triton.jit
def two_of(values, NARROW: tl.constexpr):
    """Values rounded to a narrow dtype, and what is left of them in it."""
    first = values.to(NARROW)
    return first, (values - first.to(values.dtype)).to(NARROW)
