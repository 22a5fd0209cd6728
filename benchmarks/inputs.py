"""The numbers that all contenders of a case work on, and their layout in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.attention import Code, Results
from benchmarks.shapes import STACK, Case, Shape
from vt_fast.nn import VisualTransformerStack, set_backend

TORCH_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


def draw(case: Case, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Operands by name, and the gradients that arrive at the results; maps are (B, N, C).

    Logits are of order one, as trained ones are. The folded ``keys`` that our ops take and the paper's
    ``token_keys`` and dense C x C ``query_weight`` mean the same: keys = token_keys query_weight^T. The
    weight is a permutation with signs, so that this holds exactly in every dtype and one truth serves both;
    a matrix product takes the same time whatever its entries are.

    Example:
        >>> operands, cotangents = draw(Case("project", Shape(2, 3, 4, 8, 5), "fp32", "nchw"))
        >>> list(operands)
        ['x', 'keys', 'values', 'query_weight', 'token_keys']
        >>> torch.equal(operands["keys"], operands["token_keys"] @ operands["query_weight"].T)
        True
        >>> [tuple(value.shape) for value in cotangents]
        [(2, 12, 8)]
    """
    # A stack is drawn on the CPU, where its modules are initialized.
    where = "cpu" if case.op == STACK else device
    generator = torch.Generator(where).manual_seed(0)
    channels, target = case.shape.channels, TORCH_DTYPES[case.dtype]

    def normal(size: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return torch.randn(size, generator=generator, device=where).mul_(scale).to(device, target)

    given, results = sizes(case)
    operands = {"x": normal(given["x"])}
    if case.op == STACK:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parameters = dict(_stack(case).named_parameters())
        for name, parameter in parameters.items():
            value = parameter.detach()
            # Residual branches start at zero; here they have to do something.
            drawn = value.to(device, target) if value.any() else normal(value.shape, value.shape[-1] ** -0.5)
            operands[name] = drawn
        return operands, tuple(map(normal, results))
    if case.op != "tokenize":
        token_keys = normal(given["token_keys"], channels**-0.5)
        order = torch.randperm(channels, generator=generator, device=device)
        signs = (torch.randint(2, (channels,), generator=generator, device=device) * 2 - 1).to(target)
        weight = torch.zeros(given["query_weight"], dtype=target, device=device)
        weight[torch.arange(channels, device=device), order] = signs
        operands["keys"] = (token_keys[..., order] * signs).contiguous()
        operands["values"] = normal(given["values"])
        operands |= {"query_weight": weight, "token_keys": token_keys}
    if case.op != "project":
        operands["queries"] = normal(given["queries"], channels**-0.5)
    return operands, tuple(map(normal, results))


def sizes(case: Case) -> tuple[dict[str, tuple[int, ...]], list[tuple[int, ...]]]:
    """Sizes of the operands by name, in the order of :func:`draw`, and of the results.

    Example:
        >>> sizes(Case("tokenize", Shape(2, 3, 4, 8, 5), "fp32", "nchw"))
        ({'x': (2, 12, 8), 'queries': (5, 8)}, [(2, 5, 8)])
    """
    shape = case.shape
    x, small = (shape.batch, shape.pixels, shape.channels), (shape.batch, shape.tokens, shape.channels)
    operands: dict[str, tuple[int, ...]] = {"x": x}
    if case.op == STACK:
        with torch.device("meta"):
            parameters = _stack(case).named_parameters()
        return operands | {name: tuple(parameter.shape) for name, parameter in parameters}, [x, small]
    results: list[tuple[int, ...]] = []
    if case.op != "tokenize":
        operands |= {"keys": small, "values": small}
        operands |= {"query_weight": (shape.channels, shape.channels), "token_keys": small}
        results.append(x)
    if case.op != "project":
        operands["queries"] = small[1:] if case.op == "tokenize" else small
        results.append(small)
    return operands, results


def _stack(case: Case) -> VisualTransformerStack:
    """Tokens as wide as the map, value and key convolutions in groups of 64 channels."""
    channels = case.shape.channels
    return VisualTransformerStack(
        channels, case.depth, num_tokens=case.shape.tokens, group_width=min(64, channels)
    )


def stack_code(case: Case, dtype: str, backend: str, device: torch.device | str = "cpu") -> Code:
    """The stack as a function of the map and its parameters, in the order of :func:`draw`."""
    stack = _stack(case).to(device, TORCH_DTYPES[dtype])
    set_backend(stack, backend)
    names = [name for name, _ in stack.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Results:
        y, tokens = functional_call(stack, dict(zip(names, weights, strict=True)), (x,))
        return y, tokens

    return run


def lay_out(pixels: Tensor, shape: Shape, layout: str) -> Tensor:
    """A map (B, C, H, W) in the layout, from (B, N, C).

    Example:
        >>> lay_out(torch.zeros(2, 12, 8), Shape(2, 3, 4, 8, 5), "channels_last").stride()
        (96, 1, 32, 8)
    """
    feature_map: Tensor = pixels.transpose(1, 2).unflatten(2, (shape.height, shape.width))
    return feature_map.contiguous() if layout == "nchw" else feature_map
