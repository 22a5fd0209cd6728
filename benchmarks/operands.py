"""The numbers that every contender of a case works on."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Shape

TORCH_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


def draw(
    op: str, shape: Shape, dtype: str, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Operands of an op by name, and the gradients that arrive at its results; maps are (B, N, C).

    Logits are of order one, as trained ones are. The folded ``keys`` that our ops take and the paper's
    ``token_keys`` and dense C x C ``query_weight`` mean the same: keys = token_keys query_weight^T. The
    weight is a permutation with signs, so that this holds exactly in every dtype and one truth serves both;
    a matrix product takes the same time whatever its entries are.

    Example:
        >>> operands, cotangents = draw("project", Shape(2, 3, 4, 8, 5), "fp32")
        >>> list(operands)
        ['x', 'keys', 'values', 'query_weight', 'token_keys']
        >>> torch.equal(operands["keys"], operands["token_keys"] @ operands["query_weight"].T)
        True
        >>> [tuple(value.shape) for value in cotangents]
        [(2, 12, 8)]
    """
    generator = torch.Generator(device).manual_seed(seed)
    channels, target = shape.channels, TORCH_DTYPES[dtype]

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).mul_(scale).to(target)

    given, results = sizes(op, shape)
    operands = {"x": normal(*given["x"])}
    if op != "tokenize":
        token_keys = normal(*given["token_keys"], scale=channels**-0.5)
        order = torch.randperm(channels, generator=generator, device=device)
        signs = (torch.randint(2, (channels,), generator=generator, device=device) * 2 - 1).to(target)
        weight = torch.zeros(given["query_weight"], dtype=target, device=device)
        weight[torch.arange(channels, device=device), order] = signs
        operands["keys"] = (token_keys[..., order] * signs).contiguous()
        operands["values"] = normal(*given["values"])
        operands |= {"query_weight": weight, "token_keys": token_keys}
    if op != "project":
        operands["queries"] = normal(*given["queries"], scale=channels**-0.5)
    return operands, tuple(normal(*size) for size in results)


def sizes(op: str, shape: Shape) -> tuple[dict[str, tuple[int, ...]], list[tuple[int, ...]]]:
    """Sizes of an op's operands by name, in the order of :func:`draw`, and of its results.

    Example:
        >>> sizes("tokenize", Shape(2, 3, 4, 8, 5))
        ({'x': (2, 12, 8), 'queries': (5, 8)}, [(2, 5, 8)])
    """
    x, small = (shape.batch, shape.pixels, shape.channels), (shape.batch, shape.tokens, shape.channels)
    operands: dict[str, tuple[int, ...]] = {"x": x}
    results: list[tuple[int, ...]] = []
    if op != "tokenize":
        operands |= {"keys": small, "values": small}
        operands |= {"query_weight": (shape.channels, shape.channels), "token_keys": small}
        results.append(x)
    if op != "project":
        operands["queries"] = small[1:] if op == "tokenize" else small
        results.append(small)
    return operands, results


def lay_out(pixels: Tensor, shape: Shape, layout: str) -> Tensor:
    """A map (B, C, H, W) in the layout, from (B, N, C).

    Example:
        >>> pixels = torch.zeros(2, 12, 8)
        >>> lay_out(pixels, Shape(2, 3, 4, 8, 5), "channels_last").stride()
        (96, 1, 32, 8)
    """
    feature_map: Tensor = pixels.transpose(1, 2).unflatten(2, (shape.height, shape.width))
    return feature_map.contiguous() if layout == "nchw" else feature_map


def as_pixels(value: Tensor) -> Tensor:
    """(B, N, C) of a 4-D map in any strides, a view where possible; other tensors as they are."""
    return value.flatten(2).transpose(1, 2) if value.dim() == 4 else value
