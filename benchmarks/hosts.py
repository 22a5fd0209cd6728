"""``python -m benchmarks hosts``: models of other libraries, as they are and after `vt_fast.patch`.

Modules and whole models have the sizes that are in use, and random weights. Sides: ``original``; ``vt_fast``,
the same after `vt_fast.patch`; ``compile original`` and ``compile vt_fast``, both under torch.compile. ``make
hosts`` installs the libraries; those that are missing have a row that says so.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

import vt_fast
from benchmarks import networks
from benchmarks.devices import Device
from benchmarks.modules import INFERENCE, VT_FAST, Comparison, Function, ModuleProblem, Shapes, Side, missing
from benchmarks.processes import Plan
from benchmarks.results import BACKEND, OURS
from benchmarks.shapes import BOTH
from benchmarks.timing import Budget
from tools.torchvision import load_torchvision

MODE = "hosts"
PASSES = (INFERENCE, BOTH)
PEERS = ("original", "compile original", "compile vt_fast")
# Series of the rows.
WHOLE, MODULE = "whole model", "module"
# No side leaves the rotation, however far behind.
BUDGET = Budget(
    2.0, least=7, most=100, few=5, patience=20.0, behind=math.inf, far_behind=math.inf, hopeless=math.inf
)


class Host(NamedTuple):
    """A module, the shapes of its inputs, and how it is called.

    ``whole``: it is a model, not a part of one. ``inference``: it has no backward here. ``small``: shapes on
    which results are compared, if others.
    """

    make: Callable[[], nn.Module]
    inputs: Shapes
    call: Function = lambda host, *inputs: host(*inputs)
    whole: bool = False
    inference: bool = False
    small: Shapes | None = None


def sam_decoder(quick: bool) -> Host:
    """segment-anything's mask decoder: 16 prompts of two tokens, with five of its own, on 64 x 64 pixels."""
    width, side, prompts = (32, 8, 2) if quick else (256, 64, 16)
    image, position = (1, width, side, side), (1, width, side, side)
    inputs = (image, position, (prompts, 2, width), (prompts, width, side, side))
    return Host(partial(_decoder, width), inputs, lambda host, *given: host(*given, multimask_output=True))


def _decoder(width: int) -> nn.Module:
    from segment_anything.modeling import MaskDecoder, TwoWayTransformer

    transformer = TwoWayTransformer(depth=2, embedding_dim=width, num_heads=8, mlp_dim=8 * width)
    decoder: nn.Module = MaskDecoder(transformer_dim=width, transformer=transformer)
    return decoder


class Everything(nn.Module):
    """SAM on an image and a grid of points, in batches of 64, as its generator of automatic masks does."""

    def __init__(self, sam: Any, per_side: int) -> None:
        super().__init__()
        self.encoder, self.decoder = sam.image_encoder, sam.mask_decoder
        size = sam.image_encoder.img_size
        ticks = (torch.arange(per_side) + 0.5) * size / per_side
        points = torch.cartesian_prod(ticks, ticks)[:, None]
        labels = torch.ones(points.shape[:2], dtype=torch.int)
        # Here, for it takes no time and runs in float32 alone.
        with torch.no_grad():
            prompts, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
            self.register_buffer("prompts", prompts)
            self.register_buffer("dense", dense[:1].clone())
            self.register_buffer("position", sam.prompt_encoder.get_dense_pe())

    def forward(self, image: Tensor) -> Tensor:
        """All masks, three for each point."""
        embedding, masks = self.encoder(image), []
        for prompts in self.prompts.split(64):  # type: ignore[operator]
            dense = self.dense.expand(len(prompts), -1, -1, -1)  # type: ignore[operator]
            masks.append(self.decoder(embedding, self.position, prompts, dense, multimask_output=True)[0])
        return torch.cat(masks)


def sam_model(quick: bool, per_side: int) -> Host:
    """SAM ViT-B on an image, with the masks of a grid of points."""

    def make() -> nn.Module:
        from segment_anything import sam_model_registry
        from segment_anything.modeling import ImageEncoderViT, PromptEncoder, Sam

        if not quick:
            return Everything(sam_model_registry["vit_b"](), per_side)
        encoder = ImageEncoderViT(img_size=128, depth=1, embed_dim=32, num_heads=2, out_chans=32)
        prompts = PromptEncoder(32, (8, 8), (128, 128), 16)
        return Everything(Sam(encoder, prompts, _decoder(32)), 2)

    return Host(make, ((1, 3, 128, 128) if quick else (1, 3, 1024, 1024),), whole=True, inference=True)


