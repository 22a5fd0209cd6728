"""torchvision's detectors on VT-FPN: four and five levels, other strides, odd sizes, a level left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests._support import torchvision_stub
from vt_fast.models import FPN, VTFPN, FeaturePyramid, ResNet

CHANNELS = 16
SMALL = {"num_tokens": 2, "token_channels": 32, "query_groups": None}
STAGES = (64, 128, 256, 512)


@pytest.fixture
def detection(monkeypatch):
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    from torchvision import extension
    from torchvision.models import detection
    from torchvision.ops import boxes

    if not extension._has_ops():
        monkeypatch.setattr(boxes, "nms", nms)
    # roi_align in Python compiles itself, which takes most of a minute.
    with torch._dynamo.config.patch(disable=True):
        yield detection


def nms(boxes, scores, threshold):
    """Non-maximum suppression, which torchvision has in its compiled part only."""
    from torchvision.ops import box_iou

    overlaps, kept = box_iou(boxes, boxes), []
    for index in scores.argsort(descending=True).tolist():
        if all(overlaps[index, other] <= threshold for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


class Dilated(nn.Module):
    """A ResNet-18 whose last stage keeps the resolution: strides 4, 8, 16 and 16."""

    def __init__(self):
        super().__init__()
        self.inside = ResNet(18)
        self.inside.layer4[0].conv1.stride = self.inside.layer4[0].downsample[0].stride = (1, 1)
        self.channels, self.strides = STAGES, (4, 8, 16, 16)

    def features(self, images):
        return self.inside.features(images)


def pyramid(neck=VTFPN, *, first=0, backbone=None, extra_blocks=None):
    options = SMALL if neck is VTFPN else {}
    return FeaturePyramid(
        ResNet(18) if backbone is None else backbone,
        neck(STAGES[first:], CHANNELS, **options),
        out_indices=range(first, 4),
        extra_blocks=extra_blocks,
    )


def batch():
    """Two images of odd and different sizes, with a box each."""
    images = [torch.rand(3, 61, 83), torch.rand(3, 75, 50)]
    targets = [
        {"boxes": torch.tensor([[5.0, 6.0, 45.0, 50.0]]), "labels": torch.tensor([1 + index])}
        for index in range(2)
    ]
    return images, targets


def assert_trains_and_detects(model, levels):
    seen = []
    model.backbone.register_forward_hook(lambda module, args, maps: seen.append(maps))
    images, targets = batch()
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    silent = [
        name
        for name, value in model.backbone.named_parameters()
        # At first W_V is zero, so no gradient reaches what the tokens are made of.
        if value.grad is None
        or (name.startswith("neck.projectors") and "value.weight" in name and not value.grad.any())
    ]
    assert not silent
    assert list(seen[0]) == levels
    found = model.eval()(images)
    for each, image in zip(found, images, strict=True):
        assert each["boxes"].shape[1:] == (4,)
        assert each["boxes"].isfinite().all()
        assert (each["boxes"] <= torch.tensor(image.shape[:0:-1]).repeat(2)).all()
    return seen[0]


SIZE = {"min_size": 64, "max_size": 96}


@pytest.mark.parametrize("neck", [VTFPN, FPN])
@pytest.mark.parametrize("five", [False, True])
def test_faster_rcnn(detection, neck, five):
    """P2 to P5, and P6 for the proposals."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    levels = ["0", "1", "2", "3", "pool"][: 4 + five]
    sizes = tuple((8 << index,) for index in range(len(levels)))
    model = detection.FasterRCNN(
        pyramid(neck, extra_blocks=LastLevelMaxPool() if five else None),
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(levels[:4], output_size=3, sampling_ratio=1),
        rpn_pre_nms_top_n_train=20,
        rpn_pre_nms_top_n_test=20,
        box_detections_per_img=20,
        **SIZE,
    )
    maps = assert_trains_and_detects(model, levels)
    # Padded to a multiple of 32: the larger image of the batch is 75 * 96 / 75 pixels high.
    heights = [level.shape[2] for level in maps.values()]
    assert heights[:4] == [24, 12, 6, 3]
    if five:
        assert torch.equal(maps["pool"], maps["3"][..., ::2, ::2])


@pytest.mark.parametrize("neck", [VTFPN, FPN])
def test_retinanet(detection, neck):
    """P3 to P5 without P2, and P6 and P7 from the backbone's last map."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    extra = LastLevelP6P7(STAGES[-1], CHANNELS)
    model = detection.RetinaNet(
        pyramid(neck, first=1, extra_blocks=extra),
        num_classes=3,
        anchor_generator=AnchorGenerator(tuple((16 << index,) for index in range(5)), ((1.0,),) * 5),
        **SIZE,
    )
    assert not extra.use_P5
    maps = assert_trains_and_detects(model, ["0", "1", "2", "p6", "p7"])
    assert [level.shape[2] for level in maps.values()] == [12, 6, 3, 2, 1]


def test_p6_of_the_necks_last_map(detection):
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    extra = LastLevelP6P7(CHANNELS, CHANNELS)
    maps = pyramid(extra_blocks=extra).eval()(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(maps["p6"], extra.p6(maps["3"]))


@pytest.mark.parametrize("size", [(64, 64), (97, 65), (33, 130), (7, 5)])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_odd_sizes_and_levels_left_out(first, size):
    model = pyramid(first=first).eval()
    assert model.strides == (4, 8, 16, 32)[first:]
    maps = model(torch.randn(1, 3, *size))
    assert [tuple(level.shape) for level in maps.values()] == [
        (1, CHANNELS, *(-(-side // stride) for side in size)) for stride in model.strides
    ]


def test_levels_in_between_may_be_left_out():
    backbone = ResNet(18)
    model = FeaturePyramid(backbone, VTFPN((64, 256, 512), CHANNELS, **SMALL), out_indices=(0, 2, 3)).eval()
    images = torch.randn(1, 3, 64, 96)
    stages = backbone.features(images)
    expected = model.neck([stages[0], stages[2], stages[3]])
    for found, level in zip(model(images).values(), expected, strict=True):
        assert torch.equal(found, level)
    with pytest.raises(
        ValueError, match=r"`neck` must have in_channels = \(64, 256\), .* got \(64, 256, 512"
    ):
        FeaturePyramid(backbone, model.neck, out_indices=(0, 2))
    for indices in ((0, 4), (-5,), ()):
        with pytest.raises(ValueError, match="`out_indices` must be one or more of 0 to 3, got "):
            FeaturePyramid(backbone, model.neck, out_indices=indices)
    from_the_end = FeaturePyramid(backbone, model.neck, out_indices=(-4, -2, -1))
    assert from_the_end.out_indices == (0, 2, 3)


def test_features_of_ones_own():
    class Halved(ResNet):
        def features(self, x):
            return [each / 2 for each in super().features(x)]

    backbone = Halved(18)
    model = FeaturePyramid(backbone, FPN(backbone.channels)).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model.neck([each / 2 for each in ResNet.features(backbone, images)])
    for found, level in zip(model(images).values(), expected, strict=True):
        assert torch.equal(found, level)


@pytest.mark.parametrize("neck", [VTFPN, FPN])
def test_levels_of_equal_stride(neck):
    model = pyramid(neck, backbone=Dilated()).eval()
    maps = model(torch.randn(1, 3, 70, 64))
    assert [tuple(level.shape[2:]) for level in maps.values()] == [(18, 16), (9, 8), (5, 4), (5, 4)]
    assert model.strides == (4, 8, 16, 16)
