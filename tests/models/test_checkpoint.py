"""Load trained ResNets into backbones."""

from __future__ import annotations

import pytest
import torch

from tests._support import torchvision_stub
from tests._support.model_cases import small_backbone
from vt_fast import models
from vt_fast.models import ResNet, load_backbone

NARROW = {"token_channels": 64, "num_tokens": 4, "width": 256}


def resnet(depth=18):
    """A ResNet with random BatchNorm statistics."""
    model = ResNet(depth, num_classes=10)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


def vt(**options):
    return models.VTResNet(18, num_classes=5, **{**NARROW, **options})


def assert_loaded(model, source):
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


@pytest.mark.parametrize("network", [vt, lambda: models.VTResNetFeatures(18, **NARROW)])
def test_a_state_dict(network):
    source, model = resnet(), network()
    before = {name: value.clone() for name, value in model.stage.state_dict().items()}
    report = load_backbone(model, source.state_dict())
    assert_loaded(model, source)
    assert report.complete
    assert set(report.taken) == set(model.backbone.state_dict())
    assert {name.split(".")[0] for name in report.left} == {"layer4", "fc"}
    assert report.section is None
    first, second = str(report).splitlines()
    assert first == f"{len(report.taken)} taken, {len(report.left)} left in the checkpoint"
    assert second.startswith("not compared with the checkpoint's network")
    for name, value in model.stage.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("section", ["state_dict", "model", "state_dict_ema", "ema", None])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "backbone.", "module.backbone."])
def test_sections_and_prefixes(section, prefix):
    source, model = resnet(), vt()
    tensors = {prefix + name: value for name, value in source.state_dict().items()}
    report = load_backbone(model, tensors if section is None else {section: tensors, "epoch": 3})
    assert report.complete
    assert report.section == section
    assert_loaded(model, source)


def test_averaged_weights_are_preferred():
    plain, averaged, model = resnet(), resnet(), vt()
    load_backbone(model, {"state_dict": plain.state_dict(), "state_dict_ema": averaged.state_dict()})
    assert_loaded(model, averaged)


def test_an_entry_without_tensors_is_not_the_model():
    source, model = resnet(), vt()
    report = load_backbone(model, {"state_dict": source.state_dict(), "state_dict_ema": {"decay": 0.9}})
    assert report.section == "state_dict"
    assert_loaded(model, source)


def test_files(tmp_path):
    source = resnet()
    torch.save({"state_dict": source.state_dict(), "epoch": 1}, tmp_path / "source.pth")
    for path in (tmp_path / "source.pth", str(tmp_path / "source.pth")):
        model = vt()
        assert load_backbone(model, path).section == "state_dict"
        assert_loaded(model, source)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    source, model = resnet(), vt()
    safetensors.save_file(source.state_dict(), tmp_path / "source.safetensors")
    assert load_backbone(model, tmp_path / "source.safetensors").complete
    assert_loaded(model, source)


def test_code_in_a_file_does_not_run(tmp_path):
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, tmp_path / "module.pth")
    with pytest.raises(
        ValueError, match=r"holds a torch\.nn\.modules\.linear\.Linear; if you trust it, pass"
    ):
        load_backbone(vt(), tmp_path / "module.pth")


def test_a_classifier_of_another_size_is_reported():
    source, model = resnet(), ResNet(18, num_classes=3)
    report = load_backbone(model, source.state_dict())
    assert report.mismatched == {"fc.weight": ((10, 512), (3, 512)), "fc.bias": ((10,), (3,))}
    assert not report.complete
    assert "fc.weight: (10, 512) in the checkpoint, (3, 512) in the backbone" in str(report)
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_missing_parameters_are_reported_and_unchanged():
    source, model = resnet().state_dict(), vt()
    del source["layer2.0.conv1.weight"]
    source = {name: value for name, value in source.items() if not name.endswith("num_batches_tracked")}
    kept = model.backbone.layer2[0].conv1.weight.clone()
    report = load_backbone(model, source)
    assert report.missing == ("layer2.0.conv1.weight",), "batch counters are not listed"
    assert "missing in the checkpoint: layer2.0.conv1.weight" in str(report)
    assert torch.equal(model.backbone.layer2[0].conv1.weight, kept)


def test_another_dtype_becomes_the_models():
    source, model = resnet(), vt().double()
    load_backbone(model, source.state_dict())
    assert model.backbone.conv1.weight.dtype == torch.float64
    assert torch.equal(model.backbone.conv1.weight, source.conv1.weight.double())


