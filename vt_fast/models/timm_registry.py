"""VT-ResNets as models of `timm.create_model`.

timm is optional and slow to import, so this module does not import it: `import vt_fast.models` registers the
networks if timm was imported before. Otherwise call `register_with_timm()`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

from vt_fast.models.backbone import NUM_BLOCKS, stage_shapes
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
# Where a description may say that parameters are.
_SOURCES = ("state_dict", "file", "url", "hf_hub_id")


def register_with_timm() -> None:
    """Register "vt_resnet18", "vt_resnet34", "vt_resnet50" and "vt_resnet101" with `timm.create_model`.

    They take the options of :class:`VTResNet`, and timm's `features_only` and `out_indices`, which make a
    :class:`VTResNetFeatures`: index 0 is the map of stride 4. The options of the classifier have no effect
    there. A second call changes nothing.

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
    pretrained_model_args: Any = None,
    cache_dir: Any = None,
    **options: Any,
) -> nn.Module:
    """A network from timm's arguments."""
    library: Any = import_module("timm.models")
    layers: Any = import_module("timm.layers")
    described = library.resolve_pretrained_cfg(
        f"vt_resnet{depth}", pretrained_cfg, pretrained_cfg_overlay
    ).to_dict()
    if pretrained and not any(described.get(key) for key in _SOURCES):
        raise ValueError(
            "`pretrained` must be False, or `pretrained_cfg_overlay` name a file of parameters: there are no "
            "pretrained VT-ResNets"
        )
    if layers.is_scriptable():
        raise ValueError(
            "`scriptable` must be False: VT blocks cannot be scripted; use torch.jit.trace or torch.export"
        )
    if output_stride not in (None, 16):
        raise ValueError(f"`output_stride` must be 16, that of a VT stage, or None, got {output_stride}")
    if out_indices is not None and not features_only:
        raise ValueError(f"`out_indices` must be None without `features_only`, got {out_indices}")
    options["in_channels"] = in_chans
    model: VTResNet | VTResNetFeatures
    if features_only:
        num_classes = 0
        for name in ("drop_rate", "global_pool"):  # of the classifier, which there is none
            options.pop(name, None)
        model = VTResNetFeatures(depth, out_indices=out_indices, **options)
    else:
        model = VTResNet(depth, num_classes, **options)
    if pretrained:
        before = _versions(model)
        library.load_pretrained(
            model, described, num_classes, in_chans, strict=not features_only, cache_dir=cache_dir
        )
        if _versions(model) == before:
            names = ", ".join(list(model.state_dict())[:3])
            raise ValueError(
                f"`pretrained_cfg_overlay` must name a file of a VT-ResNet's parameters, such as {names}: "
                "it has none"
            )
    described |= {"num_classes": num_classes, "input_size": (in_chans, *described["input_size"][1:])}
    # What timm's data pipeline, training script and wrappers read.
    model.pretrained_cfg = model.default_cfg = described  # type: ignore[assignment]
    model.in_chans = in_chans  # type: ignore[assignment]
    model.feature_info = _feature_info(model)  # type: ignore[assignment]
    return model


def _versions(model: nn.Module) -> list[int]:
    """How often each parameter and buffer has been written. BatchNorm's counters are, in any case."""
    return [value._version for name, value in model.state_dict().items() if "num_batches" not in name]


def _feature_info(model: VTResNet | VTResNetFeatures) -> Any:
    """Channels and strides of the maps, as timm reports them: an object for `features_only`, else a list."""
    from timm.models import FeatureInfo

    if isinstance(model, VTResNet):
        channels, strides = stage_shapes(model.backbone)
        names = [f"backbone.layer{index + 1}" for index in range(len(channels))]
    else:
        channels, strides = model.channels, model.strides
        names = [f"maps.{index}" for index in model.out_indices]
    entries = [
        {"num_chs": each, "reduction": stride, "module": name}
        for each, stride, name in zip(channels, strides, names, strict=True)
    ]
    return entries if isinstance(model, VTResNet) else FeatureInfo(entries, tuple(range(len(entries))))
