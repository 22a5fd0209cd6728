"""The networks of table 8: they train in every dtype and have a ResNet's names."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests._support import torchvision_stub
from vt_fast import models
from vt_fast.models import attention

# The smallest network of each kind; SAN reflects its last map.
SMALL = {
    "se_resnet18": 64,
    "cbam_resnet18": 64,
    "lr_resnet18": 64,
    "aa_resnet34": 64,
    "sasa_resnet50": 64,
    "a2_resnet50": 64,
    "glore_resnet50": 64,
    "san19_pairwise": 128,
    "san19_patchwise": 128,
}
NEEDS_TIMM = ("se_", "cbam_")


@pytest.fixture
def timm():
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    return pytest.importorskip("timm")


@pytest.fixture
def make(request):
    def make(name, **options):
        if name.startswith(NEEDS_TIMM):
            request.getfixturevalue("timm")
        return attention.NETWORKS[name](num_classes=5, **options)

    return make


def test_names_and_depths():
    assert set(attention.NETWORKS) == {
        *(f"{kind}_resnet{depth}" for kind in ("se", "cbam") for depth in (18, 34, 50, 101)),
        *(f"lr_resnet{depth}" for depth in (18, 50, 101)),
        *(f"aa_resnet{depth}" for depth in (34, 50, 101)),
        *("sasa_resnet50", "a2_resnet50", "glore_resnet50", "glore_resnet200"),
        *("san19_pairwise", "san19_patchwise"),
    }
    assert {name.split("_resnet")[0].split("19")[0] for name in SMALL} == {
        name.split("_resnet")[0].split("19")[0] for name in attention.NETWORKS
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "autocast"])
@pytest.mark.parametrize("name", SMALL)
def test_trains_a_step(make, name, dtype):
    """Every parameter gets a gradient once what starts at zero no longer does."""
    given = torch.float32 if dtype == "autocast" else getattr(torch, dtype)
    net = make(name, dtype=given)
    for parameter in net.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.1)
    side = SMALL[name]
    images, labels = torch.randn(4, 3, side, side, dtype=given), torch.tensor([0, 1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        logits = net(images)
        loss = F.cross_entropy(logits.float(), labels)
    assert logits.dtype == (torch.bfloat16 if dtype == "autocast" else given)
    loss.backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    torch.optim.SGD(net.parameters(), lr=1e-3).step()
    assert net(images).isfinite().all()


@pytest.mark.parametrize("name", [name for name in SMALL if "resnet" in name])
def test_names_are_those_of_a_resnet(make, name):
    net = make(name)
    plain = models.ResNet(net.depth, 5)
    replaced = {"lr": ("conv2",), "aa": ("conv1", "conv2"), "sasa": ("conv1", "conv2")}.get(
        name.split("_")[0], ()
    )
    missing = plain.state_dict().keys() - net.state_dict().keys()
    assert all(key.split(".")[-2] in replaced for key in missing)
    assert bool(missing) == bool(replaced)


@pytest.mark.parametrize(("kind", "layer"), [("se", "se"), ("cbam", "cbam")])
def test_equals_timms_network(timm, kind, layer):
    """And takes its parameters."""
    other = timm.create_model("resnet50", block_args={"attn_layer": layer}, num_classes=5).eval()
    for parameter in other.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.1, 0.5)
    net = attention.attention_resnet(kind, 50, 5).eval()
    net.load_state_dict(other.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(net(x), other(x), rtol=1e-4, atol=1e-4)


def test_units_are_where_the_papers_put_them():
    def units(net):
        return [name for name, _ in net.named_modules() if name.endswith("_unit")]

    with torch.device("meta"):
        a2, glore = attention.attention_resnet("a2", 50), attention.attention_resnet("glore", 50)
        deep = attention.attention_resnet("glore", 200)
    third = ["layer3.1_unit", "layer3.3_unit", "layer3.5_unit"]
    assert units(a2) == ["layer2.1_unit", "layer2.3_unit", *third]
    assert units(glore) == third
    assert units(deep) == [
        *("layer2.11_unit", "layer2.23_unit", "layer3.11_unit", "layer3.23_unit", "layer3.35_unit"),
    ]


def test_backend_reaches_the_units_alone():
    net = attention.attention_resnet("a2", 50, backend="reference")
    assert {part.backend for part in net.modules() if hasattr(part, "backend")} == {"reference"}


def test_augmented_networks_take_images_up_to_their_size():
    net = attention.attention_resnet("aa", 34, 5, image_size=64).eval()
    for side in (64, 50, 33):
        assert net(torch.zeros(1, 3, side, side)).shape == (1, 5)
    with pytest.raises(ValueError, match="maps of at most 4 x 4, got 5 x 5"):
        net(torch.zeros(1, 3, 80, 80))


def test_traced_networks_have_the_layers_as_nodes():
    for kind in ("a2", "glore", "lr", "sasa", "aa"):
        graph = torch.fx.symbolic_trace(attention.attention_resnet(kind, 50, 5).eval())
        x = torch.randn(1, 3, 64, 64)
        assert graph(x).shape == (1, 5)


def test_timm_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in [name for name in sys.modules if name.startswith("timm.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="`SEModule` needs timm"):
        importlib.import_module("vt_fast.models.attention.gates").squeeze_excitation(16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attention.attention_resnet("non-local", 50), '`kind` must be one of "se", "cbam"'),
        (
            lambda: attention.attention_resnet("lr", 18),
            '`depth` must be one with bottlenecks for "lr", got 18',
        ),
        (
            lambda: attention.attention_resnet("a2", 50, stages=2),
            '`stages` must be 3 or 4 for "a2", got 2',
        ),
        (lambda: attention.SAN("pairwise", 20), "`depth` must be one of 10, 15, 19, got 20"),
        (lambda: attention.SAN("global"), '`variant` must be one of "pairwise", "patchwise"'),
        (lambda: attention.LocalRelation(8, size=4), "`size` must be odd, got 4"),
        (lambda: attention.StandAloneAttention(12), "`2 num_heads` must divide out_channels = 12, got 16"),
        (lambda: attention.PairwiseAttention(48), "`share` must divide out_channels = 12, got 8"),
        (
            lambda: attention.AugmentedConv2d(8, 8, value_channels=8, max_size=7),
            "`value_channels` must be below out_channels = 8, got 8",
        ),
        (
            lambda: models.ResNet(34, width_per_group=100),
            "`width_per_group` must be 64 for depth 34, got 100",
        ),
        (lambda: attention.DoubleAttention(8)(torch.zeros(1, 6, 4, 4)), "`x` must be .* C = 8, got"),
        (lambda: attention.LocalRelation(8)(torch.zeros(1, 9, 8)), "must be \\(B, C, H, W\\)"),
        (lambda: attention.PairwiseAttention(32)(torch.zeros(1, 32, 3, 9)), "must be larger than 3 pixels"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