class Own(torch.Tensor):
    """Of a class that nothing here knows."""


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, "got no tensors"),
        ({"state_dict": {"epoch": 3}}, "got no tensors"),
        (
            {"encoder.weight": torch.zeros(3)},
            "such as conv1.weight, bn1.weight, .* got encoder.weight; 0 taken",
        ),
        (
            {"conv1.weight": torch.zeros(3)},
            r"conv1.weight: \(3,\) in the checkpoint, \(64, 3, 7, 7\) in the ba",
        ),
        ({"bn1.num_batches_tracked": torch.tensor(4)}, "got bn1.num_batches_tracked"),
        (
            {"bn1.weight": torch.ones(64), "module.bn1.weight": torch.zeros(64)},
            "must have bn1.weight once, got it with a wrapper's prefix and without",
        ),
        (
            {"bn1.weight": torch.ones(64), "bn1.bias": torch.zeros(64, dtype=torch.int8)},
            r"floating-point numbers of 16 bits or more, got bn1.bias \(Tensor of torch.int8, torch.strided",
        ),
        (
            {"bn1.weight": torch.ones(64), "bn1.bias": torch.zeros(64).to_sparse()},
            r"must hold plain dense tensors of .* got bn1.bias \(Tensor of torch.float32, torch.sparse_coo\)",
        ),
        (
            {"bn1.weight": torch.ones(64), "bn1.bias": torch.zeros(64, dtype=torch.float8_e4m3fn)},
            r"got bn1.bias \(Tensor of torch.float8_e4m3fn, torch.strided\)",
        ),
        (
            {"bn1.weight": torch.ones(64), "bn1.bias": torch.zeros(64).as_subclass(Own)},
            r"got bn1.bias \(Own of torch.float32, torch.strided\)",
        ),
    ],
)
def test_nothing_fits(checkpoint, message):
    model = vt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_backbone(model, checkpoint)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_numbers_that_are_not_finite_are_reported():
    source, model = resnet().state_dict(), vt()
    source["layer2.0.bn1.running_var"][3] = torch.nan
    report = load_backbone(model, source)
    shown = "layer2.0.bn1.running_var (torch.float32)"
    assert report.different == (f"numbers of the checkpoint that are not finite in the backbone: {shown}",)
    assert not report.complete


def test_numbers_that_overflow_are_reported():
    source = resnet().state_dict()
    source["layer2.0.conv1.weight"] *= 1e7
    assert load_backbone(vt(), source).complete
    report = load_backbone(vt().half(), source)
    assert "not finite in the backbone: layer2.0.conv1.weight (torch.float16)" in str(report)
    assert not report.complete


