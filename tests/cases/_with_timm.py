import _with_torchvision  # noqa: F401

from vt_fast.models import register_with_timm

register_with_timm()
