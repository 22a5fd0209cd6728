"""What the patches of transformers refuse, and which calls run the model's own forward."""

import pytest
import torch
from torch import nn

import vt_fast
from tests._support import hosts
from tests._support.hosts import Host
from tests.patches.cases import CASES, TWO_WAY, perceiver_attention, sam, sam_inputs, two_way
from tests.patches.test_patch import fails_alike, reason, runs_own

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]


@pytest.fixture(autouse=True)
def _needs_transformers():
    hosts.need("transformers")


class TestPerceiver:
    def made(self):
        module = perceiver_attention().eval()
        vt_fast.patch(module)
        return module, torch.randn(2, 7, 20), torch.randn(2, 60, 30)

    def test_attention_weights(self):
        module, latents, inputs = self.made()
        assert runs_own(module, latents, inputs=inputs, output_attentions=True)
        assert len(module(latents, inputs=inputs, output_attentions=True)) == 2

    def test_dropout_in_training(self):
        module, latents, inputs = self.made()
        module.dropout.p = 0.5
        assert hosts.ops_in(lambda: module(latents, inputs=inputs)) == 1
        module.dropout.train()
        assert runs_own(module, latents, inputs=inputs)
        assert runs_own(module.train(), latents, inputs=inputs)

    def test_masks(self):
        module, latents, inputs = self.made()
        mask = torch.where(torch.rand(2, 1, 1, 60) > 0.5, 0.0, torch.finfo(torch.float32).min)
        assert hosts.ops_in(lambda: module(latents, inputs=inputs, inputs_mask=mask)) == 1
        own = module._vt_fast_host.forward(module, latents, inputs=inputs, inputs_mask=mask)
        torch.testing.assert_close(module(latents, inputs=inputs, inputs_mask=mask), own)
        mask[0] = torch.finfo(torch.float32).min  # all of a sample
        own = module._vt_fast_host.forward(module, latents, inputs=inputs, inputs_mask=mask)
        torch.testing.assert_close(module(latents, inputs=inputs, inputs_mask=mask), own)
        assert runs_own(module, latents, inputs=inputs, inputs_mask=mask.expand(2, 2, 7, 60))

    def test_broadcast_batches(self):
        module, latents, inputs = self.made()
        assert runs_own(module, latents[:1], inputs=inputs)
        assert runs_own(module, latents, inputs=inputs[:1])

    def test_other_shapes(self):
        module, latents, inputs = self.made()
        assert fails_alike(module, latents, inputs=inputs[..., :20])
        assert fails_alike(module, latents, inputs=inputs[None])

    def test_few_inputs(self):
        module, latents, inputs = self.made()
        assert runs_own(module, latents, inputs=inputs[:, :3])

    def test_self_attention_is_not_reported(self):
        model = CASES["transformers Perceiver"].make()
        paths = [row.path for row in vt_fast.patch(model).rows]
        assert len(paths) == 2
        assert not any("self_attends" in path for path in paths)


class TestVJEPA2:
    def made(self):
        model = CASES["transformers V-JEPA 2"].make().eval()
        layer = model.pooler.cross_attention_layer
        return layer, torch.randn(2, 1, 32), torch.randn(2, 40, 32)

    def test_attention_weights(self):
        layer, query, x = self.made()
        layer.cross_attn.config._attn_implementation = "eager"
        assert "config._attn_implementation is 'eager'" in reason(layer)
        layer.cross_attn.config._attn_implementation = "sdpa"
        vt_fast.patch(layer)
        assert hosts.ops_in(lambda: layer(query, x)) == 1
        layer.cross_attn.config._attn_implementation = "eager"
        assert runs_own(layer, query, x)
        assert layer(query, x)[1].shape == (2, 2, 1, 40)

    def test_masks_and_dropout(self):
        layer, query, x = self.made()
        vt_fast.patch(layer)
        assert runs_own(layer, query, x, torch.zeros(2, 1, 1, 40))
        layer.cross_attn.dropout = 0.5
        assert hosts.ops_in(lambda: layer(query, x)) == 1
        layer.cross_attn.train()
        assert runs_own(layer, query, x)
        assert runs_own(layer.train(), query, x)

    def test_hooks_of_what_is_folded(self):
        layer, query, x = self.made()
        vt_fast.patch(layer)
        for member in (layer.layer_norm1, layer.cross_attn, layer.cross_attn.v_proj):
            handle = member.register_forward_hook(lambda *args: None)
            assert runs_own(layer, query, x)
            handle.remove()
        assert hosts.ops_in(lambda: layer(query, x)) == 1