@pytest.mark.filterwarnings("error:for layer:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_on_meta_gets_copies(dtype):
    """In its own dtype, whatever the checkpoint's is."""
    source = resnet().to(dtype).requires_grad_(False)
    model = vt(device="meta")
    torch.nn.Module.to_empty(model.backbone.layer2, device="cpu")
    kept = model.backbone.layer2[0].conv1.weight
    report = load_backbone(model, source)
    assert report.complete, report
    assert model.backbone.layer2[0].conv1.weight is kept, "which is not on meta"
    for name, value in model.backbone.state_dict(keep_vars=True).items():
        given = source.state_dict()[name]
        assert value.dtype == (torch.float32 if given.is_floating_point() else given.dtype)
        assert value.requires_grad == isinstance(value, torch.nn.Parameter)
        assert torch.equal(value, given.to(value.dtype))
        value.detach().fill_(3)
        assert not torch.equal(value, source.state_dict()[name].to(value.dtype)), name


def test_the_entry_of_a_prefix():
    """DINO's checkpoints have one for the student and one for the teacher."""
    source, other, model = resnet(), resnet(), vt()
    entries = {
        name: {f"{start}backbone.{key}": value for key, value in net.state_dict().items()}
        for name, start, net in (("student", "module.", other), ("teacher", "", source))
    }
    for checkpoint in ({**entries, "epoch": 1}, {"model": {**entries}, "state_dict": {"epoch": 3}}):
        if "model" in checkpoint:
            prefix, section = "model.teacher.backbone.", "model.teacher"
        else:
            prefix, section = "teacher.backbone.", "teacher"
        report = load_backbone(model, checkpoint, prefix=prefix)
        assert report.complete
        assert report.section == section
        assert_loaded(model, source)


@pytest.mark.parametrize(
    "name", ["empty.pth", "truncated.pth", "old.pth", "empty.safetensors", "cut.safetensors"]
)
def test_damaged_files_are_named(name, tmp_path):
    path = tmp_path / name
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors.torch").save_file(resnet().state_dict(), path)
    else:
        torch.save(resnet().state_dict(), path, _use_new_zipfile_serialization=name != "old.pth")
    path.write_bytes(path.read_bytes()[: 0 if name.startswith("empty") else 100_000])
    with pytest.raises(ValueError, match=f"`checkpoint` must .*, got {name}"):
        load_backbone(vt(), path)
    with pytest.raises(FileNotFoundError):
        load_backbone(vt(), tmp_path / f"missing{path.suffix}")


def test_wrong_types(tmp_path):
    with pytest.raises(TypeError, match="`model` must be a ResNet or have a `backbone`, got Sequential"):
        load_backbone(small_backbone(), {})
    with pytest.raises(TypeError, match="`checkpoint` must be a mapping or a path, got int"):
        load_backbone(vt(), 3)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(TypeError, match=r"`checkpoint` must hold a mapping, got list in list\.pth"):
        load_backbone(vt(), tmp_path / "list.pth")


def randomised(model):
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * 0.1)
    return model.eval()


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("depth", [18, 50])
def test_the_backbone_computes_what_theirs_does(library, depth):
    """Their network up to its third stage, in float64, from their own state dict."""
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    if library == "torchvision":
        import torchvision

        theirs = randomised(getattr(torchvision.models, f"resnet{depth}")(num_classes=10).double())
    else:
        timm = pytest.importorskip("timm")
        theirs = randomised(timm.create_model(f"resnet{depth}", num_classes=10).double())
    found = {}
    theirs.layer3.register_forward_hook(lambda module, inputs, output: found.update(map=output))
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        logits = theirs(x)
        model = models.VTResNet(depth, num_classes=5, token_channels=64, group_width=None).double().eval()
        assert load_backbone(model, theirs.state_dict()).complete
        torch.testing.assert_close(model.backbone(x), found["map"], rtol=1e-10, atol=1e-10)
        whole = ResNet(depth, num_classes=10).double().eval()
        report = load_backbone(whole, theirs.state_dict())
        assert report.complete
        assert report.left == ()
        torch.testing.assert_close(whole(x), logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depths", [(34, 18), (101, 50)])
def test_another_depth_is_not_complete(depths):
    given, wanted = depths
    report = load_backbone(ResNet(wanted, stages=3), ResNet(given).state_dict())
    assert not report.missing
    assert not report.complete
    assert "layers of the checkpoint that the backbone lacks: layer" in str(report)


@pytest.mark.parametrize("given", ["state dict", "network"])
def test_strides_in_another_place_are_not_complete(given):
    source, backbone = ResNet(50), ResNet(50, stages=3, stride_in_1x1=True)
    report = load_backbone(backbone, source if given == "network" else source.state_dict())
    assert not report.complete
    assert "make the backbone with stride_in_1x1=False" in str(report)
    assert load_backbone(backbone, source.state_dict(), stride_in_1x1=True).complete  # as the caller says
    assert load_backbone(ResNet(50, stages=3), source).complete


def test_a_network_is_compared_by_what_it_computes():
    source = resnet(18)
    assert load_backbone(ResNet(18, stages=3), source).complete
    source.layer2[0].relu = torch.nn.GELU()
    report = load_backbone(ResNet(18, stages=3), source)
    assert len(report.different) == 1
    assert report.different[0].startswith("layer2 computes something else than the network's: off by")


@pytest.mark.parametrize("prefix", ["encoder.", "backbone.body.", "module.encoder_q."])
def test_a_prefix_of_ones_own(prefix):
    source, model = resnet(), vt()
    tensors = {prefix + name: value for name, value in source.state_dict().items()}
    tensors["decoder.conv1.weight"] = torch.ones(1)
    report = load_backbone(model, tensors, prefix=prefix.removeprefix("module."))
    assert report.complete
    assert_loaded(model, source)


def test_a_prefix_that_no_name_has_is_refused():
    source = models.ResNet(18)
    with pytest.raises(
        ValueError, match=r"`prefix` must begin names of the checkpoint, got 'encoder\.', and they are"
    ):
        models.load_backbone(models.ResNet(18), source.state_dict(), prefix="encoder.")


@pytest.mark.parametrize("prefix", ["encoder.", "encoder", "a.b."])
def test_a_network_inside_of_another(prefix):
    source, outer = resnet(), torch.nn.Module()
    inner = outer
    *above, last = prefix.removesuffix(".").split(".")
    for name in above:
        inner.add_module(name, torch.nn.Module())
        inner = inner.get_submodule(name)
    inner.add_module(last, source)
    report = load_backbone(vt(), outer, prefix=prefix.removesuffix(".") + ".")
    assert report.complete
    assert report.compared
    assert len(str(report).splitlines()) == 1


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.DataParallel,
        torch.compile,
        lambda net: torch.compile(torch.nn.DataParallel(net)),
        lambda net: torch.nn.DataParallel(vt_of(net)),
    ],
)
def test_wrapped_networks_are_compared(wrap):
    report = load_backbone(vt(), wrap(resnet()))
    assert report.complete
    assert report.compared


