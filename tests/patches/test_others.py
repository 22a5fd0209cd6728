"""What the patches of the packages of `make hosts` refuse, and which calls run the model's own forward."""

import pytest
import torch
from torch import nn

import vt_fast
from tests._support import hosts
from tests.patches.cases import CASES, lucid_perceiver, pooler
from tests.patches.test_patch import reason, runs_own

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu, pytest.mark.hosts]


class TestSegmentAnything:
    def made(self):
        hosts.need("segment_anything")
        transformer = CASES["segment-anything"].make().transformer.eval()
        return transformer, [torch.randn(3, 64, 8, 8), torch.randn(3, 64, 8, 8), torch.randn(3, 7, 64)]

    def test_only_the_last_attention_and_the_blocks_are_known(self):
        transformer, _ = self.made()
        assert [row.path for row in vt_fast.patch(transformer).rows] == [
            "layers.0",
            "layers.1",
            "final_attn_token_to_image",
        ]

    def test_many_tokens(self):
        transformer, inputs = self.made()
        vt_fast.patch(transformer)
        assert hosts.ops_in(lambda: transformer(*inputs)) == 5
        assert hosts.ops_in(lambda: transformer(*inputs[:2], torch.randn(3, 40, 64))) == 0

    def test_prompts_that_share_an_image(self):
        transformer, (image, position, tokens) = self.made()
        expected = transformer(image[:1], position[:1], tokens)
        vt_fast.patch(transformer)
        for found, value in zip(transformer(image[:1], position[:1], tokens), expected, strict=True):
            torch.testing.assert_close(found, value)

    def test_attention_of_another_class(self):
        transformer, _ = self.made()
        block = transformer.layers[0]
        kind = type(block.self_attn)
        mine = type("Mine", (kind,), {"forward": lambda self, q, k, v: q})
        for part in (block.self_attn, block.cross_attn_token_to_image, block.cross_attn_image_to_token):
            part.__class__ = mine
        assert reason(block) == "cross_attn_token_to_image is a Mine"

    def test_members_with_hooks(self):
        transformer, inputs = self.made()
        vt_fast.patch(transformer)
        block, seen = transformer.layers[1], []
        block.cross_attn_token_to_image.register_forward_hook(lambda *args: seen.append(1))
        assert hosts.ops_in(lambda: transformer(*inputs)) == 3
        assert seen

    def test_adapters(self):
        transformer, _ = self.made()
        block = transformer.layers[0]
        block.cross_attn_image_to_token.q_proj = nn.Sequential(block.cross_attn_image_to_token.q_proj)
        assert vt_fast.patch(transformer).refused == ("layers.0",)


class TestPerceiver:
    def made(self, **options):
        hosts.need("perceiver_pytorch")
        module = lucid_perceiver(**options)().layers[0].cross_attn.eval()
        context = module.norm_context.normalized_shape[0]
        return module, torch.randn(2, 6, 16), torch.randn(2, 63, context)

    @pytest.mark.parametrize("inverted_attention", [False, True])
    def test_masks(self, inverted_attention):
        module, x, context = self.made()
        vt_fast.patch(module)
        mask = torch.rand(2, 7, 9) > 0.5
        options = {"context": context, "mask": mask, "inverted_attention": inverted_attention}
        assert hosts.ops_in(lambda: module(x, **options)) == 1
        own = module._vt_fast_host.forward(module, x, **options)
        torch.testing.assert_close(module(x, **options), own)

    def test_dropout_in_training(self):
        module, x, context = self.made(attn_dropout=0.5)
        vt_fast.patch(module)
        assert hosts.ops_in(lambda: module(x, context=context)) == 1
        assert runs_own(module.train(), x, context=context)
        module.eval().fn.dropout.train()
        assert runs_own(module, x, context=context)

    @pytest.mark.parametrize("inverted_attention", [False, True])
    def test_masks_of_all_of_the_context(self, inverted_attention):
        module, x, context = self.made()
        nn.init.normal_(module.norm_context.bias)
        vt_fast.patch(module)
        mask = torch.zeros(2, 63, dtype=torch.bool)
        found = module(x, context=context, mask=mask, inverted_attention=inverted_attention)
        torch.testing.assert_close(found, module.fn.to_out.bias.expand_as(found))

    def test_inverted_attention_in_float16(self):
        """Its sums over a large context would be infinite."""
        module, x, context = self.made()
        module = module.half()
        vt_fast.patch(module)
        assert runs_own(module, x.half(), context=context.half(), inverted_attention=True)
        assert hosts.ops_in(lambda: module(x.half(), context=context.half())) == 1

    def test_broadcast_batches(self):
        module, x, context = self.made()
        vt_fast.patch(module)
        assert runs_own(module, x[:1], context=context)
        assert runs_own(module, x, context=context[:1])

    def test_small_context(self):
        module, x, context = self.made()
        vt_fast.patch(module)
        assert runs_own(module, x, context=context[:, :1])

    def test_latents_among_the_keys(self):
        module, _, _ = self.made()
        module.fn.queries_contribute_kv = True
        assert "latents are among the keys" in reason(module)

    def test_other_prenorms_are_not_reported(self):
        model = CASES["perceiver-pytorch"]
        hosts.need(model.package)
        assert len(vt_fast.patch(model.make()).rows) == 2


class TestOpenClip:
    def test_many_queries(self):
        hosts.need("open_clip")
        module = pooler()()
        module.query = nn.Parameter(torch.randn(16, 32))
        assert "it has 16 queries: folding does not pay" in reason(module)

    def test_other_norms(self):
        hosts.need("open_clip")
        module = pooler()()
        module.ln_k = nn.Identity()
        assert reason(module) == "ln_k is a Identity"
