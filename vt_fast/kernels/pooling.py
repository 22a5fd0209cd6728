"""The tokenizer's half: a softmax over pixels that come tile by tile, and what it pools."""

import triton
import triton.language as tl

from vt_fast.kernels.tiles import finite


@triton.jit
def softmax_over_pixels(logits, ok, highest, total, pooled, seen, LIMIT: tl.constexpr, ROUNDED: tl.constexpr):
    """Weights of one more tile, relative to the highest logit so far, and by what older sums are scaled.

    ``total`` sums the weights, ``pooled`` the weights in the dtype ROUNDED that products are taken in: what
    pooled sums are divided by, so that the weights add up to 1 as they are used.
    """
    logits = tl.where(ok[:, None], logits, -float("inf"))
    above = tl.maximum(highest, tl.max(logits, 0))
    base = finite(above, LIMIT)
    scale = tl.exp(highest - base)
    weights = tl.exp(logits - base[None, :])
    rounded = weights.to(ROUNDED)
    total = total * scale + tl.sum(weights, 0)
    pooled = pooled * scale + tl.sum(rounded.to(pooled.dtype), 0)
    seen += tl.sum(ok.to(tl.int32), 0)
    return rounded, scale, above, total, pooled, seen


@triton.jit
def store_pooled(to, sums, there, pooled, seen, DIRECT: tl.constexpr):
    """Sums [columns, tokens] as they are, or DIRECT: the tokens, 0 if no pixel takes part."""
    if DIRECT:
        sums = tl.where(seen > 0, sums / pooled[None, :], 0.0)
    tl.store(to, sums.to(to.dtype.element_ty), mask=there)


@triton.jit
def store_statistics(
    lse,
    part_highest,
    part_sum,
    part_pooled,
    part_seen,
    item,
    part,
    highest,
    total,
    pooled,
    seen,
    token,
    TOKENS: tl.constexpr,
    DIRECT: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """What :mod:`vt_fast.kernels.combine` puts together, or DIRECT: lse."""
    ok = token < TOKENS
    if DIRECT:
        tl.store(lse + item * TOKENS + token, tl.log(total) + finite(highest, LIMIT), mask=ok)
    else:
        tl.store(part_highest + part * TOKENS + token, highest, mask=ok)
        tl.store(part_sum + part * TOKENS + token, total, mask=ok)
        tl.store(part_pooled + part * TOKENS + token, pooled, mask=ok)
        tl.store(part_seen + part, seen)
