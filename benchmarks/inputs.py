"""The numbers that all contenders of a case work on, and their layout in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.attention import Code, Results
from benchmarks.shapes import STACK, Case
from vt_fast.nn import VisualTransformerStack, set_backend

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
Size = tuple[int, ...]


def sizes(case: Case) -> tuple[dict[str, Size], dict[str, Size]]:
    """Sizes of a case's operands and of its results by name; maps are (B, N, C)."""
    batch, pixels, channels, tokens = case.shape.sizes
    x, small = (batch, pixels, channels), (batch, tokens, channels)
    operands: dict[str, Size] = {"x": x}
    results: dict[str, Size] = {"map": x, "tokens": small}
    if case.op == STACK:
        with torch.device("meta"):
            parameters = _stack(case).named_parameters()
        return operands | {name: tuple(parameter.shape) for name, parameter in parameters}, results
    if case.op != "tokenize":
        operands |= {"keys": small, "values": small}
        operands |= {"query_weight": (channels, channels), "token_keys": small}
    if case.op != "project":
        operands["queries"] = small[1:] if case.op == "tokenize" else small
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
    # A stack is drawn on the CPU, where its modules are initialized.
    where = "cpu" if case.op == STACK else device
    generator = torch.Generator(where).manual_seed(0)
    target = DTYPES[case.dtype]

    def normal(size: Size, scale: float = 1.0) -> Tensor:
        return torch.randn(size, generator=generator, device=where).mul_(scale).to(device, target)

    given, results = sizes(case)
    if case.op == STACK:
        operands = {"x": normal(given["x"])}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parameters = {name: value.detach() for name, value in _stack(case).named_parameters()}
        for name, value in parameters.items():
            # Residual branches start at zero; here they have to do something.
            drawn = value if value.any() else normal(value.shape, value.shape[-1] ** -0.5)
            operands[name] = drawn.to(device, target)
    else:
        scales = dict.fromkeys(("token_keys", "queries"), case.shape.channels**-0.5)
        operands = {name: normal(size, scales.get(name, 1.0)) for name, size in given.items()}
    if "query_weight" in operands:
        order = torch.randperm(case.shape.channels, generator=generator, device=device)
        signs = operands["query_weight"][0].sign()
        operands["query_weight"].zero_()[torch.arange(len(order), device=device), order] = signs
        operands["keys"] = (operands["token_keys"][..., order] * signs).contiguous()
    return operands, {name: normal(size) for name, size in results.items()}


def _stack(case: Case) -> VisualTransformerStack:
    """Three modules or so, whose value and key convolutions are in groups of 64 channels."""
    channels = case.shape.channels
    width = min(64, channels)
    return VisualTransformerStack(channels, case.parts or 3, num_tokens=case.shape.tokens, group_width=width)


def stack_code(case: Case, dtype: str, backend: str, device: torch.device | str = "cpu") -> Code:
    """The stack as a function of the map and its parameters, in the order of :func:`draw`."""
    stack = _stack(case).to(device, DTYPES[dtype])
    set_backend(stack, backend)
    names = [name for name, _ in stack.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Results:
        y, tokens = functional_call(stack, dict(zip(names, weights, strict=True)), (x,))
        return y, tokens

    return run


def folded_stack(case: Case) -> Code:
    """A stack of one by hand: its folded algebra in plain PyTorch, for one group of channels."""
    names = [name.removeprefix("blocks.0.") for name, _ in _stack(case).named_parameters()]
    channels = case.shape.channels

    def run(x: Tensor, *weights: Tensor) -> Results:
        given = dict(zip(names, weights, strict=True))

        def linear(rows: Tensor, name: str) -> Tensor:
            return F.linear(rows, given[f"{name}.weight"], given.get(f"{name}.bias"))

        pixels = x.flatten(2).transpose(1, 2)
        filters = channels**-0.5 * given["tokenizer.filters"]
        pooled = torch.softmax(pixels @ filters.T, 1).transpose(1, 2) @ pixels
        tokens = linear(linear(pooled, "tokenizer.value"), "tokenizer.token")
        norm = "transformer.token_norm"
        tokens = F.layer_norm(tokens, (channels,), given[f"{norm}.weight"], given[f"{norm}.bias"])
        keys, queries = linear(tokens, "transformer.key"), linear(tokens, "transformer.query")
        logits = (channels // 2) ** -0.5 * (keys @ queries.transpose(1, 2))
        tokens = tokens + torch.softmax(logits, 2) @ linear(tokens, "transformer.value")
        tokens = tokens + linear(F.relu(linear(tokens, "transformer.first")), "transformer.second")
        rows = channels**-0.5 * linear(tokens, "projector.key")
        keys = rows @ given["projector.query.weight"]
        logits = pixels @ keys.transpose(1, 2) + (rows @ given["projector.query.bias"])[:, None]
        y = pixels + torch.softmax(logits, 2) @ linear(tokens, "projector.value")
        return y.transpose(1, 2).unflatten(2, x.shape[2:]), tokens

    return run


def lay_out(value: Tensor, name: str, case: Case) -> Tensor:
    """A map (B, C, H, W) in the case's layout, from (B, N, C); other operands and results as they are."""
    if name not in ("x", "map"):
        return value
    feature_map: Tensor = value.transpose(1, 2).unflatten(2, (case.shape.height, case.shape.width))
    return feature_map.contiguous() if case.layout == "nchw" else feature_map
