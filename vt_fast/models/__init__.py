"""The paper's networks, and those that they are compared with."""

from vt_fast.models.resnet import ResNet

__all__ = ["ResNet"]
