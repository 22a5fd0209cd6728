"""Layers of other papers, written with two ops: ``tokenize`` and ``project``.

Weights are those of linear layers and 1x1 convolutions, (out, in). Maps are (B, N, C) or (B, C, H, W).
``tests/examples/test_family.py`` compares each with its own formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast import project, tokenize


def double_attention(x: Tensor, phi: Tensor, theta: Tensor, rho: Tensor, ports: bool = False) -> Tensor:
    """A2-Net (Chen et al., 2018): gather features, spread them. ``ports``: rho's softmax is over pixels."""
    tokens = tokenize(x, theta) @ phi.T  # linear layers need not run on the pixels
    if not ports:
        return project(x, rho, tokens)
    _, lse = tokenize(x, rho, return_stats=True)
    return project(x, rho, tokens, normalize="exp", token_bias=-lse)


def glore(x: Tensor, nodes: Tensor, reduce: Tensor, mix: Tensor, update: Tensor, extend: Tensor) -> Tensor:
    """GloRe (Chen et al., 2019): a graph convolution between a linear projection and its inverse."""
    states = tokenize(x, nodes, normalize=None) @ reduce.T
    states = torch.relu((states - mix @ states) @ update.T)
    return project(x, nodes, states @ extend.T, residual=x, normalize=None)


def object_regions(x: Tensor, class_scores: Tensor) -> Tensor:
    """OCR's gather (Yuan et al., 2020): features of each class (B, K, C) by coarse scores (B, K, H, W)."""
    tokens: Tensor = tokenize(x, scores=class_scores)
    return tokens


def physics_attention(x: Tensor, fx: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor) -> Tensor:
    """Transolver's slice and deslice (Wu et al., 2024), without the attention among slices in between.

    x and fx (B, N, C); the heads share weight (L, C / heads) and bias (L,); temperature (heads,).
    """
    heads = temperature.shape[0]
    rows = (weight / temperature[:, None, None]).flatten(0, 1)
    token_bias = (bias / temperature[:, None]).flatten()
    sums, mass = tokenize(
        x, rows, values=fx, token_bias=token_bias, num_heads=heads, normalize="tokens", return_stats=True
    )
    share = mass.unflatten(1, (heads, -1)).mT[..., None] + 1e-2  # (B, L, heads, 1)
    slices = (sums.unflatten(2, (heads, -1)) / share).flatten(2)
    return project(x, rows, slices, token_bias=token_bias, num_heads=heads)


def slot_updates(x: Tensor, slots: Tensor, query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    """A step of slot attention (Locatello et al., 2020): slots compete for pixels and take means."""
    rows = slots @ query.T @ key
    sums, mass = tokenize(x, rows, scale=key.shape[0] ** -0.5, normalize="tokens", return_stats=True)
    sums, mass = sums + eps * x.sum(1, keepdim=True), mass + eps * x.shape[1]
    return sums / mass[..., None] @ value.T


def netvlad(x: Tensor, weight: Tensor, bias: Tensor, centres: Tensor) -> Tensor:
    """NetVLAD (Arandjelovic et al., 2016): sums of residuals from soft cluster centres, normalised."""
    sums, mass = tokenize(x, weight, token_bias=bias, normalize="tokens", return_stats=True)
    residuals = torch.nn.functional.normalize(sums - mass[..., None] * centres, dim=-1)
    return torch.nn.functional.normalize(residuals.flatten(1), dim=-1)


def gated_mil(x: Tensor, offsets: Tensor, tanh: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """Gated attention over bags (Ilse et al., 2018): instances (total, C), bags by their offsets."""
    scores = weight @ (torch.tanh(x @ tanh.T) * torch.sigmoid(x @ gate.T)).T  # (heads, total)
    tokens: Tensor = tokenize(x, scores=scores, offsets=offsets)
    return tokens


def tokens_to_image(
    tokens: Tensor, pixels: Tensor, position: Tensor, weights: dict[str, Tensor], heads: int
) -> Tensor:
    """SAM's cross-attention (Kirillov et al., 2023): tokens look at pixels. All weights are absorbed."""
    query, key, value = (weights[name].unflatten(0, (heads, -1)) for name in ("q", "k", "v"))
    rows = torch.einsum("btc,hdc,hdm->bhtm", tokens, query, key).flatten(1, 2)
    pooled = tokenize(
        pixels + position, rows, num_heads=heads, scale=query.shape[1] ** -0.5, values=pixels
    ).unflatten(1, (heads, -1))
    return torch.einsum("bhtm,hdm->bthd", pooled, value).flatten(2) @ weights["out"].T


def image_to_tokens(
    tokens: Tensor, pixels: Tensor, position: Tensor, weights: dict[str, Tensor], heads: int
) -> Tensor:
    """And pixels look at tokens: the heads' output projection is in the values, which are summed."""
    query, key, value = (weights[name].unflatten(0, (heads, -1)) for name in ("q", "k", "v"))
    keys = torch.einsum("btc,hdc,hdm->bhtm", tokens, key, query).flatten(1, 2)
    out = weights["out"].unflatten(1, (heads, -1))
    values = torch.einsum("btc,hdc,mhd->bhtm", tokens, value, out).flatten(1, 2)
    scale = query.shape[1] ** -0.5
    return project(pixels + position, keys, values, num_heads=heads, scale=scale, residual=pixels)
