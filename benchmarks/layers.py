"""``python -m benchmarks layers``: layers of models in use, as their packages ship them and by our ops.

Each layer has its original configuration and random weights, and several sides:

- ``original``: the package's module as it is by default; ``original sdpa`` or ``original eager``: with and
  without PyTorch's fused attention, whichever is not the default; ``plain PyTorch``: a copy of the module,
  where the package is hard to install.
- ``folded``: our algebra in plain PyTorch: projections of the pixels move to the few rows on the other side.
- ``vt_fast``: the same by our ops. Folding is a part of every call, so that all sides start from the
  original's parameters and give them gradients.
- ``reference``: the paper's equations, for the paper's own layers and double attention; ``convolutions``:
  what the paper's layers replace.
- ``compile ...``: torch.compile of these.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vt_fast
from benchmarks import networks
from benchmarks.attention import TRANSPOSED, by, sdpa
from benchmarks.devices import Device
from benchmarks.modules import INFERENCE, VT_FAST, Comparison, Function, ModuleProblem, Side, missing, paper
from benchmarks.processes import Plan
from benchmarks.results import OURS
from benchmarks.shapes import BOTH
from benchmarks.timing import Budget
from tools.torchvision import load_torchvision
from vt_fast.models import FPN, VTFPN
from vt_fast.models.attention import DoubleAttention

MODE = "layers"
PASSES = (INFERENCE, BOTH)
_COPY = "plain PyTorch"
PEERS = (
    *("original", "original sdpa", "original eager", "compile original"),
    *(_COPY, f"{_COPY} sdpa", f"compile {_COPY}"),
    *("folded", "folded sdpa", "compile folded"),
    *networks.PEERS,
)
# The original stays in the rotation, however far behind.
BUDGET = Budget(2.0, least=7, most=100, few=5, patience=20.0, behind=math.inf, far_behind=math.inf)


def siglip(quick: bool) -> Comparison:
    """The pooling head of SigLIP so400m/14 at 384 x 384: one query, 16 heads, and an MLP."""
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    width, heads, inner = (64, 4, 96) if quick else (1152, 16, 4304)
    config = SiglipVisionConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=inner)
    original = Side(partial(SiglipMultiheadAttentionPoolingHead, config))

    def fold(host: Any, x: Tensor, tokenize: Function) -> Any:
        part = host.attention
        (query, key, value), (bias, _, value_bias) = part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3)
        queries = F.linear(host.probe[0], query, bias)
        hidden = part.out_proj(_attend(x, queries, key, value, value_bias, heads, tokenize))
        return (hidden + host.mlp(host.layernorm(hidden)))[:, 0]

    def fused(host: Any, x: Tensor) -> Any:
        probe = host.probe.repeat(x.shape[0], 1, 1)
        # nn.MultiheadAttention calls the fused attention only where no weights are asked for.
        hidden = host.attention(probe, x, x, need_weights=False)[0]
        return (hidden + host.mlp(host.layernorm(hidden)))[:, 0]

    inputs = ((2, 30, width) if quick else (8, 27 * 27, width),)
    return _pooling(original, fold, inputs, {"original sdpa": original._replace(function=fused)})


def vjepa(quick: bool) -> Comparison:
    """The cross-attention of V-JEPA 2's probe, ViT-L, 16 frames of 256 x 256: one query, 16 heads, an MLP."""
    from transformers import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    width, heads = (64, 4) if quick else (1024, 16)

    def make(attention: str) -> nn.Module:
        # Without the layers of self-attention before it.
        config = VJEPA2Config(hidden_size=width, num_attention_heads=heads, num_pooler_layers=0)
        config._attn_implementation = attention
        pooler: nn.Module = VJEPA2AttentivePooler(config)
        return pooler

    def fold(host: Any, x: Tensor, tokenize: Function) -> Any:
        layer, part = host.cross_attention_layer, host.cross_attention_layer.cross_attn
        x, queries = layer.layer_norm1(x), part.q_proj(host.query_tokens[0])
        key, value = part.k_proj.weight, part.v_proj
        hidden = host.query_tokens + _attend(x, queries, key, value.weight, value.bias, heads, tokenize)
        return (hidden + layer.mlp(layer.layer_norm2(hidden)))[:, 0]

    inputs = ((2, 30, width) if quick else (4, 8 * 16 * 16, width),)
    # The eager one computes its softmax in float32 also where the truth is computed.
    return _pooling(
        Side(partial(make, "sdpa")), fold, inputs, {"original eager": Side(partial(make, "eager"))}
    )


