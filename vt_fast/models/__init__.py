"""The paper's networks, and those that they are compared with."""

from vt_fast.models.fpn_neck import FPN
from vt_fast.models.metrics import MeanIoU, segmentation_loss
from vt_fast.models.panoptic_head import PanopticHead
from vt_fast.models.resnet import ResNet
from vt_fast.models.segmentation import FeaturePyramid, SegmentationNet, fpn, vt_fpn
from vt_fast.models.vt_fpn_neck import VTFPN

__all__ = [
    "FPN",
    "VTFPN",
    "FeaturePyramid",
    "MeanIoU",
    "PanopticHead",
    "ResNet",
    "SegmentationNet",
    "fpn",
    "segmentation_loss",
    "vt_fpn",
]