class TestSiglip:
    def test_options_of_the_attention(self):
        head = CASES["transformers SigLIP"].make().head.eval()
        head.attention.dropout = 0.1
        assert "dropout" in reason(head)
        head.attention.dropout = 0.0
        vt_fast.patch(head)
        assert hosts.ops_in(lambda: head(torch.randn(2, 30, 32))) == 1
        head.attention.add_zero_attn = True
        assert runs_own(head, torch.randn(2, 30, 32))

    def test_other_attention(self):
        head = CASES["transformers SigLIP"].make().head.eval()
        head.attention = nn.MultiheadAttention(32, 4, kdim=24, vdim=24, batch_first=True)
        assert "other widths than its probe" in reason(head)
        head = CASES["transformers SigLIP"].make().head.eval()
        head.attention.out_proj = nn.Sequential(head.attention.out_proj)
        assert reason(head) == "out_proj is a Sequential"

    @pytest.mark.parametrize("name", ["transformers SigLIP", "transformers SigLIP2"])
    @pytest.mark.parametrize("shape", [(36, 32), (2, 36, 24), (2, 3, 36, 32)])
    def test_other_shapes(self, name, shape):
        head = CASES[name].make().head.eval()
        vt_fast.patch(head)
        assert fails_alike(head, torch.randn(shape))

    def test_masks_of_all_patches(self):
        head, x = CASES["transformers SigLIP2"].make().head.eval(), torch.randn(2, 36, 32)
        nn.init.normal_(head.attention.in_proj_bias)
        vt_fast.patch(head)
        mask = torch.ones(2, 36)
        mask[0] = 0
        pooled = head.attention.out_proj.bias
        torch.testing.assert_close(head(x, mask)[0], pooled + head.mlp(head.layernorm(pooled)))

    def test_frozen_rows(self):
        model, x = CASES["transformers SigLIP"].make().eval(), torch.randn(2, 3, 48, 48)
        vt_fast.patch(model)
        expected = model(x).pooler_output
        vt_fast.nn.freeze(model)
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(model(x).pooler_output, expected)
            kept = model.head._kept.entries["rows"]
            assert model(x) is not None
            assert model.head._kept.entries["rows"] is kept
            model.head.attention.in_proj_weight.mul_(1.5)
            changed = model(x).pooler_output
        assert not torch.equal(changed, expected)
        assert torch.equal(changed, model(x).pooler_output)  # with gradients nothing is kept
        vt_fast.unpatch(model)
        assert "_kept" not in vars(model.head)


@pytest.mark.parametrize(
    "name", ["Sam", *(pytest.param(each, marks=pytest.mark.hosts) for each in ("SamHQ", "Sam2"))]
)
class TestSam:
    def made(self, name):
        return CASES[f"transformers {name}"].make().eval()

    def test_similarity(self, name):
        model = self.made(name)
        vt_fast.patch(model)
        block = model.layers[1]
        points, image = torch.randn(2, 3, 6, 64), torch.randn(6, 1, 64, 64)
        similarity = torch.randn(6, 1, 6, 64)
        assert hosts.ops_in(lambda: block(points, image, points, image, None)) == 2
        assert runs_own(block, points, image, points, image, similarity)

    def test_many_tokens(self, name):
        model = self.made(name)
        vt_fast.patch(model)
        _, image, position = sam_inputs()
        assert hosts.ops_in(lambda: two_way(model, torch.randn(2, 3, 40, 64), image, position)) == 0

    def test_attention_of_another_class(self, name, monkeypatch):
        block = self.made(name).layers[0]
        kind = type(block.self_attn)
        monkeypatch.setattr(kind, "forward", lambda self, **options: options)
        assert "cross_attn_token_to_image has hooks or another forward" in reason(block)
        monkeypatch.undo()
        mine = type("Mine", (kind,), {"forward": lambda self, **options: options})
        for part in (block.self_attn, block.cross_attn_token_to_image, block.cross_attn_image_to_token):
            part.__class__ = mine
        assert reason(block) == "cross_attn_token_to_image is a Mine"

    def test_attention_weights(self, name):
        model = self.made(name)
        last = model.final_attn_token_to_image
        last.config._attn_implementation = "eager"
        (*_, row) = vt_fast.patch(model).rows
        assert not row.replaced
        assert "eager" in row.note

    def test_recorded_outputs(self, name):
        """transformers records the third result of a block by hooks."""
        host = CASES[f"transformers {name}"]
        model, patched, inputs = hosts.twins(host)
        seen = []
        for each in (model, patched):
            each.layers[0].register_forward_hook(lambda module, args, result: seen.append(result[2]))
            host.results(each, inputs)
        torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=1e-12)


@pytest.mark.hosts
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("sam2_video", "Sam2Video"),
        ("edgetam", "EdgeTam"),
        ("edgetam_video", "EdgeTamVideo"),
        ("sam3_tracker", "Sam3Tracker"),
        ("sam3_tracker_video", "Sam3TrackerVideo"),
    ],
)
def test_copies_of_sam2(name, start):
    host = Host("transformers", sam(name, start), sam_inputs, TWO_WAY, 5, two_way)
    module, patched, inputs = hosts.twins(host)
    assert hosts.ops_in(lambda: host.results(patched, inputs)) == host.ops
    hosts.close(host.solve(patched, inputs), host.solve(module, inputs))


def test_replaced_attention_of_a_block():
    block = CASES["transformers Sam"].make().layers[0].eval()
    vt_fast.patch(block)
    points, image = torch.randn(2, 3, 6, 64), torch.randn(6, 1, 64, 64)
    block.cross_attn_image_to_token.out_proj = nn.Sequential(block.cross_attn_image_to_token.out_proj)
    assert runs_own(block, points, image, points, image, None)
