"""The modules under test, each with its options, and how to run any of them in one way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vt_fast import nn
from vt_fast.nn import VisualTransformer, VisualTransformerStack

# Odd and unequal sides, and no two sizes alike that could be mistaken for one another.
B, C, H, W, L, CT, D = 2, 24, 7, 9, 4, 20, 36

FORMS = ("contiguous", "channels_last", "rows")

build, stack = VisualTransformer, VisualTransformerStack

# Heads, key and value groups: aligned, nested either way, overlapping, coprime, no value convolution.
GROUPS = ((1, 1, 1), (4, 4, 4), (4, 1, 1), (8, 4, 2), (2, 4, 8), (4, 6, 2), (3, 2, 2), (12, 6, None))

TOKENIZERS: dict[str, Callable[[], nn.Tokenizer]] = {
    "filter": lambda: nn.FilterTokenizer(C, L),
    "filter value": lambda: nn.FilterTokenizer(C, L, CT, value_groups=3, scale=0.7),
    "filter no bias": lambda: nn.FilterTokenizer(C, L, CT, value_groups=1, bias=False),
    "filter token linear": lambda: nn.FilterTokenizer(C, L, token_linear=True),
    "filter linear position": lambda: nn.FilterTokenizer(C, L, CT, position=nn.LinearPositionCode(5, 6)),
    "filter position, no linear": lambda: nn.FilterTokenizer(
        C, L, C + 6, position=nn.LinearPositionCode(5, 6)
    ),
    "filter conv position": lambda: nn.FilterTokenizer(
        C, L, CT, value_groups=2, position=nn.ConvPositionCode(11, 5, convolutions=2, width=3)
    ),
    "recurrent": lambda: nn.RecurrentTokenizer(C, L, CT),
    "recurrent key": lambda: nn.RecurrentTokenizer(C, L, CT, key_groups=1, scale=0.3),
    "recurrent groups": lambda: nn.RecurrentTokenizer(
        C, L, CT, query_groups=4, key_groups=6, value_groups=2, bias=False
    ),
    "recurrent position": lambda: nn.RecurrentTokenizer(
        C, L, CT, key_groups=2, value_groups=2, position=nn.LinearPositionCode(14, 3)
    ),
    "static": lambda: nn.StaticTokenizer(C, L, CT),
    "static position": lambda: nn.StaticTokenizer(
        C, L, CT, value_groups=4, position=nn.ConvPositionCode(6, 7)
    ),
    "clustering": lambda: nn.ClusteringTokenizer(C, L, iterations=3),
    "clustering value": lambda: nn.ClusteringTokenizer(C, L, CT, iterations=2, scale=3.0, value_groups=2),
    "pooling": lambda: nn.PoolingTokenizer(C, L),
    "pooling value": lambda: nn.PoolingTokenizer(C, 6, CT, grid=(3, 2), value_groups=2),
} | {
    f"dynamic {num_heads} heads, key {key}, value {value}": (
        lambda num_heads=num_heads, key=key, value=value: nn.DynamicTokenizer(
            C, L, CT, num_heads=num_heads, key_groups=key, value_groups=value
        )
    )
    for num_heads, key, value in GROUPS
}
TOKENIZERS["dynamic position"] = lambda: nn.DynamicTokenizer(
    C, L, CT, num_heads=4, key_groups=4, value_groups=2, position=nn.ConvPositionCode(6, 5)
)

RELATIONS: dict[str, Callable[[], nn.TokenRelation]] = {
    "transformer": lambda: nn.TokenTransformer(CT),
    "transformer heads": lambda: nn.TokenTransformer(
        CT, width=8, num_heads=4, groups=2, hidden=30, token_norm="layer"
    ),
    "transformer batch norm": lambda: nn.TokenTransformer(CT, token_norm="batch"),
    "transformer no value": lambda: nn.TokenTransformer(CT, value=False, bias=False, scale=0.2),
    "transformer scaled": lambda: nn.TokenTransformer(CT, variant="scaled", num_heads=2, groups=2),
    "transformer v1": lambda: nn.TokenTransformer(CT, variant="v1", num_heads=2),
    "graph": lambda: nn.GraphConv(L, CT, groups=2),
    "graph norm": lambda: nn.GraphConv(L, CT, token_norm="layer", bias=False),
    "graph batch norm": lambda: nn.GraphConv(L, CT, token_norm="batch"),
    "none": lambda: nn.TokenFeedForward(CT),
    "none norm": lambda: nn.TokenFeedForward(CT, groups=4, token_norm="layer"),
}

PROJECTORS: dict[str, Callable[[], nn.Projector]] = {
    "plain": lambda: nn.Projector(C, CT),
    "no bias": lambda: nn.Projector(C, CT, bias=False, scale=0.4),
    "num_heads": lambda: nn.Projector(C, CT, width=12, num_heads=4),
    "shortcut": lambda: nn.Projector(C, CT, D, query_groups=12, num_heads=3),
    "heads nested in groups": lambda: nn.Projector(C, CT, num_heads=3, query_groups=12),
    "groups nested in heads": lambda: nn.Projector(C, CT, num_heads=12, query_groups=3),
    "overlapping": lambda: nn.Projector(C, CT, num_heads=4, query_groups=6),
    "no query": lambda: nn.Projector(C, CT, query_groups=None),
    "no query, heads": lambda: nn.Projector(C, CT, D, query_groups=None, num_heads=3),
    "no key": lambda: nn.Projector(C, CT, key=False, num_heads=2),
    "no value": lambda: nn.Projector(C, C, value=False),
    "bare": lambda: nn.Projector(C, C, query_groups=None, key=False, value=False),
}

MODULES: dict[str, Callable[[], VisualTransformer]] = {
    "default": lambda: build(C, num_tokens=L),
    "recurrent": lambda: build(C, num_tokens=L, token_channels=CT, tokenizer="recurrent", num_heads=2),
    "tokens only": lambda: build(C, num_tokens=L, token_channels=CT, projector=False, relation="graph"),
    "no tokenizer": lambda: build(C, num_tokens=L, token_channels=CT, tokenizer=None, relation="none"),
    "paper's counts": lambda: build(
        C, num_tokens=L, token_channels=CT, out_channels=D, group_width=12, token_groups=2, token_norm=None
    ),
    "v1": lambda: build(
        C,
        num_tokens=L,
        tokenizer="static",
        variant="v1",
        num_heads=4,
        group_width=6,
        position=nn.ConvPositionCode(6, 5),
    ),
    "clustering": lambda: build(C, num_tokens=L, tokenizer="clustering", token_channels=CT),
    "pooling": lambda: build(C, num_tokens=L, tokenizer="pooling", group_width=6),
}

STACKS: dict[str, Callable[[], VisualTransformerStack]] = {
    "default": lambda: stack(C, 3, num_tokens=L),
    "one": lambda: stack(C, 1, num_tokens=L),
    "tokens only": lambda: stack(C, 3, num_tokens=L, token_channels=CT, last_projector=False),
    "paper's counts": lambda: stack(
        C,
        3,
        num_tokens=L,
        token_channels=CT,
        out_channels=D,
        group_width=12,
        token_groups=2,
        last_projector=False,
    ),
    "position and heads": lambda: stack(
        C, 2, num_tokens=L, num_heads=4, position=nn.LinearPositionCode(5, 6)
    ),
    "later position": lambda: VisualTransformerStack.from_parts(
        [
            build(C, num_tokens=L, token_channels=CT, out_channels=D),
            build(
                D,
                num_tokens=L,
                token_channels=CT,
                tokenizer="recurrent",
                position=nn.ConvPositionCode(6, 5),
            ),
        ]
    ),
    "v1, fused": lambda: stack(C, 2, num_tokens=L, tokenizer="static", num_heads=4, variant="v1"),
    "v1, codes on both, tokens added": lambda: VisualTransformerStack.from_parts(
        [
            build(C, L, tokenizer=each, position="conv", projector_value=False, variant="v1", num_heads=4)
            for each in ("static", "dynamic")
        ]
    ),
    "v1, several heads": lambda: stack(C, 2, num_tokens=L, tokenizer="static", num_heads=4, group_width=6),
    "filters only": lambda: stack(C, 2, num_tokens=L, later_tokenizer="filter", relation="none"),
    "clustering": lambda: stack(C, 2, num_tokens=L, tokenizer="clustering", later_tokenizer="clustering"),
    "pooling": lambda: stack(C, 2, num_tokens=L, tokenizer="pooling"),
    "other numbers of tokens": lambda: VisualTransformerStack.from_parts(
        [build(C, num_tokens=3), build(C, num_tokens=5), build(C, num_tokens=2)]
    ),
    "map as factors, position": lambda: stack(
        C,
        3,
        num_tokens=L,
        token_channels=CT,
        out_channels=2 * C,
        group_width=12,
        position=nn.LinearPositionCode(5, 6),
        last_projector=False,
    ),
    "map as factors, later position": lambda: VisualTransformerStack.from_parts(
        [
            build(C, num_tokens=3, token_channels=CT, out_channels=2 * C),
            build(2 * C, num_tokens=5, token_channels=CT, position=nn.ConvPositionCode(6, 5)),
            build(2 * C, num_tokens=2, token_channels=CT, projector=False),
        ]
    ),
    "a module without projector": lambda: VisualTransformerStack.from_parts(
        [
            build(C, num_tokens=L, projector=False),
            build(C, num_tokens=L, tokenizer="recurrent"),
            build(C, num_tokens=L, tokenizer=None),
            build(C, num_tokens=L, tokenizer="recurrent", projector=False),
            build(C, num_tokens=L, tokenizer=None, projector=False),
        ]
    ),
}


def every_kind() -> VisualTransformerStack:
    """A stack with members of every kind, all of them fused but the last block's."""
    wide, code = {"token_channels": CT, "out_channels": D}, nn.ConvPositionCode(6, 5, width=3)
    return VisualTransformerStack.from_parts(
        [
            build(C, L, tokenizer="static", relation="graph", num_heads=3, position=code, **wide),
            VisualTransformer.from_parts(
                nn.RecurrentTokenizer(
                    D, L, CT, key_groups=2, value_groups=3, position=nn.LinearPositionCode(5, 6)
                ),
                nn.TokenTransformer(CT, num_heads=2, groups=2, token_norm="layer"),
                nn.Projector(D, CT, num_heads=2, query_groups=6),
            ),
            VisualTransformer.from_parts(
                nn.FilterTokenizer(D, L, CT), nn.TokenFeedForward(CT), nn.Projector(D, CT, query_groups=None)
            ),
            build(D, L, token_channels=CT, tokenizer="dynamic", variant="v1", num_heads=4, group_width=9),
        ]
    )