def perceiver(quick: bool) -> Host:
    """perceiver-pytorch as in its README, at 224 x 224: six cross-attentions of 256 latents, one head."""

    def make() -> nn.Module:
        from perceiver_pytorch import Perceiver

        small: Any = {"depth": 1, "num_latents": 4, "latent_dim": 32, "num_classes": 5}
        large: Any = {"depth": 6, "num_latents": 256, "latent_dim": 512, "self_per_cross_attn": 2}
        model: nn.Module = Perceiver(
            num_freq_bands=6,
            max_freq=10.0,
            cross_dim_head=64,
            latent_heads=8,
            latent_dim_head=64,
            **(small if quick else large),
        )
        return model

    return Host(make, ((1, 16, 16, 3) if quick else (1, 224, 224, 3),), whole=True)


def perceiver_hf(quick: bool) -> Host:
    """transformers' Perceiver for ImageNet, Fourier features: 512 latents, 48 layers of self-attention."""

    def make() -> nn.Module:
        from transformers import PerceiverConfig, PerceiverForImageClassificationFourier

        small: Any = {"num_latents": 8, "d_latents": 64, "num_self_attends_per_block": 1, "num_blocks": 1}
        large: Any = {"num_latents": 512, "d_latents": 1024, "num_blocks": 8, "num_self_attends_per_block": 6}
        # As trained, but for the dropout of attention.
        config = PerceiverConfig(
            **(small if quick else large), num_cross_attention_heads=1, attention_probs_dropout_prob=0.0
        )
        model: nn.Module = PerceiverForImageClassificationFourier(config)
        return model

    inputs = ((1, 3, 224, 224),)
    return Host(make, inputs, lambda host, x: host(inputs=x).logits, whole=True, inference=True)


def siglip_head(quick: bool) -> Host:
    """transformers' pooling head of SigLIP so400m/14 at 384 x 384."""

    def make() -> nn.Module:
        from transformers.models.siglip import modeling_siglip as siglip

        sizes: Any = (64, 4, 96) if quick else (1152, 16, 4304)
        names = ("hidden_size", "num_attention_heads", "intermediate_size")
        config = siglip.SiglipVisionConfig(**dict(zip(names, sizes, strict=True)))
        head: nn.Module = siglip.SiglipMultiheadAttentionPoolingHead(config)
        return head

    return Host(make, ((2, 30, 64) if quick else (8, 27 * 27, 1152),))


def siglip_model(quick: bool) -> Host:
    """transformers' SigLIP base/16 at 224 x 224, the image tower."""

    def make() -> nn.Module:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        small: Any = {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "intermediate_size": 40,
            "num_attention_heads": 4,
        }
        model: nn.Module = SiglipVisionModel(SiglipVisionConfig(**(small if quick else {})))
        return model

    inputs, small = ((2 if quick else 4, 3, 224, 224),), ((1, 3, 224, 224),)
    return Host(make, inputs, lambda host, x: host(x).pooler_output, whole=True, small=small)


def vjepa(quick: bool, layers: int) -> Host:
    """transformers' attentive pooler of V-JEPA 2 ViT-L on features of 16 frames of 256 x 256."""
    width, heads = (64, 4) if quick else (1024, 16)

    def make() -> nn.Module:
        from transformers import VJEPA2Config
        from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

        config = VJEPA2Config(hidden_size=width, num_attention_heads=heads, num_pooler_layers=layers)
        config._attn_implementation = "sdpa"
        pooler: nn.Module = VJEPA2AttentivePooler(config)
        return pooler

    return Host(make, ((2, 30, width) if quick else (1 if layers else 4, 8 * 16 * 16, width),))


def clip_head(quick: bool) -> Host:
    """open_clip's pooling head of RN50."""

    def make() -> nn.Module:
        from open_clip.modified_resnet import AttentionPool2d

        pool: nn.Module = AttentionPool2d(4, 64, 2, 32) if quick else AttentionPool2d(7, 2048, 32, 1024)
        return pool

    return Host(make, ((2, 64, 4, 4) if quick else (32, 2048, 7, 7),))


