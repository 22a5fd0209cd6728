"""VT-ResNets: parts, sizes, backbones, heads and errors."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from tests._support.model_cases import (
    CHANNELS,
    SMALL,
    assert_same,
    classifier,
    features,
    images,
    made,
    outputs_and_gradients,
    small_backbone,
)
from vt_fast import models
from vt_fast.models.resnet import DropPath
from vt_fast.nn import (
    DynamicTokenizer,
    FilterTokenizer,
    LinearPositionCode,
    RecurrentTokenizer,
    StaticTokenizer,
)


@pytest.mark.parametrize(
    ("build", "num_blocks", "channels", "width"),
    [
        (models.vt_resnet18, 2, 256, 512),
        (models.vt_resnet34, 3, 256, 512),
        (partial(models.vt_resnet50, variant="v2"), 3, 1024, 1024),
        (partial(models.vt_resnet101, variant="v2"), 3, 1024, 1024),
    ],
)
def test_the_papers_arrangement(build, num_blocks, channels, width):
    with torch.device("meta"):
        model = build(num_classes=7)
        shape = model.backbone(torch.empty(1, 3, 224, 224)).shape
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 7)
    assert shape == (1, channels, 14, 14)
    assert len(model.stage) == num_blocks
    assert [type(block.tokenizer) for block in model.stage] == [FilterTokenizer] + [RecurrentTokenizer] * (
        num_blocks - 1
    )
    assert [block.tokenizer.channels for block in model.stage] == [channels] + [width] * (num_blocks - 1)
    assert [block.projector is None for block in model.stage] == [False] * (num_blocks - 1) + [True]
    for block in model.stage:
        assert block.tokenizer.num_tokens == 16
        assert block.transformer.token_channels == 1024
        assert block.transformer.token_norm is not None
    assert model.fc.in_features == 1024


@pytest.mark.parametrize("build", [models.vt_resnet50, models.vt_resnet101])
def test_the_first_versions_module_is_the_default_of_the_deep_ones(build):
    with torch.device("meta"):
        model = build(num_classes=7)
    assert [type(block.tokenizer) for block in model.stage] == [
        StaticTokenizer,
        DynamicTokenizer,
        DynamicTokenizer,
    ]
    codes = [block.tokenizer.position for block in model.stage]
    assert [(code.grid, code.features, code.width) for code in codes] == [(14, 49, 1)] * 3
    assert len({id(code) for code in codes}) == 3
    for block in model.stage:
        assert (block.tokenizer.num_tokens, block.tokenizer.channels) == (4, 1024)
        assert (block.transformer.variant, block.transformer.key.groups) == ("v1", 8)
    for block in (model.stage[0], model.stage[1]):
        assert block.projector.value is None
        assert (block.projector.num_heads, block.projector.query.groups) == (16, 16)
    assert model.stage[2].projector is None


def deep_stage(**options):
    """VT-ResNet-50's stage behind a backbone of one convolution."""
    backbone = nn.Conv2d(3, 1024, 16, stride=16)
    return models.VTResNet(backbone=backbone, num_classes=5, variant="v1", num_tokens=4, **options)


