"""VT-ResNets as models of `timm.create_model`.

timm is optional and slow to import, so this module does not import it: `import vt_fast.models` registers the
networks if timm was imported before. Otherwise call `register_with_timm()`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from vt_fast.models.backbone import NUM_BLOCKS
from vt_fast.models.vt_resnet import VTResNet, VTResNetFeatures

# timm reads these two names in the module of a registered function. Images are preprocessed as for its
# ResNets.
__all__ = ["register_with_timm"]
default_cfgs: dict[str, dict[str, Any]] = {
    f"vt_resnet{depth}": {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "backbone.conv1",
        "classifier": "fc",
    }
    for depth in NUM_BLOCKS
}


def register_with_timm() -> None:
    """Register "vt_resnet18", "vt_resnet34", "vt_resnet50" and "vt_resnet101" with `timm.create_model`.

    They take the options of :class:`VTResNet`, and timm's `features_only` and `out_indices`, which make a
    :class:`VTResNetFeatures`: index 0 is the map of stride 4. A second call changes nothing.

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
    """Register if timm has been imported completely; otherwise do nothing."""
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
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
    **options: Any,
) -> nn.Module:
    """A network from timm's arguments; those for pretrained parameters are not used."""
    if pretrained:
        raise ValueError("`pretrained` must be False: there are no pretrained VT-ResNets")
    if output_stride not in (None, 16):
        raise ValueError(f"`output_stride` must be 16, that of a VT stage, or None, got {output_stride}")
    options["in_channels"] = in_chans
    if features_only:
        return _with_feature_info(VTResNetFeatures(depth, out_indices=out_indices, **options))
    if out_indices is not None:
        raise ValueError(f"`out_indices` must be None without `features_only`, got {out_indices}")
    model = VTResNet(depth, num_classes, **options)
    # timm's data pipeline and training script read both names.
    described = {**default_cfgs[f"vt_resnet{depth}"], **(pretrained_cfg_overlay or {})}
    described |= {"num_classes": num_classes, "input_size": (in_chans, *described["input_size"][1:])}
    model.pretrained_cfg = model.default_cfg = described  # type: ignore[assignment]
    return model


def _with_feature_info(model: VTResNetFeatures) -> VTResNetFeatures:
    """Report channels and strides as timm does, by `feature_info.channels()` and `.reduction()`."""
    from timm.models import FeatureInfo

    entries = [
        {"num_chs": channels, "reduction": stride, "module": f"maps.{index}"}
        for index, channels, stride in zip(model.out_indices, model.channels, model.strides, strict=True)
    ]
    model.feature_info = FeatureInfo(entries, tuple(range(len(entries))))  # type: ignore[assignment]
    return model
