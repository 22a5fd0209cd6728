"""The public names, pinned: adding or losing one is a decision, not an accident."""

import vt_fast
from vt_fast import functional

NAMES = (
    "__version__ convert distributed flops functional merge models nn onnx patch patches project "
    "project_tokenize reference streaming testing tokenize unpatch"
)
MODEL_NAMES = (
    "FPN FeaturePyramid LoadReport MeanIoU PanopticHead ResNet SegmentationNet VTFPN VTResNet "
    "VTResNetFeatures VTStage attention_resnet convert fpn load_backbone register_with_timm "
    "segmentation_loss vt_fpn vt_resnet18 vt_resnet34 vt_resnet50 vt_resnet101"
)


def test_names():
    assert set(vt_fast.__all__) == set(NAMES.split())
    assert set(functional.__all__) == {"merge", "project", "project_tokenize", "tokenize"}
    for name in vt_fast.__all__:
        assert getattr(vt_fast, name) is not None
        assert name in dir(vt_fast)


def test_convert_is_that_of_models():
    assert vt_fast.convert is vt_fast.models.convert


def test_names_of_models():
    assert set(vt_fast.models.__all__) == set(MODEL_NAMES.split())
    for name in vt_fast.models.__all__:
        assert callable(getattr(vt_fast.models, name))


def test_unknown_names():
    assert not hasattr(vt_fast, "tokenise")


def test_the_functions_are_those_of_functional():
    for name in functional.__all__:
        assert getattr(vt_fast, name) is getattr(functional, name)
