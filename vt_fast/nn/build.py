"""Parts of a Visual Transformer by name: the closed sets of names, and the modules that they stand for."""

from __future__ import annotations

from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.nn.clustering import ClusteringTokenizer
from vt_fast.nn.filters import FilterTokenizer, RecurrentTokenizer
from vt_fast.nn.options import (
    Factory,
    FeedForwardOptions,
    ModuleOptions,
    TokenizerOptions,
    Variant,
    factory_of,
)
from vt_fast.nn.pooling import PoolingTokenizer
from vt_fast.nn.position import ConvPositionCode, LinearPositionCode, PositionCode
from vt_fast.nn.relations import GraphConv, TokenFeedForward, TokenRelation
from vt_fast.nn.tokenizer import Tokenizer
from vt_fast.nn.transformer import VARIANTS, TokenTransformer
from vt_fast.nn.v1 import DynamicTokenizer, StaticTokenizer

TOKENIZERS = ("filter", "recurrent", "clustering", "pooling", "static", "dynamic")
# Both with their default sizes, the paper's: a grid of 14 x 14, 49 numbers per token, width 1.
POSITIONS: dict[str, type[ConvPositionCode] | type[LinearPositionCode]] = {
    "conv": ConvPositionCode,
    "linear": LinearPositionCode,
}
RELATIONS = ("transformer", "graph", "none")

# The others have no place for a code.
WITH_POSITION = ("filter", "recurrent", "static", "dynamic")
_LATER = {"filter": "recurrent", "clustering": "recurrent", "static": "dynamic"}


def default_later_tokenizer(tokenizer: str) -> str:
    """The tokenizer of the later blocks where the first block has `tokenizer`.

    Example:
        >>> [default_later_tokenizer(name) for name in ("filter", "static", "pooling")]
        ['recurrent', 'dynamic', 'pooling']
    """
    return _LATER.get(tokenizer, tokenizer)


def make_position(position: str | PositionCode | None, **factory: Unpack[Factory]) -> PositionCode | None:
    """The position code called `position`; a code of the caller's own, or None, stays what it is.

    Raises:
        TypeError: another type.
        ValueError: another name.

    Example:
        >>> make_position("linear")
        LinearPositionCode(grid=14, features=49)
    """
    if position is None or isinstance(position, PositionCode):
        return position
    if not isinstance(position, str):
        raise TypeError(f"`position` must be a str, a PositionCode or None, got {type(position).__name__}")
    checks.choice("position", position, POSITIONS)
    return POSITIONS[position](**factory)


def group_count(group_width: int, name: str, channels: int) -> int:
    """The number of groups of `group_width` channels; one where `channels`, called `name`, are not more.

    Raises:
        ValueError: `group_width` is less and does not divide them.

    Example:
        >>> group_count(64, "channels", 256), group_count(64, "channels", 48)
        (4, 1)
    """
    if group_width < channels and channels % group_width:
        raise ValueError(f"`group_width` must divide {name} = {channels} or not be less, got {group_width}")
    return max(channels // group_width, 1)


def make_tokenizer(
    name: str | None,
    channels: int,
    num_tokens: int,
    token_channels: int,
    num_heads: int,
    group_width: int | None,
    position: str | PositionCode | None,
    **common: Unpack[ModuleOptions],
) -> Tokenizer | None:
    """The tokenizer called `name`, see :class:`vt_fast.nn.VisualTransformer`.

    Raises:
        TypeError: `position` is of another type.
        ValueError: another name, or a position code for a tokenizer that takes none.
    """
    checks.choice("tokenizer", name, TOKENIZERS, optional=True)
    if group_width is not None:
        checks.count("group_width", group_width)
    if position is not None and name not in WITH_POSITION:
        raise ValueError(f"`position` must be None with tokenizer={name!r}, which has no place for a code")
    if name is None:
        return None
    position = make_position(position, **factory_of(common))
    groups = None
    if group_width is not None:
        # Pooling has a token 1x1, which has no groups, in place of the grouped convolutions.
        groups = 1 if name == "pooling" else group_count(group_width, "channels", channels)
    sizes = (channels, num_tokens, token_channels)
    if name == "static":
        return StaticTokenizer(*sizes, value_groups=groups or 1, position=position, **common)
    if name == "dynamic":
        groups = groups or 1
        numbers = {"num_heads": num_heads, "key_groups": groups, "value_groups": groups}
        return DynamicTokenizer(*sizes, **numbers, position=position, **common)
    # In the paper's counts a value 1x1 comes with a token 1x1, and pooling has the token 1x1 alone.
    options: TokenizerOptions = {
        **common,
        "value_groups": None if name == "pooling" else groups,
        "token_linear": None if groups is None else True,
    }
    if name == "pooling":
        return PoolingTokenizer(*sizes, **options)
    if name == "clustering":
        return ClusteringTokenizer(*sizes, **options)
    if name == "filter":
        return FilterTokenizer(*sizes, position=position, **options)
    return RecurrentTokenizer(*sizes, key_groups=groups, position=position, **options)


def make_transformer(
    relation: str,
    num_tokens: int,
    token_channels: int,
    num_heads: int,
    variant: Variant,
    **common: Unpack[FeedForwardOptions],
) -> TokenRelation:
    """The relation between tokens called `relation`, see :class:`vt_fast.nn.VisualTransformer`.

    Raises:
        ValueError: another name, or an option of the transformer with a relation that has no attention.
    """
    checks.choice("relation", relation, RELATIONS)
    checks.choice("variant", variant, VARIANTS)
    if relation == "transformer":
        # Under the names that the caller knows.
        numbers = {"num_token_heads": num_heads, "token_groups": common.get("groups", 1)}
        checks.counts(token_channels=token_channels, **numbers)
        for argument, number in numbers.items():
            checks.divides(argument, number, "token_channels", token_channels)
            checks.divides(argument, number, "token_channels // 2", max(token_channels // 2, 1))
        return TokenTransformer(token_channels, num_heads=num_heads, variant=variant, **common)
    if num_heads != 1 or common.get("groups", 1) != 1 or variant != "v2":
        raise ValueError(
            "`num_token_heads`, `token_groups` and `variant` must have their defaults with "
            f"relation={relation!r}, which has no attention"
        )
    if relation == "graph":
        return GraphConv(num_tokens, token_channels, **common)
    return TokenFeedForward(token_channels, **common)
