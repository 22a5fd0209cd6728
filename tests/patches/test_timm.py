"""What the patch of timm's vision transformers refuses, and which calls run the model's own forward."""

import pytest
import torch
from torch import nn

import vt_fast
from tests._support import hosts
from tests.patches.cases import vit
from tests.patches.test_patch import fails_alike, latent, reason, runs_own

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]


@pytest.fixture(autouse=True)
def _needs_timm():
    hosts.need("timm")


def images():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"global_pool": "avg"}, "reads all tokens: global_pool is 'avg'"),
        ({"global_pool": "map"}, "reads all tokens: global_pool is 'map'"),
        ({"qk_norm": True}, "its attention has norms"),
        ({"attn_layer": "diff"}, "its attention is a DiffAttention"),
        ({"norm_layer": "rmsnorm"}, "its norm1 is a RmsNorm"),
    ],
)
def test_refused(options, text):
    (row,) = [row for row in vt_fast.patch(vit(**options)()).rows if row.path == ""]
    assert not row.replaced
    assert text in row.note


def test_other_blocks_and_members():
    from timm.models.vision_transformer import ParallelScalingBlock

    assert "last block is a ParallelScalingBlock" in reason(vit(block_fn=ParallelScalingBlock)())
    model = vit()()
    model.blocks[1].mlp = nn.Sequential(model.blocks[1].mlp)
    assert "its MLP is a Sequential" in reason(model)
    model = vit()()
    model.blocks[1].attn.gate = nn.Linear(32, 32)
    assert "has a gate" in reason(model)
    model = vit()()
    model.forward_head = model.forward_head
    assert "a forward_head of its own" in reason(model)


class Mixing(nn.Module):
    """An adapter through which tokens see each other."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + x.mean(1, keepdim=True)


def test_members_of_unknown_classes():
    model = vit()()
    model.blocks[-1].attn.proj = Mixing(model.blocks[-1].attn.proj)
    assert "its last block has a Mixing, which may mix tokens" in reason(model)
    model, x = vit()(), images()
    vt_fast.patch(model)
    model.blocks[-1].ls1 = Mixing(model.blocks[-1].ls1)
    assert runs_own(model, x)


def test_a_scale_of_its_own():
    model, x = vit()().double().eval(), images().double()
    for block in model.blocks:
        block.attn.fused_attn = False
    model.blocks[-1].attn.scale = 0.05
    expected = model(x)
    assert vt_fast.patch(model).replaced
    torch.testing.assert_close(model(x), expected)


def test_without_a_class_token():
    assert not vt_fast.patch(vit(class_token=False, global_pool="avg")()).rows


def test_what_reads_other_tokens_is_as_before():
    model, x = vit(reg_tokens=1)().eval(), images()
    features, intermediates = model.forward_features(x), model.forward_intermediates(x)
    vt_fast.patch(model)
    assert torch.equal(model.forward_features(x), features)
    found = model.forward_intermediates(x)
    assert torch.equal(found[0], intermediates[0])
    assert all(map(torch.equal, found[1], intermediates[1]))


@pytest.mark.parametrize("name", ["blocks", "blocks.1", "blocks.1.attn.qkv", "blocks.1.mlp.fc1", "norm"])
def test_hooks_see_all_tokens(name):
    model, seen = vit()().eval(), []
    vt_fast.patch(model)
    assert hosts.ops_in(lambda: model(images())) == 1
    model.get_submodule(name).register_forward_hook(lambda module, args, result: seen.append(result.shape[1]))
    assert runs_own(model, images())
    assert set(seen) == {17}


def test_hooks_of_the_other_blocks_change_nothing():
    model, seen = vit()().eval(), []
    vt_fast.patch(model)
    model.blocks[0].register_forward_hook(lambda module, args, result: seen.append(result.shape[1]))
    assert hosts.ops_in(lambda: model(images())) == 1
    assert set(seen) == {17}


def test_masks_and_checkpointing():
    model = vit()().eval()
    vt_fast.patch(model)
    assert runs_own(model, images(), attn_mask=torch.zeros(17, 17))
    assert runs_own(model, images(), is_causal=True)
    model.reset_classifier(3, "avg")
    assert runs_own(model, images())
    model.reset_classifier(3, "token")
    assert hosts.ops_in(lambda: model(images())) == 1
    model.set_grad_checkpointing()
    assert runs_own(model, images())


@pytest.mark.parametrize("name", ["attn_drop_rate", "proj_drop_rate"])
def test_dropout_in_training(name):
    model = vit(**{name: 0.5})()
    vt_fast.patch(model)
    assert runs_own(model.train(), images())
    assert hosts.ops_in(lambda: model.eval()(images())) == 1


@pytest.mark.parametrize("part", ["attn", "attn.attn_drop", "mlp.drop1"])
def test_dropout_of_a_last_block_that_is_trained_alone(part):
    model = vit(attn_drop_rate=0.5, proj_drop_rate=0.5)().eval()
    vt_fast.patch(model)
    model.blocks[-1].get_submodule(part).training = True
    assert runs_own(model, images())


def test_containers_of_blocks():
    model, seen = vit()().eval(), []
    vt_fast.patch(model)
    model.blocks.register_forward_pre_hook(lambda *args: seen.append(1))
    assert runs_own(model, images())
    assert seen
    model = vit()()
    model.blocks.forward = model.blocks.forward  # as accelerate does
    assert "blocks has hooks or another forward" in reason(model)
    model = vit()()
    model.blocks = type("Blocks", (nn.Sequential,), {})(*model.blocks)
    assert reason(model) == "blocks is a Blocks"


def test_drop_path_draws_the_same():
    model = vit(drop_path_rate=0.9, init_values=1.0)().double().train()
    x, expected = images().double(), []
    for patched in (False, True):
        if patched:
            vt_fast.patch(model)
        torch.manual_seed(3)
        expected.append(model(x))
    torch.testing.assert_close(expected[1], expected[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float64])
def test_masks_of_dtypes_that_attention_does_not_take(dtype):
    module = latent().eval()
    vt_fast.patch(module)
    assert fails_alike(module, torch.randn(2, 50, 32), torch.ones(2, 1, 1, 50, dtype=dtype))


@pytest.mark.parametrize("shape", [(50, 32), (2, 50, 24)])
def test_latent_pooling_of_other_shapes(shape):
    module = latent().eval()
    vt_fast.patch(module)
    assert fails_alike(module, torch.randn(shape))
