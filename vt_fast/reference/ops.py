"""The definitions of the three ops of :mod:`vt_fast.functional`, in plain differentiable PyTorch.

They take the same arguments as the fused ops, without ``backend``, and can be differentiated any number of
times. They save every intermediate.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vt_fast.reference._checks import check_divides, check_rows, check_shape

__all__ = ["project", "project_tokenize", "tokenize"]


def tokenize(
    x: Tensor,
    queries: Tensor | None = None,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    mask: Tensor | None = None,
    pixel_bias: Tensor | None = None,
    extra_values: Tensor | None = None,
    values: Tensor | None = None,
    scores: Tensor | None = None,
    token_bias: Tensor | None = None,
    normalize: str | None = "pixels",
    offsets: Tensor | None = None,
    layer_norm_eps: float | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pool pixels into tokens: ``T = W V``, by default with ``W = softmax_N(X Q^T)^T``, head by head.

    Shapes are those of :func:`vt_fast.functional.tokenize`.

    Example:
        >>> import torch
        >>> x, queries = torch.zeros(2, 49, 8), torch.zeros(4, 8)
        >>> tokenize(x, queries).shape
        torch.Size([2, 4, 8])
    """
    if normalize not in ("pixels", "tokens", None):
        raise ValueError(f'`normalize` must be "pixels", "tokens" or None, got {normalize!r}')
    if offsets is not None:
        bags = [
            tokenize(
                bag.pixels(x),
                bag.rows(queries, 2),
                num_heads=num_heads,
                scale=scale,
                mask=bag.pixels(mask),
                pixel_bias=bag.pixels(pixel_bias),
                values=bag.pixels(values),
                scores=bag.pixels(scores, 1),
                token_bias=bag.rows(token_bias, 1),
                normalize=normalize,
                layer_norm_eps=layer_norm_eps,
                return_stats=True,
            )
            for bag in _bags(offsets, x.shape[0])
        ]
        tokens, stats = (torch.cat(parts) for parts in zip(*bags, strict=True))
        return (tokens, stats) if return_stats else tokens
    pixels = _pixels("x", x)
    count = pixels.shape[1]
    valid = _valid_pixels(x, mask, pixel_bias)
    pixels = torch.where(valid[..., None], pixels, 0)
    if layer_norm_eps is not None:
        centred = pixels - pixels.mean(-1, keepdim=True)
        pixels = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + layer_norm_eps)
    pooled = pixels if values is None else torch.where(valid[..., None], _pixels("values", values), 0)
    if extra_values is not None:
        check_shape("extra_values", extra_values, N=count, P=None)
        if num_heads != 1:
            raise ValueError(f"`num_heads` must be 1 where `extra_values` is given, got {num_heads}")
    logits, removed, blocks = _logits("queries", pixels, queries, scores, token_bias, scale, num_heads, valid)
    if pixel_bias is not None:
        finite = torch.where(valid, pixel_bias.reshape(valid.shape), 0)
        logits = logits + finite[:, None, :]
    used = valid[:, None, :] & ~removed[..., None]
    weights, lse = _weigh(logits, used, scores, normalize, num_heads)
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    stats = weights.to(exact).sum(-1) if lse is None else lse.to(exact)
    weights = weights.to(x.dtype)
    heads = weights.unflatten(1, (blocks, -1))
    tokens = torch.einsum("bhln,bnhc->blhc", heads, pooled.unflatten(2, (blocks, -1))).flatten(2)
    if extra_values is not None:
        table = torch.where(valid[..., None], extra_values, 0)
        tokens = torch.cat([tokens, weights @ table], -1)
    return (tokens, stats) if return_stats else tokens


