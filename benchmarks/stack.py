"""The stack case: three modules with the paper's value and key convolutions, which our code folds away."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.cases import STACK_DEPTH, Shape
from benchmarks.contenders import Contender, usable_backends
from benchmarks.operands import TORCH_DTYPES
from benchmarks.peers import Code, Results
from benchmarks.records import BACKEND, OURS, PEER
from vt_fast.nn import VisualTransformerStack, set_backend


def build(shape: Shape, depth: int = STACK_DEPTH) -> VisualTransformerStack:
    """The stack: tokens as wide as the map, 1x1 convolutions in groups of 64 channels."""
    channels = shape.channels
    return VisualTransformerStack(channels, depth, num_tokens=shape.tokens, group_width=min(64, channels))


def draw(
    shape: Shape,
    dtype: str,
    depth: int = STACK_DEPTH,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The map (B, N, C) and all parameters, and the gradients that arrive at the map and the tokens."""
    generator = torch.Generator().manual_seed(seed)
    target = TORCH_DTYPES[dtype]
    x = (shape.batch, shape.pixels, shape.channels)
    operands = {"x": torch.randn(x, generator=generator).to(device, target)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stack = build(shape, depth)
    for name, parameter in stack.named_parameters():
        value = parameter.detach()
        if not value.any():
            # Residual branches start at zero; here they have to do something.
            value = torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5
        operands[name] = value.to(device, target)
    _, results = sizes(shape, depth)
    return operands, tuple(torch.randn(size, generator=generator).to(device, target) for size in results)


def sizes(
    shape: Shape, depth: int = STACK_DEPTH
) -> tuple[dict[str, tuple[int, ...]], tuple[tuple[int, ...], ...]]:
    """Sizes of the operands by name, and of the results; nothing is computed."""
    x = (shape.batch, shape.pixels, shape.channels)
    with torch.device("meta"):
        parameters = build(shape, depth).named_parameters()
    found: dict[str, tuple[int, ...]] = {"x": x}
    found |= {name: tuple(parameter.shape) for name, parameter in parameters}
    return found, (x, (shape.batch, shape.tokens, shape.channels))


def code(
    shape: Shape,
    dtype: str,
    backend: str,
    device: torch.device | str = "cpu",
    depth: int = STACK_DEPTH,
) -> Code:
    """The stack as a function of the map and its parameters, in their order."""
    chosen = build(shape, depth).to(device, TORCH_DTYPES[dtype])
    set_backend(chosen, backend)
    names = [name for name, _ in chosen.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Results:
        y, tokens = functional_call(chosen, dict(zip(names, weights, strict=True)), (x,))
        return y, tokens

    return run


def contenders(
    shape: Shape,
    dtype: str,
    operands: Collection[str],
    wanted: Collection[str] | None = None,
    device: torch.device | str = "cpu",
    depth: int = STACK_DEPTH,
) -> list[Contender]:
    """Ours, the other backends, and the paper's equations in eager mode."""
    names = usable_backends(device)
    found = [
        Contender(f"vt_fast {name}", kind, code(shape, dtype, name, device, depth), tuple(operands))
        for kind, name in zip([OURS, *[BACKEND] * len(names)], names, strict=False)
    ]
    listed = wanted is None or "eager" in wanted
    reference = code(shape, dtype, "reference", device, depth)
    eager = Contender("eager", PEER, reference, tuple(operands), timed=listed)
    return [*found, eager]