def perceiver(quick: bool) -> Comparison:
    """The cross-attention layer of Perceiver at 224 x 224: 512 latents, one head, an MLP."""
    from transformers import PerceiverConfig
    from transformers.models.perceiver.modeling_perceiver import PerceiverLayer

    # Channels of the inputs: RGB and 258 of Fourier features.
    latents, width, channels = (8, 48, 29) if quick else (512, 1024, 261)
    # As trained, but for the dropout of attention, which does not allow folding.
    config = PerceiverConfig(attention_probs_dropout_prob=0.0)
    sizes = {"q_dim": width, "kv_dim": channels, "qk_channels": channels, "v_channels": channels}
    make = partial(PerceiverLayer, config, is_cross_attention=True, num_heads=1, widening_factor=1, **sizes)

    def original(host: Any, x: Tensor, state: Tensor) -> Any:
        return host(state, inputs=x)[0]

    def fold(host: Any, x: Tensor, state: Tensor, tokenize: Function) -> Any:
        part = host.attention.self
        x, queries = part.layernorm2(x), part.query(part.layernorm1(state))
        key, value = part.key.weight, part.value
        pooled = _attend(x, queries, key, value.weight, value.bias, 1, tokenize)
        hidden = host.attention.output(pooled) + state
        return hidden + host.feed_forward_chunk(hidden)

    inputs = ((1, 60 if quick else 224 * 224, channels), (1, latents, width))
    return _pooling(Side(make, original), fold, inputs)