def project(
    x: Tensor,
    keys: Tensor | None,
    values: Tensor,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    token_bias: Tensor | None = None,
    residual: Tensor | None = None,
    scores: Tensor | None = None,
    normalize: str | None = "tokens",
    offsets: Tensor | None = None,
) -> Tensor:
    """Spread tokens over pixels: ``Y = R + W V``, by default with ``W = softmax_L(X K^T + b)``, head by head.

    Shapes are those of :func:`vt_fast.functional.project`.

    Example:
        >>> import torch
        >>> x, tokens = torch.ones(2, 8, 7, 7), torch.zeros(2, 4, 8)
        >>> project(x, tokens, tokens).shape
        torch.Size([2, 8, 7, 7])
    """
    if normalize not in ("tokens", "exp", None):
        raise ValueError(f'`normalize` must be "tokens", "exp" or None, got {normalize!r}')
    if offsets is not None:
        bags = [
            project(
                bag.pixels(x),
                bag.rows(keys, 2),
                bag.rows(values, 2),
                num_heads=num_heads,
                scale=scale,
                token_bias=bag.rows(token_bias, 1),
                residual=bag.pixels(residual),
                scores=bag.pixels(scores, 1),
                normalize=normalize,
            ).flatten(0, 1)
            for bag in _bags(offsets, x.shape[0])
        ]
        return torch.cat(bags)
    pixels = _pixels("x", x)
    batch, count, _ = pixels.shape
    valid = torch.ones(batch, count, dtype=torch.bool, device=x.device)
    logits, removed, _ = _logits("keys", pixels, keys, scores, token_bias, scale, num_heads, valid)
    rows = logits.shape[1]
    summed = num_heads > 1 and values.shape[-2] == rows
    check_rows("values", values, batch, L=rows if summed else rows // num_heads, D=None)
    blocks = 1 if summed else num_heads
    check_divides("num_heads", blocks, "the channels of `values`", values.shape[-1])
    if residual is not None:
        added = _pixels("residual", residual)
        check_shape("the pixels of `residual`", added, B=batch, N=count, D=values.shape[-1])
    values = values.expand(batch, -1, -1).unflatten(-1, (blocks, -1))
    values = torch.where(removed.unflatten(1, (blocks, -1)).mT[..., None], 0, values)
    weights, _ = _weigh(logits, ~removed[..., None], scores, normalize, num_heads)
    heads = weights.to(x.dtype).unflatten(1, (blocks, -1))
    out = torch.einsum("bhln,blhd->bnhd", heads, values).flatten(2)
    if residual is not None:
        out = out + added
    return out if x.dim() == 3 else out.transpose(1, 2).unflatten(2, x.shape[2:])


def project_tokenize(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    token_bias: Tensor | None = None,
    residual: Tensor | None = None,
    query_scale: float = 1.0,
    mask: Tensor | None = None,
    pixel_bias: Tensor | None = None,
    extra_values: Tensor | None = None,
    return_map: bool = True,
    return_stats: bool = False,
) -> tuple[Tensor | None, Tensor] | tuple[Tensor | None, Tensor, Tensor]:
    """``Y = project(x, keys, values)`` and ``tokenize(Y, queries)``: the map and its tokens.

    Shapes are those of :func:`vt_fast.functional.project_tokenize`.

    Example:
        >>> import torch
        >>> x, tokens = torch.ones(2, 8, 7, 7), torch.zeros(2, 4, 8)
        >>> y, pooled = project_tokenize(x, tokens, tokens, torch.zeros(5, 8), residual=x)
        >>> y.shape, pooled.shape
        (torch.Size([2, 8, 7, 7]), torch.Size([2, 5, 8]))
    """
    if not return_map:
        # Without the map a masked pixel is not used at all, not even by the projection.
        valid = _valid_pixels(x, mask, pixel_bias)
        x = _keep(x, valid)
        residual = None if residual is None else _keep(residual, valid)
    y = project(x, keys, values, num_heads=num_heads, scale=scale, token_bias=token_bias, residual=residual)
    tokens, lse = tokenize(
        y,
        queries,
        scale=query_scale,
        mask=mask,
        pixel_bias=pixel_bias,
        extra_values=extra_values,
        return_stats=True,
    )
    returned = y if return_map else None
    return (returned, tokens, lse) if return_stats else (returned, tokens)


def _logits(
    name: str,
    pixels: Tensor,
    rows: Tensor | None,
    scores: Tensor | None,
    token_bias: Tensor | None,
    scale: float,
    num_heads: int,
    valid: Tensor,
) -> tuple[Tensor, Tensor, int]:
    """Logits (B, R, N), the removed rows (B, R), and how many channel blocks rows see.

    What rows and scores hold for a row whose bias is -inf, and scores for a pixel that is not valid, is not
    used, and the logits are finite there.
    """
    batch, count, channels = pixels.shape
    blocks = 1 if rows is None or rows.shape[-1] == channels else num_heads
    check_divides("num_heads", blocks, "the channels of `x`", channels)
    if rows is None and scores is None:
        raise ValueError(f"`{name}` must be given where `scores` is not, got None")
    if rows is not None:
        width = "C" if name == "keys" and blocks == 1 else "C / num_heads"
        check_rows(name, rows, batch, **{"num_heads * L": None, width: channels // blocks})
    if scores is not None:
        scores = scores.flatten(2)
        check_shape("scores", scores, B=batch, R=None if rows is None else rows.shape[-2], N=count)
    size = rows.shape[-2] if rows is not None else scores.shape[1]  # type: ignore[union-attr]
    check_divides("num_heads", num_heads, f"the rows of `{name if rows is not None else 'scores'}`", size)
    removed = torch.zeros(batch, size, dtype=torch.bool, device=pixels.device)
    if token_bias is not None:
        check_rows("token_bias", token_bias, batch, **{"num_heads * L": size})
        removed = removed | (token_bias == -torch.inf)
    logits: Tensor | None = None
    if rows is not None:
        rows = torch.where(removed[..., None], 0, rows)
        logits = scale * torch.einsum(
            "bnhc,bhlc->bhln", pixels.unflatten(2, (blocks, -1)), rows.unflatten(1, (blocks, -1))
        ).flatten(1, 2)
    if scores is not None:
        scores = torch.where(removed[..., None] | ~valid[:, None, :], 0, scores)
        logits = scores if logits is None else logits + scores
    if token_bias is not None:
        logits = logits + torch.where(removed, 0, token_bias)[..., None]  # type: ignore[operator]
    return logits, removed, blocks  # type: ignore[return-value]


def _weigh(
    logits: Tensor, used: Tensor, scores: Tensor | None, normalize: str | None, num_heads: int
) -> tuple[Tensor, Tensor | None]:
    """Weights (B, R, N), 0 where the logits are not ``used``, and for "pixels" lse (B, R).

    A score of -inf is one that is not used, but by linear weights. A softmax over nothing is 0, and its lse
    -inf. It gets logits of 0, and its results are replaced. So the graph has no -inf - -inf, and its
    gradients are exactly 0.
    """
    if normalize is None:
        return torch.where(used, logits, 0), None
    if scores is not None:
        used = used & (scores.flatten(2) != -torch.inf)
    used = used.expand(logits.shape)
    if normalize == "exp":
        return torch.where(used, torch.exp(torch.where(used, logits, 0)), 0), None
    dim = -1
    if normalize == "tokens":
        logits, used = logits.unflatten(1, (num_heads, -1)), used.unflatten(1, (num_heads, -1))
        dim = 2
    some = used.any(dim, keepdim=True)
    logits = torch.where(some, torch.where(used, logits, -torch.inf), 0)
    weights = torch.where(some, torch.softmax(logits, dim), 0)
    if normalize == "tokens":
        return weights.flatten(1, 2), None
    exact = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if logits.shape[-1] == 0:
        return weights, exact.new_full(logits.shape[:-1], -torch.inf)
    return weights, torch.where(some[..., 0], torch.logsumexp(exact, -1), -torch.inf)


class _Bag(NamedTuple):
    """A bag as a batch of one sample. The places of samples and pixels are both empty for a batch of none."""

    samples: slice
    places: slice

    def pixels(self, operand: Any, dim: int = 0) -> Any:
        """What it has of an operand whose dimension ``dim`` is the pixels of all bags."""
        if operand is None:
            return None
        part = operand[self.places] if dim == 0 else operand[:, self.places]
        return part[None][: self.samples.stop - self.samples.start]

    def rows(self, operand: Any, shared_dim: int) -> Any:
        """What it has of an operand that all bags may share."""
        return operand if operand is None or operand.dim() == shared_dim else operand[self.samples]


def _bags(offsets: Tensor, total: int) -> list[_Bag]:
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] != total or bounds != sorted(bounds):
        raise ValueError(f"`offsets` must start at 0, not fall, and end at {total}, got {bounds}")
    places = [slice(*pair) for pair in itertools.pairwise(bounds)]
    bags = [_Bag(slice(bag, bag + 1), place) for bag, place in enumerate(places)]
    return bags or [_Bag(slice(0, 0), slice(0, 0))]


def _pixels(name: str, feature_map: Tensor) -> Tensor:
    """(B, N, C) of a map in either form."""
    if feature_map.dim() == 3:
        return feature_map
    if feature_map.dim() != 4:
        shape = tuple(feature_map.shape)
        raise ValueError(f"`{name}` must be (B, N, C) or (B, C, H, W), got {shape}")
    return feature_map.flatten(2).transpose(1, 2)


def _keep(feature_map: Tensor, valid: Tensor) -> Tensor:
    """The map with 0 in the pixels that are not ``valid`` (B, N)."""
    if feature_map.dim() == 3:
        return torch.where(valid[..., None], feature_map, 0)
    return torch.where(valid.unflatten(1, feature_map.shape[2:])[:, None], feature_map, 0)


def _valid_pixels(x: Tensor, mask: Tensor | None, pixel_bias: Tensor | None) -> Tensor:
    """(B, N) bool: neither masked nor given a bias of -inf."""
    pixels = _pixels("x", x)
    valid = torch.ones(pixels.shape[:2], dtype=torch.bool, device=x.device)
    if mask is not None:
        valid = valid & _per_pixel("mask", mask, x)
    if pixel_bias is not None:
        valid = valid & (_per_pixel("pixel_bias", pixel_bias, x) != -torch.inf)
    return valid


def _per_pixel(name: str, value: Tensor, x: Tensor) -> Tensor:
    """(B, N) of what is given as (B, N) or, for a 4-D map, as (B, H, W)."""
    if x.dim() == 4 and value.dim() == 3:
        check_shape(name, value, B=x.shape[0], H=x.shape[2], W=x.shape[3])
        return value.flatten(1)
    batch, count, _ = _pixels("x", x).shape
    check_shape(name, value, B=batch, N=count)
    return value
