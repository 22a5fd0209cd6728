"""What every token's gradient of a softmax over pixels is relative to."""

import triton
import triton.language as tl

from vt_fast.kernels.tiles import SIZES


@triton.jit(do_not_specialize=SIZES)
def deltas(
    grad_tokens,
    tokens,
    grad_lse,
    delta,
    rows,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """delta (B, HEADS * TOKENS): the sum of dT * T over a head's CHANNELS columns, less dlse.

    Grid: blocks of ROWS of the B * HEADS * TOKENS rows. grad_tokens and tokens (B, TOKENS, HEADS * CHANNELS).
    In float64: what differs from it by little is subtracted of it for each pixel.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ok = row < rows
    token = row % TOKENS
    head = row // TOKENS % HEADS
    sample = row // (TOKENS * HEADS)
    first = (sample * TOKENS + token) * (HEADS * CHANNELS) + head * CHANNELS
    sums = tl.zeros((ROWS, BLOCK), tl.float64)
    for start in tl.range(0, CHANNELS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        there = ok[:, None] & (column < CHANNELS)[None, :]
        at = first[:, None] + column[None, :]
        grads = tl.load(grad_tokens + at, mask=there, other=0.0).to(tl.float64)
        sums += grads * tl.load(tokens + at, mask=there, other=0.0).to(tl.float64)
    total = tl.sum(sums, 1)
    if HAS_GRAD_LSE:
        total -= tl.load(grad_lse + row, mask=ok, other=0.0).to(tl.float64)
    tl.store(delta + row, total.to(delta.dtype.element_ty), mask=ok)
