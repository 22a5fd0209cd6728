"""A small network for each ablation, and comparisons of two ways to run one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vt_fast import models

# Odd and unequal sides of the map: 7 x 9.
IMAGE = (2, 3, 28, 36)
CHANNELS = 32
SMALL = {"num_tokens": 4, "token_channels": 64, "group_width": 16}

ABLATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "filter": {"later_tokenizer": "filter"},
    "clustering": {"tokenizer": "clustering"},
    "pooling": {"tokenizer": "pooling"},
    "v1": {"variant": "v1"},
    "scaled": {"variant": "scaled"},
    "static": {"tokenizer": "static", "position": "conv"},
    "static without projector": {"tokenizer": "static", "position": "conv", "projector": False},
    "linear position": {"position": "linear"},
    "graph": {"relation": "graph"},
    "none": {"relation": "none"},
    "without projector": {"projector": False},
    "num_heads": {"num_heads": 4, "num_token_heads": 2},
    "layer norm": {"token_norm": "layer"},
    "as counted": {"token_norm": None, "bias": False},
    "as printed": {"group_width": None, "token_groups": 1},
    "another width": {"width": 48, "num_tokens": 6, "num_blocks": 2, "group_width": None},
}


def small_backbone() -> nn.Module:
    """Images to a map of 32 channels at a quarter of the size."""
    convolution = nn.Conv2d(3, CHANNELS, 5, stride=4, padding=2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(CHANNELS), nn.ReLU())


def classifier(**options: Any) -> models.VTResNet:
    return models.VTResNet(backbone=small_backbone(), num_classes=5, **{**SMALL, **options})


def features(**options: Any) -> models.VTResNetFeatures:
    return models.VTResNetFeatures(backbone=small_backbone(), **{**SMALL, **options})


def residual_net(**options: Any) -> models.ResNet:
    """A whole ResNet-18 whose last stage was replaced."""
    return models.convert(models.ResNet(18, num_classes=5), **{**SMALL, **options})


CASES: dict[str, Callable[[], nn.Module]] = (
    {
        f"classifier: {name}": lambda options=options: classifier(**options)
        for name, options in ABLATIONS.items()
    }
    | {
        f"features: {name}": lambda options=options: features(**options)
        for name, options in ABLATIONS.items()
        if options.get("projector", True)
    }
    | {"converted": residual_net}
)


def made(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network with no parameter at zero, so that every branch has an effect."""
    model = make().to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(noise / fan_in**0.5)
    return model


def images(dtype: torch.dtype = torch.float64, *, last: bool = False) -> Tensor:
    """A batch of images, in channels_last where `last`."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(IMAGE, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    found = model(x)
    return [found] if isinstance(found, Tensor) else list(found)


def outputs_and_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The outputs, and the gradients of a weighted sum of them for the images and all parameters."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    found = outputs(model, x)
    generator = torch.Generator().manual_seed(3)
    total = sum(
        (each * torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each)).sum()
        for each in found
    )
    leaves = {"x": x} | {name.replace("_orig_mod.", ""): value for name, value in model.named_parameters()}
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    results = {f"output {index}": each.detach() for index, each in enumerate(found)}
    return results | {
        f"d {name}": value for name, value in zip(leaves, gradients, strict=True) if value is not None
    }


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Equal names, and values within the tolerance times the largest value or 1."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1.0)
        torch.testing.assert_close(
            actual[name],
            value,
            rtol=0,
            atol=tolerance * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )
