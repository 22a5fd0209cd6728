"""The numbers that all contenders of a case work on, and their layout in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.shapes import Case

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
Size = tuple[int, ...]


def sizes(case: Case) -> tuple[dict[str, Size], dict[str, Size]]:
    """Sizes of a case's operands and of its results by name; maps are (B, N, C)."""
    batch, pixels, channels, tokens = case.shape.sizes
    x, small = (batch, pixels, channels), (batch, tokens, channels)
    operands: dict[str, Size] = {"x": x}
    if case.op != "tokenize":
        operands |= {"keys": small, "values": small}
        operands |= {"query_weight": (channels, channels), "token_keys": small}
    if case.op != "project":
        operands["queries"] = small[1:] if case.op == "tokenize" else small
    results: dict[str, Size] = {"map": x, "tokens": small}
    results.pop({"tokenize": "map", "project": "tokens"}.get(case.op, ""), None)
    return operands, results


def draw(case: Case, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Operands by name, and the gradients that arrive at the results; maps are (B, N, C).

    Logits are of order one, as trained ones are. The folded ``keys`` that our ops take and the paper's
    ``token_keys`` and dense C x C ``query_weight`` mean the same: keys = token_keys query_weight^T. The
    weight is a permutation with signs, so that this holds exactly in every dtype and one truth serves both;
    a matrix product takes the same time whatever its entries are.

    Example:
        >>> from benchmarks.shapes import Shape
        >>> operands, _ = draw(Case("project", Shape(2, 3, 4, 8, 5), "fp32", "nchw"))
        >>> torch.equal(operands["keys"], operands["token_keys"] @ operands["query_weight"].T)
        True
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(size: Size, scale: float = 1.0) -> Tensor:
        return torch.randn(size, generator=generator, device=device).mul_(scale).to(DTYPES[case.dtype])

    given, results = sizes(case)
    scales = dict.fromkeys(("token_keys", "queries"), case.shape.channels**-0.5)
    operands = {name: normal(size, scales.get(name, 1.0)) for name, size in given.items()}
    if "query_weight" in operands:
        order = torch.randperm(case.shape.channels, generator=generator, device=device)
        signs = operands["query_weight"][0].sign()
        operands["query_weight"].zero_()[torch.arange(len(order), device=device), order] = signs
        operands["keys"] = (operands["token_keys"][..., order] * signs).contiguous()
    return operands, {name: normal(size) for name, size in results.items()}


def lay_out(value: Tensor, name: str, case: Case) -> Tensor:
    """A map (B, C, H, W) in the case's layout, from (B, N, C); other operands and results as they are."""
    if name not in ("x", "map"):
        return value
    feature_map: Tensor = value.transpose(1, 2).unflatten(2, (case.shape.height, case.shape.width))
    return feature_map.contiguous() if case.layout == "nchw" else feature_map
