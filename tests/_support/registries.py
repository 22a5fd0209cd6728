"""The networks in the registries of torchvision and timm, and what they are good for here."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# What `convert` says of a network that it refuses, by the reason.
REASONS = {
    "no module of that name": "`stage` must be the name of a submodule",
    "takes no map": "must take a map",
    "returns no map": "must return a map",
    "is not called as a module": "`stage` must be a module that the network calls",
    "is not reached by its name": "`stage` must be reached through submodules alone",
    "later layers need its size": "`stage` must be followed by layers that take a map",
}
# More are not filled with numbers.
MOST_PARAMETERS = 2e8
_CONTAINERS = ("stages", "features", "blocks", "layers", "trunk_output", "encoder.layers")


def names(library: str) -> list[str]:
    """All names of a registry: for torchvision its classifiers, segmentation networks and detectors."""
    if library == "timm":
        import timm

        return [name for name in timm.list_models() if not name.startswith("vt_resnet")]
    import torchvision

    # Videos and optical flow take other images.
    others = torchvision.models.list_models(module=torchvision.models.video)
    others += torchvision.models.list_models(module=torchvision.models.optical_flow)
    return [name for name in torchvision.models.list_models() if name not in others]


def build(library: str, name: str, device: str = "cpu", **options: Any) -> nn.Module:
    """A network with random parameters, in training mode."""
    with torch.device(device):
        if library == "timm":
            import timm

            return timm.create_model(name, **options)
        import torchvision

        if name in torchvision.models.list_models(
            module=torchvision.models.detection
        ) + torchvision.models.list_models(module=torchvision.models.segmentation):
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": False}
        return torchvision.models.get_model(name, weights=None, **options)


def randomised(model: nn.Module) -> nn.Module:
    """The network in float64 with no norm that is its shortcut, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dim() < 2:
            low, high = (0.5, 1.5) if name.endswith(("var", "weight")) else (-0.1, 0.1)
            value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return model.double().eval()


def size(model: nn.Module) -> tuple[int, int, int]:
    """Of an image that the network takes."""
    described = getattr(model, "pretrained_cfg", None) or {}
    return tuple(described.get("input_size", (3, 224, 224)))


def last_stages(model: nn.Module) -> Iterator[str]:
    """Names of modules that may be the last stage, the likeliest first."""
    info = getattr(model, "feature_info", None)
    found = ["layer4"] if hasattr(model, "layer4") else []
    if isinstance(info, list) and info:
        found.append(info[-1]["module"])
    for name in _CONTAINERS:
        container = functools.reduce(lambda part, each: getattr(part, each, None), name.split("."), model)
        if isinstance(container, nn.Module):
            found += [f"{name}.{child}" for child in list(container._modules)[:-4:-1]]
    found += [
        name for name, child in reversed(list(model.named_children())) if not isinstance(child, nn.Linear)
    ]
    known = {name for name, _ in model.named_modules()}
    yield from (name for name in dict.fromkeys(found) if name in known)


def reason(error: ValueError) -> str:
    """The key of `REASONS` for a refusal of `convert`; a message that is not listed is an error."""
    return next(key for key, text in REASONS.items() if text in str(error))


def first(found: Any) -> Tensor:
    """The first tensor of what a network returns."""
    while not isinstance(found, Tensor):
        found = next(iter(found.values() if isinstance(found, dict) else found))
    return found