def test_the_first_versions_module_folded_is_the_paper_as_written():
    torch.manual_seed(0)
    model = made(deep_stage)
    x = torch.randn(2, 3, 80, 112, dtype=torch.float64)
    folded = outputs_and_gradients(model, x)
    model.backend = "reference"
    assert_same(folded, outputs_and_gradients(model, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_first_versions_module_trains_in_every_dtype(dtype):
    torch.manual_seed(0)
    model = deep_stage(dtype=dtype)
    model.backbone.to(dtype)
    x, labels = torch.randn(8, 3, 64, 64, dtype=dtype), torch.arange(8) % 5
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    found = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(x).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < found[0], found


def test_what_the_variant_sets_can_be_set():
    model = classifier(variant="v1", position="none", later_position=LinearPositionCode(5, 3))
    codes = [block.tokenizer.position for block in model.stage]
    assert codes[0] is None
    assert [code.features for code in codes[1:]] == [3, 3]
    assert codes[1] is not codes[2]
    model = classifier(variant="v1", tokenizer="pooling", relation="graph", projector_value=True)
    assert all(block.tokenizer.position is None for block in model.stage)
    assert model.stage[0].projector.value is not None
    assert all(block.transformer.linear.groups == 1 for block in model.stage)


def test_the_head_takes_the_mean_of_the_tokens():
    model = classifier().double().eval()
    tokens = model.stage(model.backbone(images()))[1]
    expected = tokens.mean(1) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(images()), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        model.forward_head(tokens, pre_logits=True), tokens.mean(1), rtol=0, atol=1e-12
    )


def test_dropout_is_before_the_classifier_and_in_training_alone():
    model = classifier(drop_rate=0.5).double()
    model.fc.weight.data.fill_(0)
    assert torch.equal(model(images()), model.fc.bias.expand(2, 5)), "nothing is dropped after the classifier"
    model.reset_classifier(0)
    assert (model(images()) == 0).any()
    assert not (model.eval()(images()) == 0).any()


def test_drop_path_rate_rises_over_the_backbone():
    rates = [
        part.rate
        for part in models.vt_resnet18(drop_path_rate=0.25).backbone.modules()
        if isinstance(part, DropPath)
    ]
    assert rates == pytest.approx([0.25 * index / 5 for index in range(6)])


def test_reset_classifier():
    model = classifier().double()
    model.reset_classifier(0)
    assert model(images()).shape == (2, SMALL["token_channels"])
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model.get_classifier() is model.fc
    assert model(images()).shape == (2, 3)
    with pytest.raises(ValueError, match="`num_classes` must be at least 0, got -1"):
        model.reset_classifier(-1)


def test_tokenizers_of_the_first_version():
    model = classifier(tokenizer="static", position=LinearPositionCode(5, 3))
    assert isinstance(model.stage[1].tokenizer, DynamicTokenizer)
    assert model.stage[1].tokenizer.num_heads == 16
    assert model.stage[0].projector.num_heads == 16
    assert model.stage[0].tokenizer.position.features == 3


def test_without_projector_later_modules_are_transformers():
    model = classifier(projector=False)
    assert [block.tokenizer is None for block in model.stage] == [False, True, True]
    assert all(block.projector is None for block in model.stage)


@pytest.mark.parametrize("depth", [18, 50])
def test_features(depth):
    with torch.device("meta"):
        model = models.VTResNetFeatures(depth)
        maps = model(torch.empty(1, 3, 224, 224))
    assert model.channels == ((64, 128, 256, 512) if depth == 18 else (256, 512, 1024, 1024))
    assert model.strides == (4, 8, 16, 16)
    for each, channels, stride in zip(maps, model.channels, model.strides, strict=True):
        assert each.shape == (1, channels, 224 // stride, 224 // stride)


def test_features_chosen_by_index():
    torch.manual_seed(0)
    model = models.VTResNetFeatures(18, out_indices=(-1, 1)).eval()
    assert model.channels == (512, 128)
    assert model.strides == (16, 8)
    torch.manual_seed(0)
    whole = models.VTResNetFeatures(18).eval()
    x = torch.randn(1, 3, 64, 64)
    maps = whole(x)
    for each, expected in zip(model(x), (maps[3], maps[1]), strict=True):
        assert torch.equal(each, expected)
    early = models.VTResNetFeatures(18, out_indices=(0,))
    early.stage = None  # is not asked
    assert [each.shape for each in early(x)] == [(1, 64, 16, 16)]


def test_features_of_another_backbone():
    model = features(out_channels=24, group_width=None).double()
    assert model.channels == (CHANNELS, 24)
    assert model.strides == (4, 4)
    assert [each.shape[1:] for each in model(images())] == [(CHANNELS, 7, 9), (24, 7, 9)]


def test_a_classifiers_weights_fit_the_features():
    trained, model = classifier().double().eval(), features().double().eval()
    found = model.load_state_dict(trained.state_dict(), strict=False)
    assert set(found.unexpected_keys) == {"fc.weight", "fc.bias"}
    assert {name.split(".")[3] for name in found.missing_keys} == {"projector"}
    tokens = model.stage(model.backbone(images()))[1]
    torch.testing.assert_close(tokens, trained.forward_features(images()), rtol=0, atol=1e-10)


def test_a_resnet_as_backbone():
    """Its stages are known, and the paper's number of blocks for it."""
    backbone = models.ResNet(18, stages=3, norm_layer=lambda channels: nn.GroupNorm(8, channels))
    model = models.VTResNetFeatures(backbone=backbone, **SMALL)
    assert len(model.stage) == 2
    assert model.strides == (4, 8, 16, 16)
    assert len(model(torch.zeros(1, 3, 32, 32))) == 4
    with pytest.raises(ValueError, match=r"`backbone` must return a map \(B, C, H, W\), got \(1, 5\)"):
        models.VTResNet(backbone=models.ResNet(18, num_classes=5))


def test_the_probe_of_a_backbone_changes_nothing():
    backbone = small_backbone()
    backbone[1].eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = models.VTResNet(backbone=backbone, **SMALL)
    assert model.backbone is backbone
    assert backbone.training
    assert not backbone[1].training
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_backbones_of_other_image_channels_and_given_channels():
    gray = models.VTResNet(backbone=nn.Conv2d(1, 32, 4, stride=4), num_classes=5, **SMALL)
    assert gray(torch.zeros(1, 1, 16, 16)).shape == (1, 5)
    opaque = nn.Unflatten(1, (32, -1))  # takes no image, so it cannot be probed
    model = models.VTResNet(backbone=opaque, backbone_channels=32, num_classes=5, **SMALL)
    assert model(torch.zeros(1, 32 * 6, 4)).shape == (1, 5)


def test_backend_is_that_of_all_members():
    model = classifier(backend="reference")
    assert model.backend == "reference"
    assert {block.tokenizer.backend for block in model.stage} == {"reference"}
    model.backend = None
    assert {block.tokenizer.backend for block in model.stage} == {None}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: models.VTResNet(),
            "either `depth` or `backbone` must be given, got depth = None and no backbone",
        ),
        (
            lambda: models.VTResNet(18, backbone=small_backbone()),
            "got depth = 18 and a backbone of type Sequential",
        ),
        (lambda: models.VTResNet(20), "`depth` must be one of 18, 26, 34, 50, 101, 200, got 20"),
        (
            lambda: models.VTResNet(18, backbone_channels=3),
            "`backbone_channels` must be None without `backbone`, got 3",
        ),
        (lambda: models.vt_resnet18(drop_path_rate=2.0), r"`drop_path_rate` must be in \[0, 1\), got 2.0"),
        (lambda: models.ResNet(50, drop_path_rate=-0.1), r"`drop_path_rate` must be in \[0, 1\), got -0.1"),
        (lambda: classifier(drop_path_rate=0.1), "`drop_path_rate` must be 0 with `backbone`, .* got 0.1"),
        (
            lambda: models.VTResNet(backbone=nn.Linear(3, 4)),
            r"`backbone` must take a map \(1, 3, 224, 224\), got",
        ),
        (
            lambda: models.VTResNet(backbone=nn.Flatten()),
            r"must return a map \(B, C, H, W\), got \(1, 150528\)",
        ),
        (
            lambda: classifier(tokenizer="recurrent"),
            '`tokenizer` must be one of "filter", "clustering", "pooling", "static", got \'recurrent\'',
        ),
        (lambda: classifier(relation="attention"), '`relation` must be one of "transformer", .*attention'),
        (
            lambda: classifier(projector=False, later_tokenizer="filter"),
            "`later_tokenizer` must be None without projectors",
        ),
        (
            lambda: classifier(position="sine"),
            '`position` must be one of "conv", "linear", "none", got \'sine\'',
        ),
        (
            lambda: classifier(later_position="sine"),
            '`later_position` must be one of "conv", "linear", "none", got \'sine\'',
        ),
        (lambda: classifier(variant="v3"), '`variant` must be one of "v2", "v1", "scaled" or None, got'),
        (lambda: classifier(num_blocks=0), "`num_blocks` must be at least 1, got 0"),
        (lambda: features(projector=False), "`projector` must be True if a map is returned, got False"),
        (lambda: features(out_indices=(0, 2)), r"`out_indices` must be one or more of 0 to 1, got \(0, 2\)"),
        (lambda: features(out_indices=()), r"`out_indices` must be one or more of 0 to 1, got \(\)"),
        (lambda: classifier(backend="cuda9"), "`backend` must be None or one of"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_flags():
    for name, make in (
        ("projector", classifier),
        ("stride_in_1x1", lambda **flag: models.ResNet(18, **flag)),
    ):
        with pytest.raises(TypeError, match=f"`{name}` must be a bool, got str"):
            make(**{name: "no"})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda **option: classifier(**option), "VTResNet"),
        (lambda **option: features(**option), "VTResNetFeatures"),
        (lambda **option: models.VTStage(8, 1, 8, **option), "VTStage"),
        (lambda **option: models.FPN((4,), **option), "FPN"),
        (lambda **option: models.VTFPN((4,), **option), "VTFPN"),
        (lambda **option: models.convert(models.ResNet(18), **option), "convert"),
        (lambda **option: models.vt_resnet18(**option), "vt_resnet18"),
        (lambda **option: models.vt_resnet101(5, **option), "vt_resnet101"),
    ],
)
def test_unknown_options(make, name):
    for option in ("trunk", "pretrained"):
        with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument '{option}'$"):
            make(**{option: True})


