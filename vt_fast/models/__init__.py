"""The paper's networks, their baselines, and VT stages for your own networks.

If timm was imported before, importing this package registers the VT-ResNets with `timm.create_model`.
Otherwise call :func:`register_with_timm`.
"""

from vt_fast.models.attention import attention_resnet
from vt_fast.models.checkpoint import LoadReport, load_backbone
from vt_fast.models.convert import convert
from vt_fast.models.fpn_neck import FPN
from vt_fast.models.metrics import MeanIoU, segmentation_loss
from vt_fast.models.panoptic_head import PanopticHead
from vt_fast.models.resnet import ResNet
from vt_fast.models.segmentation import FeaturePyramid, SegmentationNet, fpn, vt_fpn
from vt_fast.models.stage import VTStage
from vt_fast.models.timm_registry import register_if_imported, register_with_timm
from vt_fast.models.vt_fpn_neck import VTFPN
from vt_fast.models.vt_resnet import (
    VTResNet,
    VTResNetFeatures,
    vt_resnet18,
    vt_resnet34,
    vt_resnet50,
    vt_resnet101,
)

__all__ = [
    "FPN",
    "VTFPN",
    "FeaturePyramid",
    "LoadReport",
    "MeanIoU",
    "PanopticHead",
    "ResNet",
    "SegmentationNet",
    "VTResNet",
    "VTResNetFeatures",
    "VTStage",
    "attention_resnet",
    "convert",
    "fpn",
    "load_backbone",
    "register_with_timm",
    "segmentation_loss",
    "vt_fpn",
    "vt_resnet18",
    "vt_resnet34",
    "vt_resnet50",
    "vt_resnet101",
]

register_if_imported()