def clip(quick: bool) -> Comparison:
    """CLIP RN50's attention pooling at 224 x 224, by timm: 32 heads, one query of which is used."""
    from timm.layers.attention_pool2d import AttentionPool2d

    channels, side, batch = (128, 4, 2) if quick else (2048, 7, 32)
    make = partial(AttentionPool2d, channels, feat_size=side, out_features=channels // 2, head_dim=64)

    def fold(host: Any, x: Tensor, tokenize: Function) -> Any:
        x = x.flatten(2).mT
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + host.pos_embed
        (query, key, value), (bias, _, value_bias) = host.qkv.weight.chunk(3), host.qkv.bias.chunk(3)
        queries = F.linear(x[:, :1], query, bias)
        return host.proj(_attend(x, queries, key, value, value_bias, host.num_heads, tokenize))[:, 0]

    return _pooling(Side(make), fold, ((batch, channels, side, side),))


def ocr(quick: bool) -> Comparison:
    """OCRNet's object attention, HRNet-W48 on a Cityscapes crop of 512 x 1024: 19 objects, one head."""
    channels, inner, count = (32, 16, 5) if quick else (512, 256, 19)

    def unit(given: int, wanted: int) -> nn.Sequential:
        convolution = nn.Conv2d(given, wanted, 1, bias=False)
        return nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(wanted), activate=nn.ReLU()))

    class ObjectAttention(nn.Module):
        """mmsegmentation's ObjectAttentionBlock, with its names of parameters."""

        def __init__(self) -> None:
            super().__init__()
            self.query_project = nn.Sequential(unit(channels, inner), unit(inner, inner))
            self.key_project = nn.Sequential(unit(channels, inner), unit(inner, inner))
            self.value_project, self.out_project = unit(channels, inner), unit(inner, channels)
            self.bottleneck = unit(2 * channels, channels)

        def forward(self, x: Tensor, objects: Tensor) -> Any:
            query = self.query_project(x).flatten(2).mT.contiguous()
            key = self.key_project(objects).flatten(2)
            value = self.value_project(objects).flatten(2).mT.contiguous()
            context = torch.softmax(inner**-0.5 * (query @ key), -1) @ value
            context = context.mT.contiguous().unflatten(2, x.shape[2:])
            return self.bottleneck(torch.cat([self.out_project(context), x], 1))

    def shipped() -> nn.Module:
        from mmseg.models.decode_heads.ocr_head import ObjectAttentionBlock

        weights = ObjectAttention().state_dict()
        block: nn.Module = ObjectAttentionBlock(channels, inner, 1, None, {"type": "BN"}, {"type": "ReLU"})
        block.load_state_dict(weights)
        return block

    def fused(host: Any, x: Tensor, objects: Tensor) -> Any:
        query, key, value = host.query_project(x), host.key_project(objects), host.value_project(objects)
        # Other strides would not be fused.
        query, key, value = (each.flatten(2).mT.contiguous()[:, None] for each in (query, key, value))
        context = F.scaled_dot_product_attention(query, key, value)[:, 0].mT.unflatten(2, x.shape[2:])
        return host.bottleneck(torch.cat([host.out_project(context), x], 1))

    def fold(host: Any, x: Tensor, objects: Tensor, project: Function) -> Any:
        keys = inner**-0.5 * host.key_project(objects).flatten(2).mT
        # The convolution of the context moves to the objects; the norm behind it stays.
        out = host.out_project
        values = F.linear(host.value_project(objects).flatten(2).mT, out.conv.weight.flatten(1))
        context = out.activate(out.bn(project(host.query_project(x), keys, values)))
        return host.bottleneck(torch.cat([context, x], 1))

    def project(x: Tensor, keys: Tensor, values: Tensor) -> Any:
        weights = torch.softmax(keys @ x.flatten(2), 1)
        return (values.mT @ weights).unflatten(2, x.shape[2:])

    plain = Side(ObjectAttention)
    sides = {
        _COPY: plain,
        f"{_COPY} sdpa": plain._replace(function=fused),
        f"compile {_COPY}": plain._replace(compiled=""),
        "original": Side(shipped),
        **_folded(plain, partial(fold, project=project), partial(fold, project=vt_fast.project)),
    }
    size = (6, 8) if quick else (128, 256)
    return Comparison(sides, ((1, channels, *size), (1, channels, count, 1)))


def stage(quick: bool) -> Comparison:
    """VT-ResNet-50's last stage, which replaces that of a ResNet-50; neither with its pooling."""
    depth, image = (18, (1, 3, 64, 64)) if quick else (50, (8, 3, 224, 224))
    return networks.comparison("stage", depth, image)[1]._replace(small=None)


def level(quick: bool) -> Comparison:
    """VT-FPN's finest level at 800 x 1216, which replaces a 3x3 convolution; neither with its lateral."""

    def make(neck: type[Any]) -> nn.Module:
        made: nn.Module = neck((256,))
        made.inner_blocks = nn.ModuleList([nn.Identity()])
        return made

    def first(host: nn.Module, x: Tensor) -> Any:
        return host([x])[0]

    shape = (1, 256, 8, 12) if quick else (1, 256, 200, 304)
    return paper(Side(partial(make, VTFPN), first), Side(partial(make, FPN), first), (shape,))


def a2(quick: bool) -> Comparison:
    """A2-Net's double attention on ResNet-50's second stage at 224 x 224: 128 vectors, three projections."""
    channels, side, batch = (32, 6, 2) if quick else (512, 28, 8)

    def folded(host: Any, x: Tensor) -> Any:
        pixels = x.flatten(2)
        vectors = (host.theta.weight @ pixels).softmax(2) @ pixels.mT
        values = host.out(host.phi(vectors))
        weights = (host.rho.weight @ pixels + host.rho.bias[:, None]).softmax(1)
        return x + (values.mT @ weights).unflatten(2, x.shape[2:])

    ours = Side(partial(DoubleAttention, channels))
    written = Side(partial(DoubleAttention, channels, backend="reference"))
    sides = {
        "reference": written,
        "compile reference": written._replace(compiled=""),
        **_folded(ours, folded, ours.function),
    }
    return Comparison(sides, ((batch, channels, side, side),))