CASES: dict[str, Callable[[], torch.nn.Module]] = {
    f"{kind}: {name}": make
    for kind, group in {
        "tokenizer": TOKENIZERS,
        "relation": RELATIONS,
        "projector": PROJECTORS,
        "module": MODULES,
        "stack": STACKS,
    }.items()
    for name, make in group.items()
}


def made(make: Callable[[], torch.nn.Module], *, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """The module with every parameter random, none zero, and signals of order 1 throughout."""
    module = make().to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 2
        # Filters and position weights meet a scale of 1 / sqrt(C) or attention of order 1 / N instead.
        spread = 1 / fan_in**0.5
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(noise * spread)
    for name, parameter in module.named_parameters():
        if name.endswith("filters"):
            parameter.data.mul_(C**0.5)
    return module


def feature_map(
    form: str, *, dtype: torch.dtype = torch.float64, channels: int = C, batch: int = B
) -> Tensor:
    """The same map in one of the FORMS, a leaf that requires its gradient."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, channels, H, W, generator=generator, dtype=torch.float64).to(dtype)
    if form == "rows":
        x = x.flatten(2).transpose(1, 2).contiguous()
    elif form == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def incoming(module: torch.nn.Module, *, dtype: torch.dtype = torch.float64, batch: int = B) -> Tensor:
    """Tokens for a module that may need them."""
    generator = torch.Generator().manual_seed(3)
    part = module
    for name in ("transformer", "tokenizer"):
        part = getattr(part, name, None) or part
    channels = getattr(part, "token_channels", CT)
    tokens = torch.randn(batch, L, channels, generator=generator, dtype=torch.float64)
    return tokens.to(dtype).requires_grad_()


def needs_grid(name: str) -> bool:
    """Whether a case cannot take (B, N, C)."""
    return any(word in name for word in ("position", "codes", "clustering", "pooling", "module: v1"))


def run(module: torch.nn.Module, x: Tensor, tokens: Tensor, **options: Tensor) -> list[Tensor]:
    """All tensors that a module of any kind returns."""
    if isinstance(module, nn.TokenRelation):
        return [module(tokens)]
    if isinstance(module, VisualTransformerStack):
        results = module(x, **options)
    else:
        results = module(x, tokens, **options)
    return [results] if isinstance(results, Tensor) else [result for result in results if result is not None]


def outputs_and_gradients(
    module: torch.nn.Module, x: Tensor, tokens: Tensor, **options: Tensor
) -> dict[str, Tensor]:
    """What the module returns, and the gradients of a weighted sum of it for every input and parameter."""
    outputs = run(module, x, tokens, **options)
    generator = torch.Generator().manual_seed(4)
    total = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        # Weights by position in (B, D, H, W), whatever the memory format.
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total = total + (output * weights).sum()
    leaves = {"x": x, "tokens": tokens} | dict(module.named_parameters())
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    found = {f"d {name}": grad for name, grad in zip(leaves, gradients, strict=True) if grad is not None}
    return {f"output {index}": output for index, output in enumerate(outputs)} | found


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Equal names, and values within the tolerance: some 10^5 roundings of float64 by default."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
