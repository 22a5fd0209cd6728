"""Names and numbers to modules, for the `build` constructors."""

from __future__ import annotations

from vt_fast.nn.clustering import ClusteringTokenizer
from vt_fast.nn.filters import FilterTokenizer, RecurrentTokenizer
from vt_fast.nn.pooling import PoolingTokenizer
from vt_fast.nn.position import PositionCode
from vt_fast.nn.relations import GraphConv, TokenFeedForward, TokenRelation
from vt_fast.nn.tokenizer import Tokenizer
from vt_fast.nn.transformer import TokenTransformer
from vt_fast.nn.v1 import DynamicTokenizer, StaticTokenizer

TOKENIZERS = ("filter", "recurrent", "clustering", "pooling", "static", "dynamic")
RELATIONS = ("attention", "graph", "none")


def make_tokenizer(
    name: str | None,
    channels: int,
    num_tokens: int,
    token_channels: int,
    num_heads: int,
    group_width: int | None,
    position: PositionCode | None,
    bias: bool,
) -> Tokenizer | None:
    """The tokenizer called `name`, see `VisualTransformer.build`."""
    groups = None if group_width is None else max(channels // group_width, 1)
    if position is not None and name not in ("filter", "recurrent", "static"):
        raise ValueError(
            f"`position` must be None with the tokenizer {name!r}, which has no place for a code"
        )
    if name is None:
        return None
    sizes = (channels, num_tokens, token_channels)
    # The paper's counts have a token 1x1 wherever there is a value 1x1.
    token_linear = True if groups is not None else None
    if name == "filter":
        return FilterTokenizer(
            *sizes, value_groups=groups, token_linear=token_linear, position=position, bias=bias
        )
    if name == "recurrent":
        return RecurrentTokenizer(
            *sizes,
            key_groups=groups,
            value_groups=groups,
            token_linear=token_linear,
            position=position,
            bias=bias,
        )
    if name == "static":
        return StaticTokenizer(*sizes, value_groups=groups or 1, position=position, bias=bias)
    if name == "dynamic":
        return DynamicTokenizer(
            *sizes, num_heads=num_heads, key_groups=groups or 1, value_groups=groups or 1, bias=bias
        )
    if name == "clustering":
        return ClusteringTokenizer(*sizes, value_groups=groups, token_linear=token_linear, bias=bias)
    if name == "pooling":
        # Its counts have no value 1x1.
        return PoolingTokenizer(*sizes, token_linear=token_linear, bias=bias)
    raise ValueError(f"`tokenizer` must be one of {', '.join(TOKENIZERS)} or None, got {name!r}")


def make_transformer(
    relation: str,
    num_tokens: int,
    token_channels: int,
    num_heads: int,
    groups: int,
    norm: bool | str,
    version: int,
    bias: bool,
) -> TokenRelation:
    """The relation between tokens called `relation`, see `VisualTransformer.build`."""
    if relation == "attention":
        return TokenTransformer(
            token_channels, num_heads=num_heads, groups=groups, norm=norm, version=version, bias=bias
        )
    if relation not in RELATIONS:
        raise ValueError(f"`relation` must be one of {', '.join(RELATIONS)}, got {relation!r}")
    if num_heads != 1 or groups != 1 or version != 2:
        raise ValueError(
            "`num_token_heads`, `token_groups` and `version` must have their defaults with "
            f"relation={relation!r}, which has no attention"
        )
    if relation == "graph":
        return GraphConv(num_tokens, token_channels, norm=norm, bias=bias)
    return TokenFeedForward(token_channels, norm=norm, bias=bias)