@pytest.mark.parametrize("name", ["VTResNet", "VTResNetFeatures", "VTStage", "convert", "vt_resnet34"])
def test_signatures_list_every_keyword(name):
    parameters = inspect.signature(getattr(models, name)).parameters
    assert {"num_tokens", "tokenizer", "token_norm", "width", "backend"} <= parameters.keys()
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    assert parameters["group_width"].default == 64


def test_a_hook_on_the_backbone_sees_its_map():
    model = models.VTResNet(18, num_classes=3, token_channels=64, num_tokens=4)
    seen = []
    model.backbone.register_forward_hook(lambda module, args, result: seen.append(tuple(result.shape)))
    model(torch.zeros(1, 3, 64, 64))
    assert seen == [(1, 256, 4, 4)]


def test_images_of_other_channels():
    options = {"token_channels": 64, "num_tokens": 4}
    assert models.VTResNet(18, 3, in_channels=5, **options)(torch.zeros(1, 5, 64, 64)).shape == (1, 3)
    net = models.vt_fpn(
        backbone=models.ResNet(18, in_channels=5), num_classes=3, num_tokens=2, token_channels=32
    )
    assert net(torch.zeros(1, 5, 64, 64)).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"`images` must be \(B, 5, H, W\), got \(1, 3, 64, 64\)"):
        net(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="`in_channels` must be 3 with `backbone`"):
        models.VTResNet(backbone=models.ResNet(18, stages=3), in_channels=5, **options)
