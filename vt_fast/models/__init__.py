"""The paper's networks, those that they are compared with, and VT stages for networks of your own."""

from vt_fast.models.checkpoint import LoadReport, load_backbone
from vt_fast.models.convert import convert
from vt_fast.models.resnet import ResNet
from vt_fast.models.stage import VTStage, vt_stack
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
    "vt_resnet18",
    "vt_resnet34",
    "vt_resnet50",
    "vt_resnet101",
    "vt_stack",
]
