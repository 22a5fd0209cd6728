"""Double attention and global reasoning as their papers write them, with every projection on the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.reference._checks import check_shape
from vt_fast.reference.linear import Projection, linear


def double_attention(
    x: Tensor, phi: Projection, theta: Projection, rho: Projection, out: Projection
) -> Tensor:
    """A2-Net (Chen et al., arXiv 1810.11579): X + out(softmax_n(rho(X)) (softmax_N(theta(X))^T phi(X))).

    Args:
        x: (B, N, C) pixels.
        phi: C -> m, the features that are gathered.
        theta: C -> n, the logits of gathering: softmax over the N pixels.
        rho: C -> n, the logits of distribution: softmax over the n vectors.
        out: m -> C.

    Returns:
        (B, N, C).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> x, one = torch.tensor([[[1.0], [3.0]]]), Projection(torch.ones(1, 1))
        >>> double_attention(x, one, Projection(torch.zeros(1, 1)), one, one).tolist()  # adds the mean
        [[[3.0], [5.0]]]
    """
    check_shape("x", x, B=None, N=None, C=None)
    gather = torch.softmax(linear(x, theta), dim=1)
    distribute = torch.softmax(linear(x, rho), dim=2)
    vectors = gather.transpose(1, 2) @ linear(x, phi)
    return x + linear(distribute @ vectors, out)


def global_reasoning(
    x: Tensor,
    phi: Projection,
    theta: Projection,
    adjacency: Projection,
    update: Projection,
    out: Projection,
    *,
    scale: float = 1.0,
) -> Tensor:
    """GloRe (Chen et al., arXiv 1811.12814) before its norm and its residual.

    B = theta(X), V = scale B^T phi(X), Z = update(relu(V + adjacency(V))), out(B Z).

    Args:
        x: (B, N, C) pixels.
        phi: C -> s, the states.
        theta: C -> n, the weights of each node.
        adjacency: n -> n, across the nodes.
        update: s -> s, of each node.
        out: s -> C.
        scale: multiplies the nodes.

    Returns:
        (B, N, C).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> x, one, none = torch.tensor([[[1.0], [2.0]]]), *map(Projection, torch.eye(2)[0, :, None, None])
        >>> global_reasoning(x, one, one, none, one, one).tolist()  # times the sum of squares
        [[[5.0], [10.0]]]
    """
    check_shape("x", x, B=None, N=None, C=None)
    weights = linear(x, theta)
    nodes = scale * (weights.transpose(1, 2) @ linear(x, phi))
    mixed = nodes + linear(nodes.transpose(1, 2), adjacency).transpose(1, 2)
    return linear(weights @ linear(torch.relu(mixed), update), out)