def vt_of(net):
    """A classifier on the first stages of this network."""
    model = vt()
    load_backbone(model, net)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_do_not_make_a_difference(dtype):
    report = load_backbone(vt().to(dtype), resnet().to(dtype))
    assert report.complete, report


def test_a_loaded_classifier_is_compared_too():
    assert load_backbone(ResNet(18, num_classes=10), resnet()).complete
    source = resnet()
    source.avgpool = torch.nn.AdaptiveMaxPool2d(1)
    report = load_backbone(ResNet(18, num_classes=10), source)
    assert report.different[0].startswith("fc computes something else than the network's")
    assert load_backbone(vt(), source).complete, "which has no classifier"


def test_layers_that_do_not_run_are_not_needed():
    source = resnet()
    source.layer4 = source.fc = torch.nn.Module()  # have no forward
    assert load_backbone(vt(), source).complete


def test_what_cannot_be_compared_is_not_complete():
    silent, failing = torch.fx.symbolic_trace(resnet()), resnet()
    failing.layer3.register_forward_hook(lambda module, args, result: 1 / 0)
    for source, message in (
        (silent, "could not be compared: it does not call layer1 as a module"),
        (failing, "could not be compared: it raises ZeroDivisionError"),
    ):
        model = vt()
        report = load_backbone(model, source)
        assert message in str(report)
        assert not report.complete
        assert_loaded(model, source)


def test_a_backbone_that_does_not_run_is_not_compared():
    source, model = resnet(), vt()
    model.backbone.layer3.register_forward_hook(lambda module, args, result: 1 / 0)
    report = load_backbone(model, source)
    assert "the backbone could not be compared: it raises ZeroDivisionError" in str(report)
    assert not report.compared
    assert not report.complete
    assert_loaded(model, source)


def test_a_module_with_one_child_may_compute_something_else():
    class Scaled(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, images):
            return self.module(2 * images)

    report = load_backbone(vt(), Scaled(resnet()))
    assert not report.compared
    assert not report.complete
    assert "could not be compared" in str(report)


def test_another_backbone_is_compared_by_its_map():
    source, options = small_backbone(), {"num_classes": 3, "token_channels": 64, "num_tokens": 4}
    model = models.VTResNet(backbone=small_backbone(), group_width=16, **options)
    assert load_backbone(model, source).complete
    source[0].stride = (2, 2)
    report = load_backbone(model, source)
    assert "1 returns (2, 32, 16, 24), the network's (2, 32, 32, 48): another stride" in str(report)


def test_a_comparison_changes_nothing():
    source, model = resnet().train(), vt().train()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert load_backbone(model, source).compared
    assert torch.equal(torch.rand(1), expected), "no random numbers are drawn"
    assert all(part.training for part in (*source.modules(), *model.modules()))
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    assert not any(part._forward_hooks for part in (*source.modules(), *model.modules()))
    assert_loaded(model, source)


def test_a_backbone_without_data_gets_the_parameters():
    with torch.device("meta"):
        model = vt()
    report = load_backbone(model, resnet())
    assert report.complete
    assert report.compared
    assert not model.backbone.conv1.weight.is_meta


def test_meta_tensors_are_refused():
    with torch.device("meta"):
        empty = ResNet(18).state_dict()
    with pytest.raises(ValueError, match="`checkpoint` must hold numbers, got meta tensors: conv1"):
        load_backbone(vt(), empty)
