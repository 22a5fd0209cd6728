"""VT-ResNets under the names that `timm.create_model` knows.

timm is optional and slow to import, so nothing here imports it unasked: `import vt_fast.models` registers the
networks where timm was imported before, else `register_with_timm()` does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from vt_fast.models.trunk import MODULES
from vt_fast.models.vt_resnet import VTResNet, VTResNetFeatures

# timm looks for these two in the module of what it registers. Pictures come as its ResNets take them.
__all__ = ["register_with_timm"]
default_cfgs: dict[str, dict[str, Any]] = {
    f"vt_resnet{depth}": {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "trunk.conv1",
        "classifier": "fc",
    }
    for depth in MODULES
}


def register_with_timm() -> None:
    """Let `timm.create_model` make "vt_resnet18", "vt_resnet34", "vt_resnet50" and "vt_resnet101".

    They take the options of :class:`VTResNet`, and timm's `num_classes`, `drop_rate` (its `dropout`),
    `drop_path_rate` (its `drop_path`), `features_only` and `out_indices` (both of
    :class:`VTResNetFeatures`: index 0 is the map of stride 4). A second call changes nothing.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    try:
        import timm.models
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("`register_with_timm` needs timm: pip install timm") from error
    for entrypoint in (vt_resnet18, vt_resnet34, vt_resnet50, vt_resnet101):
        if not timm.models.is_model(entrypoint.__name__):
            timm.models.register_model(entrypoint)


def register_if_imported() -> None:
    """The same where timm was already imported, whole; else nothing."""
    if "timm" in sys.modules and hasattr(sys.modules.get("timm.models"), "register_model"):
        register_with_timm()


def vt_resnet18(pretrained: bool = False, **options: Any) -> nn.Module:
    """VT-ResNet-18 from timm's arguments; see :func:`register_with_timm`."""
    return _make(18, pretrained, **options)


def vt_resnet34(pretrained: bool = False, **options: Any) -> nn.Module:
    """VT-ResNet-34 from timm's arguments; see :func:`register_with_timm`."""
    return _make(34, pretrained, **options)


def vt_resnet50(pretrained: bool = False, **options: Any) -> nn.Module:
    """VT-ResNet-50 from timm's arguments; see :func:`register_with_timm`."""
    return _make(50, pretrained, **options)


def vt_resnet101(pretrained: bool = False, **options: Any) -> nn.Module:
    """VT-ResNet-101 from timm's arguments; see :func:`register_with_timm`."""
    return _make(101, pretrained, **options)


def _make(
    depth: int,
    pretrained: bool,
    *,
    num_classes: int = 1000,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
    **options: Any,
) -> nn.Module:
    """A network from the arguments that timm passes; the last three are about trained parameters alone."""
    if pretrained:
        raise ValueError("`pretrained` must be False: there are no trained parameters of VT-ResNets")
    if features_only:
        backbone = VTResNetFeatures(depth, out_indices=out_indices, drop_path=drop_path_rate, **options)
        return _with_feature_info(backbone)
    if out_indices is not None:
        raise ValueError(f"`out_indices` must be None without `features_only`, got {out_indices}")
    model = VTResNet(depth, num_classes, dropout=drop_rate, drop_path=drop_path_rate, **options)
    # What timm's data pipeline and training script read of a model, under both of its names.
    described = {**default_cfgs[f"vt_resnet{depth}"], "num_classes": num_classes}
    model.pretrained_cfg = model.default_cfg = described  # type: ignore[assignment]
    return model


def _with_feature_info(backbone: VTResNetFeatures) -> VTResNetFeatures:
    """Tell channels and strides as timm does, by `feature_info.channels()` and `.reduction()`."""
    from timm.models import FeatureInfo

    entries = [
        {"num_chs": channels, "reduction": stride, "module": f"maps.{index}"}
        for index, channels, stride in zip(
            backbone.out_indices, backbone.channels, backbone.strides, strict=True
        )
    ]
    backbone.feature_info = FeatureInfo(entries, tuple(range(len(entries))))  # type: ignore[assignment]
    return backbone
