"""`convert` on ResNets of several libraries."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed._composable import replicate
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import vt_fast
from tests._support import torchvision_stub
from tests._support.model_cases import SMALL
from vt_fast.models import ResNet, VTStage, fpn
from vt_fast.nn import PoolingTokenizer

HEADS = {"token_channels": 32, "group_width": None}
LIBRARIES = ("own", "torchvision", "timm")


def network(library, depth=18):
    """A ResNet with 7 classes, of one of the libraries."""
    if library == "own":
        return ResNet(depth, num_classes=7)
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    if library == "torchvision":
        import torchvision

        return getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
    return pytest.importorskip("timm").create_model(f"resnet{depth}", num_classes=7)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_last_stage(library):
    model = network(library)
    kept = model.layer3[0].conv1.weight
    converted = vt_fast.convert(model)
    assert converted is model
    stage = model.layer4[0]
    assert isinstance(stage, VTStage)
    assert len(stage.stack) == 2
    assert (stage.channels, stage.out_channels) == (256, 512)
    assert stage.stack[1].tokenizer.channels == 512
    assert model.layer3[0].conv1.weight is kept
    maps = {}
    model.layer4.register_forward_hook(lambda module, inputs, output: maps.update(y=output))
    logits = model(torch.randn(1, 3, 64, 64))
    assert maps["y"].shape == (1, 512, 4, 4), "the resolution of the previous stage"
    assert logits.shape == (1, 7)
    logits.sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_bottlenecks(library):
    with torch.device("meta"):
        model = vt_fast.convert(network(library, 50))
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 7)
    stack = model.layer4[0].stack
    assert [block.tokenizer.channels for block in stack] == [1024, 1024, 1024]
    assert stack[2].projector.out_channels == 2048


def test_equals_the_stage_by_hand():
    """The network gives what its parts give one by one."""
    model = vt_fast.convert(ResNet(18, num_classes=7), **SMALL).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    y = model.layer4[0].stack(model.features(x)[2])[0]
    torch.testing.assert_close(model(x), model.fc(y.mean((2, 3))), rtol=0, atol=1e-10)


def test_options_reach_the_stage():
    model = vt_fast.convert(
        ResNet(18),
        tokenizer="pooling",
        relation="graph",
        num_blocks=1,
        width=300,
        backend="reference",
        **SMALL,
    )
    stack = model.layer4[0].stack
    assert len(stack) == 1
    assert isinstance(stack[0].tokenizer, PoolingTokenizer)
    assert stack.backend == "reference"
    with pytest.raises(TypeError, match="tokeniser"):
        vt_fast.convert(ResNet(18), tokeniser="filter")


def test_dtype_mode_and_copies():
    original = ResNet(18).double().eval()
    model = vt_fast.convert(copy.deepcopy(original))
    assert all(parameter.dtype == torch.float64 for parameter in model.parameters())
    assert not any(part.training for part in model.modules())
    assert not isinstance(original.layer4[0], VTStage)


def test_the_probe_of_the_old_stage_changes_nothing():
    model = ResNet(18)
    model.layer4[0].bn1.eval()
    old = model.layer4
    before = {name: value.clone() for name, value in old.state_dict().items()}
    vt_fast.convert(model)
    assert old[1].training
    assert not old[0].bn1.training
    for name, value in old.state_dict().items():
        assert torch.equal(value, before[name])


def test_strides_of_resnet():
    model = vt_fast.convert(ResNet(18), **SMALL)
    assert model.strides == (4, 8, 16, 16)
    earlier = vt_fast.convert(ResNet(18), "layer3", **SMALL)
    assert earlier.strides == (4, 8, 8, 16)
    block = vt_fast.convert(ResNet(18), "layer4.0", **SMALL)
    assert block.strides == (4, 8, 16, 16)
    x = torch.randn(1, 3, 64, 64)
    for net in (model, earlier, block):
        assert [64 // each.shape[2] for each in net.features(x)] == list(net.strides)


def test_strides_of_networks_around_a_resnet():
    net = fpn(18, 5, channels=32, head_channels=32)
    vt_fast.convert(net, "backbone.layer3", **SMALL)
    assert net.backbone.strides == net.strides == (4, 8, 8, 16)
    inside = vt_fast.convert(nn.ModuleDict({"body": ResNet(18)}), "body.layer4.0", **SMALL)
    assert inside["body"].strides == (4, 8, 16, 16)


def timm_model(name, **options):
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    return pytest.importorskip("timm").create_model(name, **options)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("name", "stage", "options"),
    [
        ("resnext26ts", "stages.3", {}),  # the last map is that of a convolution after the stage
        ("efficientnet_b0", "blocks.5", {}),  # a stage that no map is taken from
        ("resnet18", "layer4.0", {}),  # a part of a stage
        ("convnext_atto", "stages_3", {"features_only": True}),
        ("convnext_atto", "stages_2", {"features_only": True, "out_indices": (1, 3)}),
    ],
)
def test_strides_that_timms_models_report(name, stage, options, inside):
    model = timm_model(name, **options).eval()
    around = nn.Sequential(nn.Identity(), model)
    vt_fast.convert(*((around, f"1.{stage}") if inside else (model, stage)), **HEADS)
    images = torch.randn(1, 3, 128, 128)
    maps = model(images) if options else model.forward_intermediates(images, intermediates_only=True)
    entries = model.feature_info.get_dicts() if options else model.feature_info
    assert [each["reduction"] for each in entries] == [128 // each.shape[2] for each in maps]


def test_strides_of_timms_features():
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    timm = pytest.importorskip("timm")
    backbone = vt_fast.convert(timm.create_model("resnet18", features_only=True), **SMALL)
    assert backbone.feature_info.reduction() == [2, 4, 8, 16, 16]
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert [64 // each.shape[2] for each in maps] == backbone.feature_info.reduction()
    assert [each.shape[1] for each in maps] == backbone.feature_info.channels()


def test_a_stage_inside_of_a_submodule():
    model = nn.ModuleDict({"body": ResNet(18)})
    assert vt_fast.convert(model, "body.layer4", **SMALL) is model
    assert isinstance(model["body"].layer4[0], VTStage)


def test_a_stage_without_convolution():
    """The network tells the channels where it runs on an image; elsewhere they must be given."""
    options = {"num_blocks": 1, "num_tokens": 4, "token_channels": 48}
    model = nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), nn.Identity())
    with pytest.raises(ValueError, match="`channels` must be 24, those of the stage's map, got 8"):
        vt_fast.convert(model, "1", channels=8, **options)
    vt_fast.convert(model, "1", **options)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 24, 4, 4)
    parts = nn.ModuleDict({"body": nn.Identity()})
    with pytest.raises(ValueError, match="`channels` must be given for `body`, which has no 2-D convolution"):
        vt_fast.convert(parts, "body", **options)
    vt_fast.convert(parts, "body", channels=24, **options)
    assert parts["body"](torch.zeros(1, 24, 4, 4)).shape == (1, 24, 4, 4)


def test_scripted_models_are_refused():
    scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 8, 1)), torch.zeros(1, 3, 8, 8))
    with pytest.raises(
        TypeError, match="`model` must be converted before it is scripted, got TopLevelTraced"
    ):
        vt_fast.convert(scripted, "0", **SMALL)


def test_a_network_with_reparametrised_layers():
    """PyTorch's older norms cannot be copied, so the stage is tried alone."""
    for norm in (nn.utils.weight_norm, nn.utils.parametrizations.spectral_norm):
        model = ResNet(18, num_classes=7)
        norm(model.layer3[0].conv1)
        norm(model.fc)
        assert vt_fast.convert(model, **SMALL)(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_wrapped_networks():
    images = torch.zeros(2, 3, 64, 64)
    assert vt_fast.convert(nn.DataParallel(ResNet(18, num_classes=7)), "module.layer4", **SMALL)(images).shape
    twice = vt_fast.convert(vt_fast.convert(ResNet(18, num_classes=7), **SMALL), num_tokens=3, **HEADS)
    assert twice.layer4[0].stack[0].tokenizer.num_tokens == 3
    assert twice(images).shape == (2, 7)


COMPILED = {
    "the stage": "layer4",
    "another stage": "layer1",
    "the network": "",
    "a block in place": "layer3.0",
    "inside of a wrapper": "",
}


@pytest.mark.parametrize("how", COMPILED)
def test_compiled_parts_do_not_run_on_tensors_without_data(how):
    model, seen = nn.Sequential(ResNet(18, num_classes=7)).eval(), []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    part, stage = model.get_submodule(f"0.{COMPILED[how]}".removesuffix(".")), "0.layer4"
    if how == "a block in place":
        part.compile(backend=backend)
    elif how == "inside of a wrapper":
        model[0], stage = torch.compile(part, backend=backend), "0._orig_mod.layer4"
    elif how == "the network":
        model = torch.compile(model, backend=backend)
    else:
        setattr(model[0], COMPILED[how], torch.compile(part, backend=backend))
    vt_fast.convert(model, stage, **SMALL)
    assert not seen
    assert len(model.get_submodule(f"_orig_mod.{stage}" if how == "the network" else stage)[0].stack) == 2
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert bool(seen) == (how != "the stage"), "the rest is still compiled"


def test_the_blocks_of_a_wrapped_stage_are_counted():
    model = ResNet(18)
    model.layer4 = checkpoint_wrapper(model.layer4)
    assert len(vt_fast.convert(model, **SMALL).layer4[0].stack) == 2


class Shared(nn.Module):
    """Calls its stages through other references than their names."""

    def __init__(self, container):
        super().__init__()
        self.net = ResNet(18, stages=4)
        self.stages = container(self.net.children())

    def forward(self, x):
        for stage in list(self.stages)[:8]:
            x = stage(x)
        return x


def test_a_stage_of_two_names_is_replaced_under_both():
    model, x = Shared(nn.ModuleList).eval(), torch.randn(1, 3, 64, 64)
    before = model(x)
    vt_fast.convert(model, "net.layer4", **SMALL)
    assert model.stages[7] is model.net.layer4
    assert model(x).shape == (1, 512, 4, 4)
    assert before.shape == (1, 512, 2, 2)


def test_a_stage_in_a_list_is_refused():
    model = Shared(list)
    old = model.net.layer4
    with pytest.raises(
        ValueError, match=r"through submodules alone, .*'net\.layer4': 0 of its 1 calls reach"
    ):
        vt_fast.convert(model, "net.layer4", **SMALL)
    assert model.net.layer4 is old


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


SPREAD = {
    "DistributedDataParallel at ''": lambda net: DistributedDataParallel(net),
    "FSDPResNet at '0'": lambda net: fully_shard(net[0]) and net,
    "FSDPSequential at '0.layer1'": lambda net: fully_shard(net[0].layer1) and net,
    "DDPSequential at '0.layer4'": lambda net: replicate(net[0].layer4) and net,
    "Linear at '0.fc'": lambda net: (
        parallelize_module(net[0].fc, init_device_mesh("cpu", (1,)), ColwiseParallel()) and net
    ),
}


@pytest.mark.parametrize("shown", SPREAD)
def test_models_of_several_processes_are_refused(shown, one_process):
    """The new parameters would neither be sharded nor get the gradients of all processes."""
    model = SPREAD[shown](nn.Sequential(ResNet(18, num_classes=7)))
    stage = "module.0.layer4" if isinstance(model, DistributedDataParallel) else "0.layer4"
    with pytest.raises(TypeError, match=f"converted before it is wrapped for several processes, got {shown}"):
        vt_fast.convert(model, stage, **SMALL)


def test_channels_are_those_that_the_stage_gets():
    """The first convolution of a stage may take a part of its map."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return torch.cat((x[:, :8], self.conv(x[:, 8:])), 1)

    model = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), Halves())
    vt_fast.convert(model, "1", **SMALL)
    assert model[1][0].channels == 16
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 16, 4, 4)


@pytest.mark.parametrize(
    ("model", "stage", "message"),
    [
        (
            lambda: ResNet(18),
            "layer5",
            r"`stage` must be the name of a submodule \(conv1, bn1, .*got 'layer5'",
        ),
        (lambda: ResNet(18), "body.layer4", "got 'body.layer4'"),
        (lambda: ResNet(18), "", "got ''"),
        (
            lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten())),
            "0",
            r"`0` must return a map \(B, C, H, W\), got \(1, 401408\)",
        ),
        (
            lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1))),
            "0",
            r"`0` must take a map \(1, 3, 32, 32\), got RuntimeError",
        ),
        (
            lambda: nn.Sequential(nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 1)),
            "1",
            "`channels` must be given for `1`, which has no 2-D convolution, where .* Given groups",
        ),
        (
            lambda: torch.fx.symbolic_trace(ResNet(18)),
            "layer4",
            "`stage` must be a module that the network calls, got 'layer4'",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2), nn.Conv1d(8, 8, 1)),
            "2",
            r"`2` must take a map \(B, C, H, W\), got \(1, 8, 50176\)",
        ),
    ],
)
def test_errors(model, stage, message):
    made = model()
    names = [name for name, _ in made.named_modules()]
    with pytest.raises(ValueError, match=message):
        vt_fast.convert(made, stage)
    assert [name for name, _ in made.named_modules()] == names
