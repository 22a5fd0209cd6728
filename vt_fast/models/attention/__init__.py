"""The networks that the paper's table 8 compares with, and their layers.

``NETWORKS`` has the networks by name::

    net = vt_fast.models.attention.NETWORKS["a2_resnet50"](num_classes=10)
"""

from vt_fast.models.attention.augmented import AugmentedConv2d
from vt_fast.models.attention.double_attention import DoubleAttention
from vt_fast.models.attention.gates import cbam, squeeze_excitation
from vt_fast.models.attention.global_reasoning import GlobalReasoning
from vt_fast.models.attention.local import AttentionStem, LocalRelation, StandAloneAttention
from vt_fast.models.attention.resnet import NETWORKS, attention_resnet
from vt_fast.models.attention.san import SAN, PairwiseAttention, PatchwiseAttention

__all__ = [
    "NETWORKS",
    "SAN",
    "AttentionStem",
    "AugmentedConv2d",
    "DoubleAttention",
    "GlobalReasoning",
    "LocalRelation",
    "PairwiseAttention",
    "PatchwiseAttention",
    "StandAloneAttention",
    "attention_resnet",
    "cbam",
    "squeeze_excitation",
]
