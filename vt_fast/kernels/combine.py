"""Puts the tokens of parts of the pixels together, in a fixed order."""

import triton
import triton.language as tl

from vt_fast.kernels.tiles import SIZES, finite


@triton.jit(do_not_specialize=SIZES)
def combine(
    part_tokens,
    part_highest,
    part_sum,
    part_pooled,
    part_seen,
    tokens,
    lse,
    splits,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Grid: blocks of columns x TOKENS x (B * heads). See tokenize_forward for the parts.

    tokens (B, TOKENS, HEADS * CHANNELS + COLUMNS) in any dtype, lse (B, HEADS * TOKENS).
    """
    WIDTH: tl.constexpr = CHANNELS + COLUMNS
    ACC: tl.constexpr = part_tokens.dtype.element_ty
    BLOCKS: tl.constexpr = (CHANNELS + COLUMNS + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    block = program % BLOCKS
    token = program // BLOCKS % TOKENS
    item = (program // (BLOCKS * TOKENS)).to(tl.int64)
    sample = item // HEADS
    head = item % HEADS
    column = block * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, AT_ONCE)
    first = item * splits

    highest = tl.full((), -float("inf"), ACC)
    for start in tl.range(0, splits, AT_ONCE):
        at = (first + start + s) * TOKENS + token
        tops = tl.load(part_highest + at, mask=start + s < splits, other=-float("inf"))
        highest = tl.maximum(highest, tl.max(tops, 0))
    base = finite(highest, LIMIT)

    total = tl.zeros((), ACC)
    pooled = tl.zeros((), ACC)
    seen = tl.zeros((), tl.int32)
    sums = tl.zeros((BLOCK,), ACC)
    for start in tl.range(0, splits, AT_ONCE):
        ok = start + s < splits
        part = first + start + s
        at = part * TOKENS + token
        factor = tl.exp(tl.load(part_highest + at, mask=ok, other=-float("inf")) - base)
        total += tl.sum(factor * tl.load(part_sum + at, mask=ok, other=0.0), 0)
        pooled += tl.sum(factor * tl.load(part_pooled + at, mask=ok, other=0.0), 0)
        seen += tl.sum(tl.load(part_seen + part, mask=ok, other=0), 0)
        some = tl.load(
            part_tokens + at[:, None] * WIDTH + column[None, :],
            mask=ok[:, None] & (column < WIDTH)[None, :],
            other=0.0,
        )
        sums += tl.sum(factor[:, None] * some, 0)
    # A sample of which no pixel takes part has tokens of 0.
    mean = tl.where(seen > 0, sums / pooled, 0.0)
    # The columns of the table come after the channels of all heads, and there is one head then.
    to = tokens + (sample * TOKENS + token) * (HEADS * CHANNELS + COLUMNS) + head * CHANNELS
    tl.store(to + column, mean.to(to.dtype.element_ty), mask=column < WIDTH)
    if block == 0:
        tl.store(lse + (sample * HEADS + head) * TOKENS + token, tl.log(total) + base)
