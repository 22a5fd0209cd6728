"""The paper's networks, those that they are compared with, and VT stages for networks of your own.

Where timm was imported before, `timm.create_model` knows the VT-ResNets as soon as this is imported; else
:func:`register_with_timm` tells it.
"""

from vt_fast.models.checkpoint import LoadReport, load_backbone
from vt_fast.models.convert import convert
from vt_fast.models.resnet import ResNet
from vt_fast.models.stage import VTStage, vt_stack
from vt_fast.models.timm_registry import register_if_imported, register_with_timm
from vt_fast.models.vt_resnet import (
    VTResNet,
    VTResNetFeatures,
    vt_resnet18,
    vt_resnet34,
    vt_resnet50,
    vt_resnet101,
)

__all__ = [
    "LoadReport",
    "ResNet",
    "VTResNet",
    "VTResNetFeatures",
    "VTStage",
    "convert",
    "load_backbone",
    "register_with_timm",
    "vt_resnet18",
    "vt_resnet34",
    "vt_resnet50",
    "vt_resnet101",
    "vt_stack",
]

register_if_imported()
