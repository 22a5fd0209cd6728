"""Bad arguments: the message names the argument, what it must be and what it was."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch

from tests._support.nn_cases import CT, C, L, build, stack
from vt_fast import nn

x4, x3, tokens = torch.randn(2, C, 5, 6), torch.randn(2, 30, C), torch.randn(2, L, CT)

MAP = "`x` must be (B, N, C) or (B, C, H, W) with C = "
TOKENS = "`tokens` must be (B, L, CT) with "
GRID = "`grid` must be (h, w) with h * w = num_tokens = 8, got "

CONSTRUCTION = [
    (lambda: nn.GroupedLinear(8, 6, 4), "`groups` must divide out_features = 6, got 4"),
    (lambda: nn.GroupedLinear(6, 8, 4), "`groups` must divide in_features = 6, got 4"),
    (lambda: nn.FilterTokenizer(C, scale=float("nan")), "`scale` must be finite, got nan"),
    (lambda: nn.RecurrentTokenizer(C, scale=float("inf")), "`scale` must be finite, got inf"),
    (lambda: nn.ClusteringTokenizer(C, scale=float("nan")), "`scale` must be finite, got nan"),
    (lambda: nn.TokenTransformer(C, scale=float("-inf")), "`scale` must be finite, got -inf"),
    (lambda: nn.Projector(C, scale=float("nan")), "`scale` must be finite, got nan"),
    (
        lambda: nn.Projector(C, scale=10**400),
        "`scale` must be in the range of a float, got an int of 1329 bits",
    ),
    (lambda: nn.GroupedLinear(8, 8, 0), "`groups` must be at least 1, got 0"),
    (lambda: nn.GroupedLinear(0, 8), "`in_features` must be at least 1, got 0"),
    (
        lambda: nn.GroupedLinear(8, 8).fold(torch.randn(2, 8), 3),
        "`num_heads` must divide out_features = 8, got 3",
    ),
    (
        lambda: nn.GroupedLinear(8, 8, 2).fold(torch.randn(2, 8), 4, 4),
        "`blocks` must divide groups = 2, got 4",
    ),
    (lambda: nn.FilterTokenizer(0), "`channels` must be at least 1, got 0"),
    (lambda: nn.FilterTokenizer(C, 0), "`num_tokens` must be at least 1, got 0"),
    (lambda: nn.FilterTokenizer(C, L, -1), "`token_channels` must be at least 1, got -1"),
    (lambda: nn.FilterTokenizer(C, value_groups=5), "`groups` must divide in_features = 24, got 5"),
    (
        lambda: nn.FilterTokenizer(C, L, CT, token_linear=False),
        "`token_channels` must be 24, the channels pooled, where `token_linear` is False, got 20",
    ),
    (
        lambda: nn.FilterTokenizer(C, L, token_linear=False, position=nn.LinearPositionCode(4, 3)),
        "`token_channels` must be 27, the channels pooled, where `token_linear` is False, got 24",
    ),
    (lambda: nn.DynamicTokenizer(C, 5, num_heads=4), "`num_tokens` must be even, got 5"),
    (lambda: nn.DynamicTokenizer(C, 4), "`num_heads` must divide channels = 24, got 16"),
    (lambda: nn.ClusteringTokenizer(C, iterations=0), "`iterations` must be at least 1, got 0"),
    (lambda: nn.PoolingTokenizer(C, 8, grid=(3, 3)), GRID + "(3, 3)"),
    (lambda: nn.PoolingTokenizer(C, 8, grid=(-2, -4)), GRID + "(-2, -4)"),
    (lambda: nn.LinearPositionCode(0), "`grid` must be at least 1, got 0"),
    (lambda: nn.ConvPositionCode(4, 0), "`features` must be at least 1, got 0"),
    (lambda: nn.ConvPositionCode(4, convolutions=0), "`convolutions` must be at least 1, got 0"),
    (lambda: nn.TokenTransformer(CT, num_heads=3), "`num_heads` must divide width = 10, got 3"),
    (
        lambda: nn.TokenTransformer(CT, width=9, num_heads=3),
        "`num_heads` must divide token_channels = 20, got 3",
    ),
    (lambda: nn.TokenTransformer(CT, groups=3), "`groups` must divide in_features = 20, got 3"),
    (
        lambda: nn.TokenTransformer(CT, variant="v3"),
        '`variant` must be one of "v2", "v1", "scaled", got \'v3\'',
    ),
    (
        lambda: nn.TokenTransformer(CT, variant="scaled", hidden=8),
        '`value` must be True and `hidden` None in variant "scaled", which has V and no feed-forward layer',
    ),
    (
        lambda: nn.TokenTransformer(CT, variant="v1", value=False),
        '`value` must be True and `hidden` None in variant "v1", which has V and one linear layer',
    ),
    (lambda: nn.GraphConv(0, CT), "`num_tokens` must be at least 1, got 0"),
    (lambda: nn.TokenFeedForward(0), "`token_channels` must be at least 1, got 0"),
    (lambda: nn.Projector(C, CT, num_heads=5), "`num_heads` must divide width = 24, got 5"),
    (
        lambda: nn.Projector(C, CT, 25, width=24, num_heads=4),
        "`num_heads` must divide out_channels = 25, got 4",
    ),
    (lambda: nn.Projector(C, CT, query_groups=5), "`groups` must divide in_features = 24, got 5"),
    (
        lambda: nn.Projector(C, CT, query_groups=None, width=8),
        "`width` must be channels = 24 without a query projection, got 8",
    ),
    (
        lambda: nn.Projector(C, CT, key=False, width=8),
        "`width` must be token_channels = 20 without keys, got 8",
    ),
    (
        lambda: nn.Projector(C, CT, value=False),
        "`out_channels` must be token_channels = 20 without values, got 24",
    ),
    (lambda: build(C, group_width=0), "`group_width` must be at least 1, got 0"),
    (
        lambda: build(C, tokenizer=None, projector=False, group_width=0),
        "`group_width` must be at least 1, got 0",
    ),
    (
        lambda: build(48, group_width=20, projector=False),
        "`group_width` must divide channels = 48 or not be less, got 20",
    ),
    (
        lambda: build(C, tokenizer="pooling", out_channels=48, group_width=20),
        "`group_width` must divide out_channels = 48 or not be less, got 20",
    ),
    (lambda: stack(C, 2, position="sine"), '`position` must be one of "conv", "linear", got \'sine\''),
    (
        lambda: build(C, relation="gossip"),
        '`relation` must be one of "transformer", "graph", "none", got \'gossip\'',
    ),
    (
        lambda: build(C, tokenizer="words"),
        '`tokenizer` must be one of "filter", "recurrent", "clustering", "pooling", "static", "dynamic" '
        "or None, got 'words'",
    ),
    (lambda: build(CT, num_token_heads=3), "`num_token_heads` must divide token_channels = 20, got 3"),
    (lambda: build(CT, num_token_heads=4), "`num_token_heads` must divide token_channels // 2 = 10, got 4"),
    (lambda: stack(CT, 2, token_groups=3), "`token_groups` must divide token_channels = 20, got 3"),
    (lambda: build(CT, token_groups=0), "`token_groups` must be at least 1, got 0"),
    (
        lambda: build(C, relation="graph", num_token_heads=2),
        "`num_token_heads`, `token_groups` and `variant` must have their defaults with relation='graph', "
        "which has no attention",
    ),
    (
        lambda: build(C, tokenizer="pooling", position=nn.LinearPositionCode(4, 3)),
        "`position` must be None with tokenizer='pooling', which has no place for a code",
    ),
    (
        lambda: nn.VisualTransformer.from_parts(
            nn.FilterTokenizer(C), nn.TokenTransformer(C), nn.Projector(32, C)
        ),
        "`projector` must have channels = 24, the tokenizer's, got 32",
    ),
    (
        lambda: nn.VisualTransformer.from_parts(nn.FilterTokenizer(C), nn.TokenTransformer(CT)),
        "`transformer` must have token_channels = 24, as the parts before it, got 20",
    ),
    (
        lambda: nn.VisualTransformer.from_parts(None, nn.TokenTransformer(CT), nn.Projector(C, C)),
        "`projector` must have token_channels = 20, as the parts before it, got 24",
    ),
]

FORWARD = [
    (lambda: nn.GroupedLinear(12, 8, 2)(x3), "`x` must be (..., in) with in = 12, got (2, 30, 24)"),
    (lambda: nn.GroupedLinear(12, 8)(x3[0, 0, 0]), "`x` must be (..., in) with in = 12, got ()"),
    (lambda: nn.FilterTokenizer(C)(x4[0]), MAP + "24, got (24, 5, 6)"),
    (lambda: nn.FilterTokenizer(32)(x4), MAP + "32, got (2, 24, 5, 6)"),
    (lambda: nn.Projector(32, CT)(x3, tokens), MAP + "32, got (2, 30, 24)"),
    (lambda: nn.PoolingTokenizer(32)(x4), MAP + "32, got (2, 24, 5, 6)"),
    (lambda: nn.RecurrentTokenizer(C, L, CT)(x4), TOKENS + "B = 2, L = 4, CT = 20, got None"),
    (lambda: nn.DynamicTokenizer(C, L, CT, num_heads=2)(x4), TOKENS + "B = 2, L = 4, CT = 20, got None"),
    (
        lambda: nn.RecurrentTokenizer(C, 5, CT)(x4, tokens),
        TOKENS + "B = 2, L = 5, CT = 20, got (2, 4, 20)",
    ),
    (lambda: nn.Projector(C, 8)(x4, tokens), TOKENS + "B = 2, CT = 8, got (2, 4, 20)"),
    (lambda: nn.TokenTransformer(8)(tokens), TOKENS + "CT = 8, got (2, 4, 20)"),
    (lambda: nn.TokenTransformer(CT)(tokens[0]), TOKENS + "CT = 20, got (4, 20)"),
    (lambda: nn.GraphConv(3, CT)(tokens), TOKENS + "L = 3, CT = 20, got (2, 4, 20)"),
    (
        lambda: build(C, tokenizer=None)(x4),
        "`tokens` must be (B, L, CT) where there is no tokenizer, got None",
    ),
    (lambda: stack(C, 2, tokenizer="recurrent")(x4), TOKENS + "B = 2, L = 16, CT = 24, got None"),
]

# One sample too many, and one too few, which would broadcast.
for others in (torch.randn(3, L, CT), tokens[:1]):
    wrong = f"got ({len(others)}, 4, 20)"
    for backend in (None, "reference"):
        recurrent = nn.RecurrentTokenizer(C, L, CT, backend=backend)
        dynamic = nn.DynamicTokenizer(C, L, CT, num_heads=2, backend=backend)
        projector = nn.Projector(C, CT, backend=backend)
        for module in (recurrent, dynamic):
            message = TOKENS + "B = 2, L = 4, CT = 20, " + wrong
            FORWARD += [
                (partial(module, x4, others), message),
                (partial(module.attention_maps, x3, others), message),
            ]
        message = TOKENS + "B = 2, CT = 20, " + wrong
        FORWARD += [
            (partial(projector, x3, others), message),
            (partial(projector.attention_maps, x4, others), message),
            (partial(projector.project_tokenize, x4, others, recurrent), message),
            (partial(build(C, tokenizer=None, token_channels=CT, backend=backend), x4, others), message),
        ]

EMPTY = "`x` must have no size of 0 except B (leave an empty shard out), got "
FORWARD += [
    (lambda: nn.FilterTokenizer(C)(x4[:, :, :0]), EMPTY + "(2, 24, 0, 6)"),
    (lambda: nn.FilterTokenizer(C, backend="reference")(x3[:, :0]), EMPTY + "(2, 0, 24)"),
    (lambda: nn.PoolingTokenizer(C)(x4[..., :0]), EMPTY + "(2, 24, 5, 0)"),
    (lambda: nn.Projector(C, CT)(x4[:, :, :0], tokens), EMPTY + "(2, 24, 0, 6)"),
]

NO_SIZE = "`x` must be (B, C, H, W) where a position or a grid matters, got (2, 30, 24)"
FORWARD += [
    (make, NO_SIZE)
    for make in (
        lambda: nn.PoolingTokenizer(C)(x3),
        lambda: nn.PoolingTokenizer(C).attention_maps(x3),
        lambda: nn.ClusteringTokenizer(C)(x3),
        lambda: nn.ClusteringTokenizer(C, backend="reference")(x3),
        lambda: nn.FilterTokenizer(C, position=nn.LinearPositionCode(4, 3))(x3),
        lambda: nn.StaticTokenizer(C, position=nn.ConvPositionCode(4, 3), backend="reference")(x3),
    )
]


@pytest.mark.parametrize(("call", "message"), CONSTRUCTION + FORWARD)
def test_values(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


FLOATING = "`x` must be float16, bfloat16, float32 or float64, got "
OF_X = "`tokens` must have the dtype of `x` (torch.float32), got "
OF_PARAMETERS = "`x` must have the dtype of the module's parameters "


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.FilterTokenizer(C)(x4.long()), FLOATING + "torch.int64"),
        (lambda: nn.ClusteringTokenizer(C)(x4.bool()), FLOATING + "torch.bool"),
        (lambda: nn.PoolingTokenizer(C)(x4.to(torch.complex64)), FLOATING + "torch.complex64"),
        (lambda: nn.Projector(C, CT)(x3.int(), tokens), FLOATING + "torch.int32"),
        (lambda: nn.FilterTokenizer(C)(x4.double()), OF_PARAMETERS + "(torch.float32), got torch.float64"),
        (lambda: nn.FilterTokenizer(C).half()(x3), OF_PARAMETERS + "(torch.float16), got torch.float32"),
        (
            lambda: nn.RecurrentTokenizer(C, L, CT, backend="reference")(x4.bfloat16(), tokens),
            OF_PARAMETERS + "(torch.float32), got torch.bfloat16",
        ),
        (
            lambda: nn.PoolingTokenizer(C, L, CT).double()(x4),
            OF_PARAMETERS + "(torch.float64), got torch.float32",
        ),
        (
            lambda: nn.Projector(C, CT)(x4.double(), tokens),
            OF_PARAMETERS + "(torch.float32), got torch.float64",
        ),
        (lambda: stack(C, 2)([1.0]), "`x` must be a torch.Tensor, got list"),
        (lambda: nn.FilterTokenizer(C)([1.0]), "`x` must be a torch.Tensor, got list"),
        (lambda: nn.Projector(C, CT)(x4, "tokens"), "`tokens` must be a torch.Tensor, got str"),
        (lambda: nn.Projector(C, CT)(x4, tokens.double()), OF_X + "torch.float64"),
        (lambda: nn.RecurrentTokenizer(C, L, CT)(x3, tokens.half()), OF_X + "torch.float16"),
        (
            lambda: nn.DynamicTokenizer(C, L, CT, num_heads=2, backend="reference")(x3, tokens.double()),
            OF_X + "torch.float64",
        ),
        (lambda: nn.GroupedLinear(C, CT)(None), "`x` must be a torch.Tensor, got NoneType"),
        (lambda: nn.TokenFeedForward(CT)(3), "`tokens` must be a torch.Tensor, got int"),
        (lambda: nn.FilterTokenizer(C, scale="a"), "`scale` must be a float, got str"),
        (lambda: nn.RecurrentTokenizer(C, scale=torch.ones(1)), "`scale` must be a float, got Tensor"),
        (lambda: nn.ClusteringTokenizer(C, scale=None), "`scale` must be a float, got NoneType"),
        (lambda: nn.Projector(C, scale="a"), "`scale` must be a float, got str"),
        (lambda: nn.TokenTransformer(C, scale=True), "`scale` must be a float, got bool"),
        (lambda: nn.GroupedLinear(C, C, gain="a"), "`gain` must be a float, got str"),
        (lambda: nn.GroupedLinear(C, C, bias=1), "`bias` must be a bool, got int"),
        (lambda: nn.FilterTokenizer(C, bias=None), "`bias` must be a bool, got NoneType"),
        (lambda: nn.FilterTokenizer(C, token_linear="x"), "`token_linear` must be None or a bool, got str"),
        (lambda: nn.Projector(C, key=0), "`key` must be a bool, got int"),
        (lambda: nn.Projector(C, value="no"), "`value` must be a bool, got str"),
        (lambda: nn.TokenTransformer(C, value=None), "`value` must be a bool, got NoneType"),
        (lambda: build(C, projector="no"), "`projector` must be a bool, got str"),
        (lambda: build(C, bias=None), "`bias` must be a bool, got NoneType"),
        (lambda: stack(C, 2, last_projector=1), "`last_projector` must be a bool, got int"),
        (lambda: nn.FilterTokenizer(C, position=3), "`position` must be None or a PositionCode, got int"),
        (
            lambda: build(C, position=3),
            "`position` must be a str, a PositionCode or None, got int",
        ),
        (
            lambda: nn.StaticTokenizer(C, position=torch.nn.Linear(2, 2)),
            "`position` must be None or a PositionCode, got Linear",
        ),
        (
            lambda: nn.VisualTransformer.from_parts(torch.nn.Linear(C, C), torch.nn.Identity()),
            "`tokenizer` must be None or a Tokenizer, got Linear",
        ),
        (
            lambda: nn.VisualTransformer.from_parts(nn.FilterTokenizer(C), None),
            "`transformer` must be an nn.Module, got NoneType",
        ),
        (
            lambda: nn.VisualTransformer.from_parts(None, torch.nn.Identity(), nn.FilterTokenizer(C)),
            "`projector` must be None or a Projector, got FilterTokenizer",
        ),
        (lambda: nn.FilterTokenizer(C, backend=1), "`backend` must be None or a string, got int"),
        (lambda: nn.set_backend(build(C), 1), "`backend` must be None or a string, got int"),
    ],
)
def test_types(call, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call()


def test_what_has_no_parameters_takes_any_floating_map():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for tokenizer in (nn.PoolingTokenizer(C, L), nn.ClusteringTokenizer(C, L)):
            assert tokenizer(x4.to(dtype)).dtype == dtype


def test_unused_tokens_are_not_looked_at():
    for tokenizer in (nn.FilterTokenizer(C, L), nn.PoolingTokenizer(C, L)):
        assert torch.equal(tokenizer(x4, torch.randn(3, 5, 7)), tokenizer(x4))


def test_autocast_takes_maps_and_tokens_of_other_dtypes():
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.Projector(C, CT)(x4.bfloat16(), tokens).dtype == torch.bfloat16
        assert nn.RecurrentTokenizer(C, L, CT)(x4, tokens.bfloat16()).dtype == torch.bfloat16
        assert nn.FilterTokenizer(C, L)(x4.bfloat16()).dtype == torch.bfloat16


def test_unknown_backends():
    for call in (
        lambda: nn.FilterTokenizer(C, backend="fast"),
        lambda: nn.set_backend(torch.nn.Linear(2, 2), "fast"),
        lambda: stack(C, 2, backend="fast"),
        lambda: setattr(build(C), "backend", "mixed"),
    ):
        with pytest.raises(
            ValueError, match=r'^`backend` must be None or one of "reference", .*"torch", got "'
        ):
            call()


def test_a_tokenizer_without_queries_says_so():
    for tokenizer in (nn.PoolingTokenizer(C), nn.ClusteringTokenizer(C)):
        with pytest.raises(NotImplementedError, match="Tokenizer has no queries that only depend on tokens"):
            tokenizer.queries()


def test_group_width_that_does_not_fit_both_widths():
    message = (
        "`group_width` must cut out_channels = 96 into a number of groups that divides channels = 64, "
        "got 32, hence 3 groups"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        nn.VisualTransformer(64, out_channels=96, group_width=32)


def test_a_group_width_that_is_not_less_makes_one_group():
    for group_width in (C, 64):
        block = build(C, group_width=group_width)
        assert block.tokenizer.value.groups == block.projector.query.groups == 1


@pytest.mark.parametrize("base", [lambda: nn.PositionCode(4, 3), lambda: nn.TokenRelation(8)])
def test_abstract_bases_cannot_be_made(base):
    with pytest.raises(TypeError, match="abstract"):
        base()