def clip_model(quick: bool) -> Host:
    """open_clip's RN50, the image tower."""

    def make() -> nn.Module:
        from open_clip.modified_resnet import ModifiedResNet

        sizes: Any = ([1, 1, 1, 1], 32, 4, 64, 8) if quick else ([3, 4, 6, 3], 1024, 32, 224, 64)
        model: nn.Module = ModifiedResNet(*sizes)
        return model

    # Convolutions take long in float64.
    size = 64 if quick else 224
    return Host(make, ((2 if quick else 8, 3, size, size),), whole=True, small=((1, 3, size, size),))


def timm_head(quick: bool) -> Host:
    """timm's latent pooling of SigLIP base/16 at 384 x 384."""

    def make() -> nn.Module:
        from timm.layers.attention_pool import AttentionPoolLatent

        head: nn.Module = AttentionPoolLatent(*((32,) if quick else (768,)), num_heads=4 if quick else 12)
        return head

    return Host(make, ((2, 30, 32) if quick else (8, 576, 768),))


def timm_model(quick: bool, name: str, size: int, batch: int) -> Host:
    """A network of timm."""

    def make() -> nn.Module:
        import timm

        small: Any = {"img_size": 56, "depth": 2, "embed_dim": 32, "num_heads": 4}
        model: nn.Module = timm.create_model(name, **(small if quick else {"img_size": size}))
        return model

    size = 56 if quick else size
    return Host(make, ((2 if quick else batch, 3, size, size),), whole=True, small=((1, 3, size, size),))


