"""Tools that look at members from outside: offloading by accelerate, Opacus, and counters by hooks."""

import copy
import io

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests._support import torchvision_stub
from tests._support.nn_cases import CASES, B, C, H, L, W, every_kind, feature_map, incoming, made
from vt_fast import flops, models, nn
from vt_fast.nn import VisualTransformerStack

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]

STACKS = [name for name in CASES if name.startswith("stack")]


def macs(module, *inputs, **options):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs, **options)
    return counter.get_total_flops() // 2


class TestAccelerate:
    @pytest.mark.parametrize("where", ["cpu", "disk", "both"])
    def test_offloaded_members(self, where, tmp_path):
        """The parameters come for each call and go after it; results and passes are the same."""
        accelerate = pytest.importorskip("accelerate")
        plain, x = made(every_kind), feature_map("contiguous").detach()
        module = copy.deepcopy(plain)
        if where == "cpu":
            accelerate.cpu_offload(module, execution_device="cpu")
        elif where == "disk":
            accelerate.disk_offload(module, tmp_path, execution_device="cpu")
        else:
            places = {f"blocks.{index}": "disk" if index % 2 else "cpu" for index in range(len(module))}
            accelerate.dispatch_model(module, places, main_device="cpu", offload_dir=tmp_path)
        assert module.passes == plain.passes
        with torch.no_grad():
            for found, expected in zip(module(x), plain(x), strict=True):
                assert torch.equal(found, expected)
        here = [value.device.type != "meta" for value in module.parameters()]
        assert any(here) == (where == "both")
        assert not all(here)

    def test_loaded_without_a_copy(self, tmp_path):
        accelerate = pytest.importorskip("accelerate")
        plain, x = made(every_kind), feature_map("contiguous").detach()
        torch.save(plain.state_dict(), tmp_path / "weights.pt")
        with accelerate.init_empty_weights():
            module = every_kind().double()
        accelerate.load_checkpoint_and_dispatch(module, f"{tmp_path}/weights.pt", device_map={"": "cpu"})
        with torch.no_grad():
            for found, expected in zip(module(x), plain(x), strict=True):
                assert torch.equal(found, expected)


def without_code():
    """Every kind of member, but no position code in a tokenizer that has no parameters of its own."""
    module = every_kind()
    module[1].tokenizer = nn.RecurrentTokenizer(36, L, 20, key_groups=2, value_groups=3)
    return module


class TestOpacus:
    """The gradient of each sample is autograd's, or Opacus is refused."""

    @staticmethod
    def exact(module, inputs):
        """The gradients of each sample, by autograd on that sample alone."""
        each = [
            torch.autograd.grad(
                total(module(**{name: value[i : i + 1] for name, value in inputs.items()})),
                list(module.parameters()),
            )
            for i in range(B)
        ]
        return [torch.stack(values) for values in zip(*each, strict=True)]

    @pytest.mark.parametrize("masked", [False, True])
    def test_gradients_of_each_sample(self, masked):
        opacus = pytest.importorskip("opacus")
        inputs = {"x": feature_map("contiguous").detach()}
        module = made(without_code)
        if masked:
            module = made(lambda: VisualTransformerStack(C, 2, tokenizer="recurrent", num_tokens=L))
            inputs |= {"tokens": incoming(module[0]).detach(), "mask": torch.rand(B, H, W) > 0.3}
        expected = self.exact(module, inputs)
        hooked = opacus.GradSampleModule(module, loss_reduction="sum")
        total(hooked(**inputs)).backward()
        for (name, parameter), exact in zip(module.named_parameters(), expected, strict=True):
            assert exact.any(), name
            torch.testing.assert_close(parameter.grad_sample, exact, rtol=0, atol=1e-9, msg=name)

    def test_what_is_refused(self):
        """Otherwise it would compute a tokenizer's gradients without its mask."""
        opacus = pytest.importorskip("opacus")
        x = feature_map("contiguous").detach()
        masked = opacus.GradSampleModule(made(without_code))
        with pytest.raises(ValueError, match="`mask` must be None under Opacus, which computes"):
            masked(x, mask=torch.ones(B, H, W, dtype=torch.bool))
        coded = opacus.GradSampleModule(made(every_kind))
        with pytest.raises(
            ValueError, match="`position` must be None under Opacus, whose hooks see one table"
        ):
            coded(x)
        with pytest.raises(NotImplementedError, match="buffers"):
            opacus.GradSampleModule(VisualTransformerStack(C, 1, token_norm="batch"))

    def test_the_alternative(self):
        module = made(every_kind)
        inputs = {"x": feature_map("contiguous").detach(), "mask": torch.rand(B, H, W) > 0.3}
        parameters = {name: value.detach() for name, value in module.named_parameters()}

        def one(parameters, inputs):
            batch = {name: value[None] for name, value in inputs.items()}
            return total(torch.func.functional_call(module, parameters, (), batch))

        found = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0))(parameters, inputs)
        for name, exact in zip(parameters, self.exact(module, inputs), strict=True):
            torch.testing.assert_close(found[name], exact, rtol=0, atol=1e-9, msg=name)


