"""Constructors: device and dtype, signatures, unknown keywords, and modules made of ready-made parts."""

from __future__ import annotations

import inspect

import pytest
import torch

from tests._support.nn_cases import CT, C, L, build, stack
from vt_fast import nn

ABSTRACT = {"PositionCode", "TokenRelation", "Tokenizer"}
# Positional arguments, and options that give each class all of its parameters and buffers.
ARGUMENTS = {
    "ClusteringTokenizer": ((C, L, CT), {"value_groups": 2}),
    "ConvPositionCode": ((6, 5), {"convolutions": 2}),
    "DynamicTokenizer": ((C, L, CT), {"num_heads": 4}),
    "FilterTokenizer": ((C, L, CT), {"value_groups": 2}),
    "GraphConv": ((L, CT), {"token_norm": "batch"}),
    "GroupedLinear": ((C, CT), {}),
    "LinearPositionCode": ((5, 6), {}),
    "PoolingTokenizer": ((C, L, CT), {"value_groups": 2}),
    "Projector": ((C, CT, 36), {}),
    "RecurrentTokenizer": ((C, L, CT), {"key_groups": 2, "value_groups": 2}),
    "StaticTokenizer": ((C, L, CT), {}),
    "TokenFeedForward": ((CT,), {"token_norm": "layer"}),
    "TokenTransformer": ((CT,), {"token_norm": "batch"}),
    "VisualTransformer": ((C, L), {"token_channels": CT, "token_norm": "batch", "group_width": 6}),
    "VisualTransformerStack": ((C, 2), {"token_channels": CT, "token_norm": "batch", "group_width": 6}),
}


def tensors(module):
    """Parameters and buffers by name; counters, which are integers, aside."""
    return {key: value for key, value in module.state_dict().items() if value.is_floating_point()}


def make(name, **options):
    positional, usual = ARGUMENTS[name]
    return getattr(nn, name)(*positional, **usual, **options)


def test_every_class_is_here():
    assert set(ARGUMENTS) == {name for name in nn.__all__ if name[0].isupper()} - ABSTRACT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_dtype_reaches_every_tensor(name, dtype):
    made = tensors(make(name, dtype=dtype))
    assert {key: (dtype, value.shape) for key, value in tensors(make(name)).items()} == {
        key: (value.dtype, value.shape) for key, value in made.items()
    }


@pytest.mark.parametrize("name", ARGUMENTS)
def test_device_reaches_every_tensor_and_they_can_be_reset_after_to_empty(name):
    module = make(name, device="meta")
    assert all(value.is_meta for value in module.state_dict().values())
    module.to_empty(device="cpu")
    with torch.no_grad():
        for value in tensors(module).values():
            value.fill_(torch.nan)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert all(value.isfinite().all() for value in tensors(module).values())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_skip_init(name):
    positional, usual = ARGUMENTS[name]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    module = torch.nn.utils.skip_init(getattr(nn, name), *positional, **usual, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), before), "something was initialised"
    module.load_state_dict(make(name, dtype=torch.float64).state_dict())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_signature_lists_every_keyword_with_its_default(name):
    parameters = inspect.signature(getattr(nn, name)).parameters.values()
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters)
    usual = ARGUMENTS[name][1]
    keywords = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert {"device", "dtype"} <= keywords.keys()
    make(name, **{key: default for key, default in keywords.items() if key not in usual})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FilterTokenizer", "scale, position, value_groups, token_linear, bias"),
        ("DynamicTokenizer", "num_heads, query_groups, key_groups, value_groups, position, bias"),
        ("GraphConv", "groups, bias, token_norm"),
        (
            "VisualTransformerStack",
            "num_tokens, token_channels, out_channels, tokenizer, later_tokenizer, last_projector, position, "
            "relation, num_heads, num_token_heads, token_groups, group_width, token_norm, bias, variant, "
            "projector_value",
        ),
    ],
)
def test_keywords_of_the_shared_options_are_listed_last(name, options):
    parameters = inspect.signature(getattr(nn, name)).parameters.values()
    keywords = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    assert keywords == [*options.split(", "), "backend", "device", "dtype"]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_unknown_keywords_are_named(name):
    with pytest.raises(TypeError, match="'heads'"):
        make(name, heads=2)


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("ClusteringTokenizer", "position"),
        ("PoolingTokenizer", "position"),
        ("DynamicTokenizer", "token_linear"),
        ("StaticTokenizer", "token_linear"),
    ],
)
def test_keywords_of_other_tokenizers_are_refused(name, keyword):
    with pytest.raises(TypeError, match=f"'{keyword}'"):
        make(name, **{keyword: None})


@pytest.mark.parametrize(
    ("tokenizer", "later"),
    [
        ("filter", nn.RecurrentTokenizer),
        ("recurrent", nn.RecurrentTokenizer),
        ("clustering", nn.RecurrentTokenizer),
        ("pooling", nn.PoolingTokenizer),
        ("static", nn.DynamicTokenizer),
        ("dynamic", nn.DynamicTokenizer),
    ],
)
def test_the_later_tokenizer_follows_from_the_first(tokenizer, later):
    blocks = list(stack(32, 3, tokenizer=tokenizer, num_heads=4))
    assert [type(block.tokenizer) for block in blocks[1:]] == [later, later]
    asked_for = stack(32, 2, tokenizer=tokenizer, later_tokenizer="filter", num_heads=4)
    assert type(asked_for[1].tokenizer) is nn.FilterTokenizer


@pytest.mark.parametrize(("name", "kind"), [("conv", nn.ConvPositionCode), ("linear", nn.LinearPositionCode)])
def test_position_codes_by_name(name, kind):
    codes = [block.tokenizer.position for block in stack(C, 2, position=name, dtype=torch.float64)]
    assert type(codes[0]) is kind
    assert codes[0].weight.dtype == torch.float64
    assert codes[1] is None


def test_options_reach_every_block():
    module = stack(C, 2, token_channels=CT, relation="graph", token_norm=None, bias=False, backend="torch")
    for block in module:
        assert isinstance(block.transformer, nn.GraphConv)
        assert block.transformer.token_norm is None
        assert block.transformer.linear.bias is None
        assert block.backend == "torch"


def test_parts_are_taken_as_they_are():
    tokenizer, relation = nn.FilterTokenizer(C, L), torch.nn.Identity()
    block = nn.VisualTransformer.from_parts(tokenizer, relation, backend="torch")
    assert block.tokenizer is tokenizer
    assert block.transformer is relation
    assert block.projector is None
    assert tokenizer.backend == "torch"
    other = build(C, tokenizer="recurrent")
    module = nn.VisualTransformerStack.from_parts([block, other], backend="reference")
    assert list(module) == [block, other]
    assert module.backend == "reference"
    assert type(module) is nn.VisualTransformerStack
