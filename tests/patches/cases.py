"""What the tests of all hosts run on: small modules and whole models with random weights."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from tests._support.hosts import Host

CASES: dict[str, Host] = {}
# `make test` runs these; `make hosts` runs all.
FEW = ("timm latent", "transformers SigLIP")


def every():
    """All hosts, as the parameter "host" of a test."""
    marks = {name: () if name in FEW else (pytest.mark.hosts,) for name in CASES}
    params = [pytest.param(host, id=name, marks=marks[name]) for name, host in CASES.items()]
    return pytest.mark.parametrize("host", params)


def timm_layer(name, *args, **options):
    def make():
        import timm.layers

        return getattr(timm.layers, name)(*args, **options)

    return make


def class_attention(**options):
    from timm.models.cait import ClassAttn

    return ClassAttn(32, num_heads=4, **options)


def cait():
    import timm

    return timm.create_model("cait_xxs24_224", img_size=32, depth=1, num_classes=5, embed_dim=32, num_heads=4)


def vit(**options):
    """With one block before the last one, and registers."""

    def make():
        from timm.models.vision_transformer import VisionTransformer

        sizes = {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 4,
            "num_classes": 5,
        }
        return VisionTransformer(**sizes, **options)

    return make


rows = lambda *shape: lambda: [torch.randn(*shape)]  # noqa: E731

CASES |= {
    "timm latent": Host(
        "timm", timm_layer("AttentionPoolLatent", 32, num_heads=4), rows(2, 50, 32), ("",), 1
    ),
    "timm latents, mean": Host(
        "timm",
        timm_layer(
            "AttentionPoolLatent",
            *(32,),
            num_heads=4,
            latent_len=3,
            pool_type="avg",
            norm_layer=nn.LayerNorm,
            pos_embed="abs",
            feat_size=50,
        ),
        rows(2, 50, 32),
        ("",),
        1,
    ),
    "timm latent, no projections": Host(
        "timm",
        timm_layer("AttentionPoolLatent", 32, out_features=0, num_heads=4, q_proj=False, qkv_bias=False),
        rows(2, 50, 32),
        ("",),
        1,
    ),
    "timm pool 2d": Host(
        "timm",
        timm_layer("AttentionPool2d", 32, feat_size=5, out_features=24, head_dim=8),
        rows(2, 32, 5, 5),
        ("",),
        1,
    ),
    "timm pool 2d, separate, resized": Host(
        "timm",
        timm_layer("AttentionPool2d", 32, feat_size=5, head_dim=8, qkv_separate=True, class_token=True),
        rows(2, 32, 6, 7),
        ("",),
        1,
    ),
    "timm class attention": Host("timm", class_attention, rows(2, 50, 32), ("",), 1),
    "timm class attention, biases": Host(
        "timm", lambda: class_attention(qkv_bias=True), rows(2, 50, 32), ("",), 1
    ),
    "timm ViT": Host("timm", vit(reg_tokens=2, init_values=0.1), rows(2, 3, 32, 32), ("",), 1),
    "timm ViT, no biases": Host("timm", vit(qkv_bias=False, final_norm=False), rows(2, 3, 32, 32), ("",), 1),
    "timm CaiT": Host(
        "timm",
        cait,
        rows(2, 3, 32, 32),
        ("blocks_token_only.0.attn", "blocks_token_only.1.attn"),
        2,
    ),
}


def siglip(version):
    def make():
        import transformers

        kind = f"Siglip{version}VisionConfig"
        options = {"num_patches": 36} if version else {"image_size": 48}
        config = getattr(transformers, kind)(
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=1,
            num_attention_heads=4,
            patch_size=8,
            **options,
        )
        return getattr(transformers, f"Siglip{version}VisionModel")(config)

    return make


def siglip2_call(model, pixels):
    mask = torch.ones(len(pixels), 36, dtype=torch.long)
    mask[1, 20:] = 0
    sizes = torch.tensor([[6, 6], [5, 4]])
    return model(pixels, pixel_attention_mask=mask, spatial_shapes=sizes).pooler_output


def vjepa2():
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification

    config = VJEPA2Config(
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_pooler_layers=1,
        crop_size=32,
        patch_size=8,
        frames_per_clip=4,
        mlp_ratio=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    return VJEPA2ForVideoClassification(config)


def perceiver_attention():
    from transformers import PerceiverConfig
    from transformers.models.perceiver.modeling_perceiver import PerceiverSelfAttention

    config = PerceiverConfig(attention_probs_dropout_prob=0.0)
    widths = {"qk_channels": 24, "v_channels": 32, "num_heads": 2, "q_dim": 20, "kv_dim": 30}
    return PerceiverSelfAttention(config, is_cross_attention=True, **widths)


def perceiver():
    from transformers import PerceiverConfig, PerceiverForImageClassificationLearned

    config = PerceiverConfig(
        image_size=8,
        num_latents=6,
        d_latents=16,
        d_model=24,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    return PerceiverForImageClassificationLearned(config)


CASES |= {
    "transformers SigLIP": Host(
        "transformers",
        siglip(""),
        rows(2, 3, 48, 48),
        ("head",),
        1,
        lambda model, pixels: model(pixels).pooler_output,
    ),
    "transformers SigLIP2": Host(
        "transformers", siglip("2"), rows(2, 36, 3 * 8 * 8), ("head",), 1, siglip2_call
    ),
    "transformers V-JEPA 2": Host(
        "transformers",
        vjepa2,
        rows(2, 4, 3, 32, 32),
        ("pooler.cross_attention_layer",),
        1,
        lambda model, pixels: model(pixels).logits,
    ),
    "transformers Perceiver attention": Host(
        "transformers",
        perceiver_attention,
        lambda: [torch.randn(2, 7, 20), torch.randn(2, 60, 30)],
        ("",),
        1,
        lambda module, latents, inputs: module(latents, inputs=inputs)[0],
    ),
    "transformers Perceiver": Host(
        "transformers",
        perceiver,
        rows(2, 3, 8, 8),
        (
            "perceiver.encoder.cross_attention.attention.self",
            "perceiver.decoder.decoder.decoding_cross_attention.attention.self",
        ),
        2,
        lambda model, pixels: model(inputs=pixels).logits,
        whole=False,
        traced=1,  # in a trace, transformers masks nothing by a mask for all queries
    ),
}

TWO_WAY = ("layers.0", "layers.1", "final_attn_token_to_image")


def segment_anything():
    from segment_anything.modeling import MaskDecoder
    from segment_anything.modeling.transformer import TwoWayTransformer

    transformer = TwoWayTransformer(depth=2, embedding_dim=64, num_heads=2, mlp_dim=32)
    return MaskDecoder(transformer_dim=64, transformer=transformer, iou_head_hidden_dim=32)


def decode(decoder, image, position, points, dense):
    return decoder(image, position, points, dense, multimask_output=True)


def sam(name, start):
    def make():
        import transformers

        module = getattr(transformers.models, name)
        config = getattr(module, f"{start}MaskDecoderConfig")(
            hidden_size=64, num_attention_heads=2, mlp_dim=32, iou_head_hidden_dim=32
        )
        config._attn_implementation = "sdpa"
        return getattr(module, f"modeling_{name}").__dict__[f"{start}TwoWayTransformer"](config)

    return make


def two_way(model, points, image, position):
    return model(
        point_embeddings=points,
        image_embeddings=image,
        image_positional_embeddings=position,
        attention_similarity=None,
    )


def sam_inputs():
    """Two images of three prompts each."""
    return [torch.randn(2, 3, 6, 64), torch.randn(6, 64, 8, 8), torch.randn(6, 64, 8, 8)]


CASES |= {
    "segment-anything": Host(
        "segment_anything",
        segment_anything,
        lambda: [
            torch.randn(1, 64, 8, 8),
            torch.randn(1, 64, 8, 8),
            torch.randn(3, 2, 64),
            torch.randn(3, 64, 8, 8),
        ],
        tuple(f"transformer.{name}" for name in TWO_WAY),
        5,
        decode,
    )
}
CASES |= {
    f"transformers {start}": Host("transformers", sam(name, start), sam_inputs, TWO_WAY, 5, two_way)
    for name, start in {"sam": "Sam", "sam_hq": "SamHQ", "sam2": "Sam2"}.items()
}


def lucid_perceiver(**options):
    def make():
        from perceiver_pytorch import Perceiver

        return Perceiver(
            num_freq_bands=2,
            max_freq=4.0,
            depth=2,
            input_channels=3,
            num_latents=6,
            latent_dim=16,
            cross_dim_head=16,
            latent_heads=2,
            latent_dim_head=8,
            num_classes=5,
            **options,
        )

    return make


def perceiver_io():
    from perceiver_pytorch import PerceiverIO

    return PerceiverIO(
        dim=16, depth=1, queries_dim=12, num_latents=6, latent_dim=20, cross_dim_head=16, logits_dim=4
    )


def clip_pool():
    from open_clip.modified_resnet import AttentionPool2d

    return AttentionPool2d(5, 32, 4, 24)


def pooler(context=32):
    def make():
        from open_clip.transformer import AttentionalPooler

        return AttentionalPooler(32, context, n_head=4, n_queries=2)

    return make


CROSS = ("layers.0.cross_attn", "layers.1.cross_attn")
CASES |= {
    "perceiver-pytorch": Host("perceiver_pytorch", lucid_perceiver(), rows(2, 7, 9, 3), CROSS, 2),
    "perceiver-pytorch, heads": Host(
        "perceiver_pytorch",
        lucid_perceiver(cross_heads=2),
        rows(2, 7, 9, 3),
        CROSS,
        2,
    ),
    "perceiver-pytorch, inverted": Host(
        "perceiver_pytorch", lucid_perceiver(inverted_cross_attn=True), rows(2, 7, 9, 3), CROSS, 2
    ),
    "perceiver-pytorch IO": Host(
        "perceiver_pytorch",
        perceiver_io,
        lambda: [torch.randn(2, 60, 16), torch.randn(2, 5, 12)],
        ("cross_attend_block.cross_attn", "decoder_cross_attn"),
        2,
        lambda model, data, queries: model(data, queries=queries),
    ),
    "open_clip pool 2d": Host("open_clip", clip_pool, rows(2, 32, 5, 5), ("",), 1),
    "open_clip pooler": Host("open_clip", pooler(), rows(2, 50, 32), ("",), 1),
    "open_clip pooler, other width": Host("open_clip", pooler(24), rows(2, 50, 24), ("",), 1),
}


def physics(mesh="IrregularMesh", *shape):
    def make():
        from physicsnemo.nn.module import physics_attention

        kind = getattr(physics_attention, f"PhysicsAttention{mesh}")
        sizes = {"heads": 4, "dim_head": 8, "slice_num": 6, "use_te": False}
        return kind(24, *([shape] if shape else []), **sizes)

    return make


def transolver(**options):
    from physicsnemo.models.transolver import Transolver

    sizes = {"n_layers": 2, "n_hidden": 32, "n_head": 4, "slice_num": 6, "use_te": False}
    return Transolver(functional_dim=3, out_dim=2, embedding_dim=2, unified_pos=False, **sizes, **options)


def flare():
    from physicsnemo.nn.module.flare_attention import FLARE

    return FLARE(24, heads=4, dim_head=8, n_global_queries=6)


SLICES = ("blocks.0.Attn", "blocks.1.Attn")
CASES |= {
    "physicsnemo mesh": Host("physicsnemo.nn", physics(), rows(2, 50, 24), ("",), 2),
    "physicsnemo 2d": Host("physicsnemo.nn", physics("StructuredMesh2D", 6, 7), rows(2, 42, 24), ("",), 2),
    "physicsnemo 3d": Host("physicsnemo.nn", physics("StructuredMesh3D", 3, 4, 5), rows(2, 60, 24), ("",), 2),
    "physicsnemo Transolver": Host(
        "physicsnemo.nn",
        transolver,
        lambda: [torch.randn(2, 50, 3), torch.randn(2, 50, 2)],
        SLICES,
        4,
    ),
    "physicsnemo FLARE": Host("physicsnemo.nn", flare, rows(2, 50, 24), ("",), 2),
}


def slots(name="SlotAttention", **options):
    def make():
        import slot_attention

        return getattr(slot_attention, name)(num_slots=4, dim=16, hidden_dim=24, **options)

    return make


def seeded(module, *inputs):
    """With the same noise in each call and dtype."""
    noise = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(5))
    with mock.patch.object(torch, "randn", lambda *shape, device, dtype: noise.to(dtype)):
        return module(*inputs)


CASES |= {
    # A rounding that turns a ReLU's input changes all that follows, hence more draws.
    "slot-attention": Host("slot_attention", slots(), rows(2, 50, 16), ("",), 3, seeded, seeds=12),
    "slot-attention, heads": Host(
        "slot_attention",
        slots("MultiHeadSlotAttention", heads=2, dim_head=12, iters=2),
        rows(2, 50, 16),
        ("",),
        2,
        seeded,
        seeds=12,
    ),
}


def aggregation(gate, values=None):
    def make():
        from torch_geometric.nn.aggr import AttentionalAggregation

        return AttentionalAggregation(gate(), None if values is None else values())

    return make


def two_layers():
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))


def of_bags(module, x):
    """Bags of different sizes, one of them empty."""
    return module(x, ptr=torch.tensor([0, 20, 20, 21, 50]))


def by_index(module, x):
    """The same bags."""
    return module(x, torch.tensor([0, 2, 3]).repeat_interleave(torch.tensor([20, 1, 29])), dim_size=4)


CASES |= {
    "torch-geometric": Host(
        "torch_geometric.nn", aggregation(lambda: nn.Linear(16, 1)), rows(50, 16), ("",), 1, of_bags
    ),
    "torch-geometric, index": Host(
        "torch_geometric.nn",
        aggregation(lambda: nn.Linear(16, 1), lambda: nn.Linear(16, 12)),
        rows(50, 16),
        ("",),
        1,
        by_index,
        traced=0,  # sorting cannot be seen in a trace
    ),
    "torch-geometric, two layers": Host(
        "torch_geometric.nn", aggregation(two_layers), rows(50, 16), ("",), 1, of_bags
    ),
}
