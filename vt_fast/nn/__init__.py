"""Drop-in modules: tokenizers, token transformer, projector, the Visual Transformer and its stack.

They take feature maps (B, C, H, W) in any memory format, or pixels (B, N, C), and fold every linear map of
the paper from the pixels to the tokens, so that only the ops of :mod:`vt_fast.functional` read the map.
``backend="reference"`` runs the paper's equations as written, with the same parameters.
"""

from vt_fast.nn.base import set_backend
from vt_fast.nn.clustering import ClusteringTokenizer
from vt_fast.nn.filters import FilterTokenizer, RecurrentTokenizer
from vt_fast.nn.frozen import freeze, unfreeze
from vt_fast.nn.linear import GroupedLinear
from vt_fast.nn.pooling import PoolingTokenizer
from vt_fast.nn.position import ConvPositionCode, LinearPositionCode, PositionCode
from vt_fast.nn.projector import Projector
from vt_fast.nn.relations import GraphConv, TokenFeedForward, TokenRelation
from vt_fast.nn.stack import VisualTransformerStack
from vt_fast.nn.tokenizer import Tokenizer
from vt_fast.nn.transformer import TokenTransformer
from vt_fast.nn.v1 import DynamicTokenizer, StaticTokenizer
from vt_fast.nn.visual_transformer import VisualTransformer

__all__ = [
    "ClusteringTokenizer",
    "ConvPositionCode",
    "DynamicTokenizer",
    "FilterTokenizer",
    "GraphConv",
    "GroupedLinear",
    "LinearPositionCode",
    "PoolingTokenizer",
    "PositionCode",
    "Projector",
    "RecurrentTokenizer",
    "StaticTokenizer",
    "TokenFeedForward",
    "TokenRelation",
    "TokenTransformer",
    "Tokenizer",
    "VisualTransformer",
    "VisualTransformerStack",
    "freeze",
    "set_backend",
    "unfreeze",
]