class Layer(NamedTuple):
    """A row of the registry; ``layout`` is the model's own."""

    name: str
    comparison: Callable[[bool], Comparison]
    layout: str = ""


LAYERS = {
    "siglip": Layer("SigLIP so400m attention pooling", siglip),
    "vjepa": Layer("V-JEPA 2 attentive probe", vjepa),
    "perceiver": Layer("Perceiver cross-attention", perceiver),
    "ocr": Layer("OCRNet object attention", ocr, "nchw"),
    "clip": Layer("CLIP RN50 attention pooling", clip, "nchw"),
    "stage": Layer("VT-ResNet-50 last stage", stage, "channels_last"),
    "level": Layer("VT-FPN level P2", level, "channels_last"),
    "a2": Layer("A2-Net double attention", a2, "channels_last"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The mode's options."""
    parser.add_argument("--layer", nargs="+", choices=tuple(LAYERS), default=list(LAYERS))
    networks.add_common_arguments(parser, PASSES, PEERS)


def plans(options: argparse.Namespace) -> list[Plan]:
    """One process measures all layers."""
    return networks.plan(options, "layer", [{"layer": layer} for layer in options.layer], BUDGET)


def problem(spec: dict[str, Any], device: Device) -> ModuleProblem:
    """A layer as :mod:`benchmarks.runner` measures it."""
    name, make, layout = LAYERS[spec["layer"]]
    spec = {**spec, "layout": layout}
    try:
        load_torchvision()
        comparison = make(spec["quick"])
    except ImportError as error:
        comparison, spec = missing(error), {**spec, "peers": None}
    return ModuleProblem(comparison, MODE, name, "x".join(map(str, comparison.inputs[0])), spec, device)


def _attend(
    x: Tensor,
    queries: Tensor,
    key: Tensor,
    value: Tensor,
    value_bias: Tensor,
    num_heads: int,
    tokenize: Function,
) -> Tensor:
    """Attention of projected queries (L, E) or (B, L, E) to pixels (B, N, C) that are not projected.

    A head's logits are (x W_K^T) q = x (W_K^T q): a row of width C for each head and query. Weights add up to
    1, so the value projection moves behind the sum, with its bias. The bias of keys cancels in the softmax.
    """
    width = key.shape[0] // num_heads
    query = width**-0.5 * queries.unflatten(-1, (num_heads, width))
    rows = torch.einsum("...lhd,hdc->...hlc", query, key.unflatten(0, (num_heads, width))).flatten(-3, -2)
    pooled = tokenize(x, rows).unflatten(1, (num_heads, -1))
    result = torch.einsum("bhlc,hdc->blhd", pooled, value.unflatten(0, (num_heads, width)))
    return result.flatten(2) + value_bias


def _pooling(
    original: Side,
    fold: Function,
    inputs: Sequence[tuple[int, ...]],
    others: Mapping[str, Side] | None = None,
) -> Comparison:
    """The sides of a layer that pools pixels. ``fold`` takes the module, the inputs and what tokenizes."""

    def plain(x: Tensor, queries: Tensor) -> Tensor:
        return TRANSPOSED.pool(x.mT, queries)

    sides = {
        "original": original,
        **(others or {}),
        "compile original": original._replace(compiled=""),
        "folded sdpa": original._replace(function=partial(fold, tokenize=by(sdpa(), copies=False).pool)),
        **_folded(original, partial(fold, tokenize=plain), partial(fold, tokenize=vt_fast.tokenize)),
    }
    return Comparison(sides, inputs)


def _folded(original: Side, plain: Function, ours: Function) -> dict[str, Side]:
    folded = original._replace(function=plain)
    return {
        "folded": folded,
        "compile folded": folded._replace(compiled=""),
        VT_FAST: original._replace(function=ours, role=OURS),
    }