def total(results):
    return sum(result.sin().sum() for result in results if result is not None)


def unbiased(name):
    """A module without biases: some counters count their additions."""
    module = made(CASES[name]).eval()
    for part in module.modules():
        if getattr(part, "bias", None) is not None:
            part.bias = None
    return module


class TestCounters:
    @pytest.mark.parametrize(
        "name", [*STACKS, "module: default", "tokenizer: recurrent", "projector: shortcut"]
    )
    def test_thop(self, name):
        thop = pytest.importorskip("thop")
        module, x = made(CASES[name]), feature_map("contiguous").detach()
        inputs = (
            (x,) if name in STACKS else (x, torch.ones(B, L, getattr(module, "token_channels", C)).double())
        )
        options = {"custom_ops": flops.thop_handles(), "verbose": False}
        found, _ = thop.profile(copy.deepcopy(module), inputs, **options)
        assert found == macs(module, *inputs) > 0

    def test_thop_on_a_network(self):
        """It counts the rest by rules of its own."""
        thop = pytest.importorskip("thop")
        net = models.vt_resnet18(5, num_tokens=4, token_channels=64).eval()
        images = torch.zeros(1, 3, 64, 64)
        options = {"custom_ops": flops.thop_handles(), "verbose": False, "ret_layer_info": True}
        found, _, layers = thop.profile(copy.deepcopy(net), (images,), **options)
        with torch.no_grad():
            assert layers["stage"][0] == macs(net.stage, net.backbone(images))
        assert found == sum(macs for macs, *_ in layers.values())

    @pytest.mark.parametrize(
        "name", [*STACKS, "module: recurrent", "tokenizer: recurrent", "projector: plain"]
    )
    def test_ptflops(self, name):
        pytest.importorskip("ptflops") if torchvision_stub.importable() else pytest.skip("ptflops imports it")
        from ptflops import get_model_complexity_info

        module = unbiased(name)
        inputs = {"x": feature_map("contiguous").detach()}
        if name not in STACKS:
            inputs["tokens"] = incoming(module).detach()
        found, parameters = get_model_complexity_info(
            copy.deepcopy(module),
            (C, H, W),
            as_strings=False,
            ost=io.StringIO(),
            backend="aten",
            input_constructor=lambda size: inputs,
            custom_modules_hooks=flops.ptflops_handles(),
        )
        assert found == macs(module, **inputs) > 0
        assert parameters == sum(value.numel() for value in module.parameters())

    def test_torch_counts_by_member(self):
        module, x = made(every_kind), feature_map("contiguous").detach()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(x)
        counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        called = ("", ".tokenizer", ".tokenizer.position", ".transformer", ".projector.query")
        assert all(counts[f"VisualTransformerStack.blocks.1{name}"] > 0 for name in called)
        blocks = sum(counts[f"VisualTransformerStack.blocks.{index}"] for index in range(len(module)))
        assert blocks == counts["Global"]
        assert "project_tokenize" in {
            op.__name__ for op in counter.get_flop_counts()["Global"]
        }  # still fused

    def test_torchinfo(self):
        """It shows the calls and the parameters of every layer; it counts no ops."""
        torchinfo = pytest.importorskip("torchinfo")
        module, x = made(every_kind), feature_map("contiguous").detach()
        report = torchinfo.summary(copy.deepcopy(module), input_data=x, depth=9, verbose=0)
        assert report.total_params == sum(value.numel() for value in module.parameters())
        calls = {part.class_name: part for part in report.summary_list}
        for part in report.summary_list:
            assert part.executed or not list(part.module.parameters()) or part.class_name == "ModuleList"
        assert calls["RecurrentTokenizer"].input_size == [B, 36, H, W]
        assert calls["RecurrentTokenizer"].output_size == [B, L, 20]

    def test_fvcore(self):
        """Its hooks leave the passes fused, and it counts each."""
        fvcore = pytest.importorskip("fvcore.nn")
        module, x = made(every_kind).eval(), feature_map("contiguous").detach()
        analysis = fvcore.FlopCountAnalysis(copy.deepcopy(module), x).set_op_handle(**flops.fvcore_handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(x)
        expected = {
            op.__name__: count // 2
            for op, count in counter.get_flop_counts()["Global"].items()
            if str(op).startswith("vt_fast")
        }
        assert set(expected) == {"tokenize", "project", "project_tokenize"}
        found = analysis.by_operator()
        assert {name: found[name] for name in expected} == expected