def transolver(quick: bool, slices: int, layers: int) -> Host:
    """physicsnemo's Transolver on an irregular mesh of 16,384 points; without layers, its attention alone."""
    points, width = (40, 32) if quick else (16384, 256)

    def make() -> nn.Module:
        from physicsnemo.models.transolver import Transolver
        from physicsnemo.nn.module.physics_attention import PhysicsAttentionIrregularMesh

        sizes = {"slice_num": 4 if quick else slices, "use_te": False}
        if not layers:
            return PhysicsAttentionIrregularMesh(width, 8, width // 8, **sizes)  # type: ignore[no-any-return]
        options = {"n_layers": layers, "n_hidden": width, "n_head": 8, "unified_pos": False, **sizes}
        model: nn.Module = Transolver(functional_dim=3, out_dim=4, embedding_dim=3, **options)
        return model

    inputs = ((1, points, 3), (1, points, 3)) if layers else ((1, points, width),)
    return Host(make, inputs, whole=layers > 0)


def flare(quick: bool) -> Host:
    """physicsnemo's FLARE attention: 8 heads of 32, 128 global queries, 16,384 points."""
    points, width = (40, 32) if quick else (16384, 256)

    def make() -> nn.Module:
        from physicsnemo.nn.module.flare_attention import FLARE

        module: nn.Module = FLARE(width, 8, width // 8, n_global_queries=4 if quick else 128)
        return module

    return Host(make, ((1, points, width),))


def slots(quick: bool) -> Host:
    """slot-attention: 7 slots on 128 x 128 pixels of 64 channels, three iterations."""
    size, pixels = (16, 30) if quick else (64, 128 * 128)

    def make() -> nn.Module:
        from slot_attention import SlotAttention

        module: nn.Module = SlotAttention(7, size)
        return module

    def call(host: Any, x: Tensor) -> Any:
        noise = torch.randn(len(x), 7, size, generator=torch.Generator().manual_seed(5))
        # The same in each dtype.
        with mock.patch.object(torch, "randn", lambda *shape, device, dtype: noise.to(device, dtype)):
            return host(x)

    return Host(make, ((2 if quick else 4, pixels, size),), call)


def aggregation(quick: bool, hidden: int) -> Host:
    """torch-geometric's attention over 256 graphs of 1 to 511 nodes, with a gate of one or two layers."""
    channels, bags = (16, 4) if quick else (256, 256)
    counts = 1 + torch.randint(511, (bags,), generator=torch.Generator().manual_seed(5))
    ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def make() -> nn.Module:
        from torch_geometric.nn.aggr import AttentionalAggregation

        layers = [nn.Linear(channels, hidden), nn.Tanh(), nn.Linear(hidden, 1)]
        gate = nn.Sequential(*layers) if hidden else nn.Linear(channels, 1)
        module: nn.Module = AttentionalAggregation(gate)
        return module

    return Host(make, ((int(ptr[-1]), channels),), lambda host, x: host(x, ptr=ptr.to(x.device)))


LIBRARIES: dict[str, tuple[str, Callable[[bool], Host]]] = {
    "sam-decoder": ("segment-anything, mask decoder", sam_decoder),
    "sam-point": ("segment-anything, ViT-B, one point", partial(sam_model, per_side=1)),
    "sam": ("segment-anything, ViT-B, 256 points", partial(sam_model, per_side=16)),
    "vit-b": ("timm, ViT-B/16", partial(timm_model, name="vit_base_patch16_224", size=224, batch=8)),
    "dinov2-s": (
        "timm, DINOv2 ViT-S/14",
        partial(timm_model, name="vit_small_patch14_reg4_dinov2", size=518, batch=1),
    ),
    "cait": ("timm, CaiT XXS24", partial(timm_model, name="cait_xxs24_224", size=224, batch=4)),
    "timm-head": ("timm, AttentionPoolLatent", timm_head),
    "perceiver": ("perceiver-pytorch, Perceiver", perceiver),
    "perceiver-hf": ("transformers, Perceiver", perceiver_hf),
    "siglip-head": ("transformers, SigLIP head", siglip_head),
    "siglip": ("transformers, SigLIP base", siglip_model),
    "vjepa-head": ("transformers, V-JEPA 2 cross-attention", partial(vjepa, layers=0)),
    "vjepa": ("transformers, V-JEPA 2 pooler", partial(vjepa, layers=3)),
    "clip-head": ("open_clip, AttentionPool2d", clip_head),
    "clip": ("open_clip, RN50", clip_model),
    "transolver-attention": (
        "physicsnemo, PhysicsAttention, 64 slices",
        partial(transolver, slices=64, layers=0),
    ),
    "transolver": ("physicsnemo, Transolver, 64 slices", partial(transolver, slices=64, layers=4)),
    "transolver-512": ("physicsnemo, Transolver, 512 slices", partial(transolver, slices=512, layers=4)),
    "flare": ("physicsnemo, FLARE attention", flare),
    "slots": ("slot-attention, SlotAttention", slots),
    "graphs": ("torch-geometric, AttentionalAggregation", partial(aggregation, hidden=0)),
    "graphs-gated": ("torch-geometric, gate of two layers", partial(aggregation, hidden=64)),
}


def comparison(host: Host) -> Comparison:
    """The sides of a host."""

    def patched() -> nn.Module:
        module = host.make()
        report = vt_fast.patch(module)
        if not report.replaced:
            raise RuntimeError(f"nothing was replaced: {report}")
        return module

    original = Side(host.make, host.call)
    ours = original._replace(make=patched, role=OURS)
    sides = {
        "original": original,
        "compile original": original._replace(compiled=""),
        VT_FAST: ours,
        f"compile {VT_FAST}": ours._replace(compiled="", role=BACKEND),
    }
    return Comparison(sides, host.inputs, host.small)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The mode's options."""
    parser.add_argument("--host", nargs="+", choices=tuple(LIBRARIES), default=list(LIBRARIES))
    networks.add_common_arguments(parser, PASSES, PEERS)


def plans(options: argparse.Namespace) -> list[Plan]:
    """One process measures all hosts."""
    return networks.plan(options, "host", [{"host": host} for host in options.host], BUDGET)


def problem(spec: dict[str, Any], device: Device) -> ModuleProblem:
    """A host as :mod:`benchmarks.runner` measures it."""
    name, describe = LIBRARIES[spec["host"]]
    load_torchvision()
    host = describe(spec["quick"])
    try:
        importlib.import_module(name.partition(",")[0].replace("-", "_"))
        sides = comparison(host)
    except ImportError as error:
        sides, spec = missing(error), {**spec, "peers": None}
    shape = "x".join(map(str, host.inputs[0]))
    host_problem = ModuleProblem(sides, MODE, name, shape, {**spec, "layout": ""}, device)
    host_problem.fields["series"] = WHOLE if host.whole else MODULE
    if host.inference:
        host_problem.passes = [which for which in host_problem.passes if which == INFERENCE]
    return host_problem
