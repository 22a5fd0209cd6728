"""`patch` and `unpatch`: what is refused, the report, and what changes after a module was patched."""

import copy
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import vt_fast
from tests._support import hosts
from tests.patches.cases import class_attention, every, timm_layer, vit

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]


@pytest.fixture(autouse=True)
def _needs_timm():
    hosts.need("timm")


def latent(**options):
    return timm_layer("AttentionPoolLatent", 32, num_heads=4, **options)()


def reason(module):
    """Why a module is refused; it stays as it is."""
    before = type(module)
    (row,) = vt_fast.patch(module).rows
    assert not row.replaced
    assert type(module) is before
    return row.note


def fails_alike(module, *inputs, **options):
    """Whether a call of a patched module raises the host's own error."""
    with pytest.raises(Exception) as expected:  # noqa: PT011
        module._vt_fast_host.forward(module, *inputs, **options)
    with pytest.raises(expected.type) as found:
        module(*inputs, **options)
    return str(found.value) == str(expected.value)


def runs_own(module, *inputs, **options):
    """Whether a call of a patched module runs the host's own forward, to the bit."""
    torch.manual_seed(0)
    found = module(*inputs, **options)
    torch.manual_seed(0)
    expected = module._vt_fast_host.forward(module, *inputs, **options)
    assert hosts.ops_in(lambda: module(*inputs, **options)) == 0
    for value, other in zip(hosts.flat(found), hosts.flat(expected), strict=True):
        assert (value is None and other is None) or torch.equal(value, other)
    return True


@contextmanager
def hooks_of_all(hook):
    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class TestReport:
    def test_table(self):
        model = nn.ModuleDict({"pool": latent(), "other": latent(qk_norm=True), "linear": nn.Linear(2, 2)})
        report = vt_fast.patch(model)
        assert report.replaced == ("pool",)
        assert report.refused == ("other",)
        lines = str(report).splitlines()
        assert lines[0].split() == ["module", "class", "replaced"]
        assert lines[1].split()[:4] == ["pool", "timm", "AttentionPoolLatent", "yes"]
        assert "normalises the keys" in lines[-1]
        assert len({line.index("timm") for line in lines[1:] if "timm" in line}) == 1

    def test_nothing_known(self):
        report = vt_fast.patch(nn.Linear(2, 2))
        assert report.rows == ()
        assert "No module" in str(report)

    def test_dry_run(self):
        module = latent()
        report = vt_fast.patch(module, dry_run=True)
        assert report.replaced == ("",)
        assert "would be" in str(report)
        assert hosts.ops_in(lambda: module(torch.randn(1, 50, 32))) == 0

    def test_twice_changes_nothing(self):
        module = latent()
        vt_fast.patch(module)
        kind = type(module)
        (row,) = vt_fast.patch(module).rows
        assert row.replaced
        assert row.note == "was replaced before"
        assert row.host == "timm.layers.attention_pool.AttentionPoolLatent"
        assert type(module) is kind
        vt_fast.unpatch(module)
        vt_fast.unpatch(module)
        assert type(module).__mro__[1] is nn.Module

    def test_only(self):
        model = nn.ModuleDict({"a": nn.Sequential(latent()), "ab": latent(), "b": latent()})
        assert vt_fast.patch(model, only="a", dry_run=True).replaced == ("a.0",)
        assert vt_fast.patch(model, only=["a.0", "b"]).replaced == ("a.0", "b")
        with pytest.raises(ValueError, match=r"`only` must name submodules \(a, ab, b, ..\), got 'c'"):
            vt_fast.patch(model, only="c")

    def test_only_of_a_part_of_a_known_module(self):
        model = nn.ModuleDict({"a": latent(), "b": latent()})
        report = vt_fast.patch(model, only=["a.mlp", "b"])
        assert report.replaced == ("b",)
        assert report.refused == ("a",)
        assert report.rows[0].note == (
            "it can only be replaced as a whole, and `only` names just a part of it: a.mlp"
        )
        assert vt_fast.patch(model, only=["a.mlp", "a"]).replaced == ("a",)
        (row,) = vt_fast.patch(model, only="a.mlp").rows
        assert (row.path, row.replaced, row.note) == ("a", True, "was replaced before")

    def test_only_of_a_part_that_is_known_itself_or_of_a_module_with_two_names(self):
        model = nn.ModuleDict({"a": latent(qk_norm=True), "b": latent()})
        (row,) = vt_fast.patch(model, only="a.mlp").rows
        assert "normalises the keys" in row.note
        model["c"] = model["b"]
        (row,) = vt_fast.patch(model, only=["b.mlp", "c"], dry_run=True).rows
        assert (row.path, row.replaced) == ("c", True)
        model = vit(global_pool="map")()
        assert [row.path for row in vt_fast.patch(model, only="attn_pool").rows] == ["attn_pool"]

    @pytest.mark.parametrize("only", [3, [3], nn.Linear(1, 1)])
    def test_only_of_other_types(self, only):
        with pytest.raises(TypeError, match="`only` must be None, or one or several names of"):
            vt_fast.patch(latent(), only=only)

    def test_one_module_of_two_names(self):
        model = nn.ModuleDict({"a": latent()})
        model["b"] = model["a"]
        assert vt_fast.patch(model, only="b", dry_run=True).replaced == ("b",)
        assert vt_fast.patch(model).replaced == ("a",)

    @pytest.mark.parametrize("call", [vt_fast.patch, vt_fast.unpatch])
    def test_no_module(self, call):
        with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, got int"):
            call(3)


class TestRefused:
    def test_subclass_with_a_forward(self):
        base = type(latent())
        kind = type("Mine", (base,), {"forward": lambda self, x, attn_mask=None: x})
        assert reason(kind(32)) == "is a Mine, which overrides forward"
        plain = type("Renamed", (base,), {"mine": 3})(32, num_heads=4).eval()
        expected, x = copy.deepcopy(plain), torch.randn(2, 50, 32)
        assert vt_fast.patch(plain).replaced == ("",)
        torch.testing.assert_close(plain(x), expected(x))
        vt_fast.unpatch(plain)
        assert type(plain) is type(expected)

    def test_replaced_forwards(self, monkeypatch):
        module = latent()
        module.forward = module.forward
        assert "a forward of its own" in reason(module)
        module = latent()
        monkeypatch.setattr(type(module), "forward", lambda self, x, attn_mask=None: x)
        assert "forward was replaced" in reason(module)

    def test_other_versions(self, monkeypatch):
        module = latent()
        module.gate = nn.Linear(2, 2)
        assert "it has gate, unlike the version" in reason(module)
        module = latent()
        del module.num_heads
        assert "has no attribute 'num_heads'" in reason(module)

        def forward(self, x, attn_mask=None, scale=1):
            return x

        own = type(module).forward
        forward.__module__, forward.__qualname__ = own.__module__, own.__qualname__
        monkeypatch.setattr(type(module), "forward", forward)
        assert "takes (x, attn_mask, scale)" in reason(latent())

    def test_parametrised(self):
        module = latent()
        nn.utils.parametrize.register_parametrization(module, "latent", nn.Identity())
        assert "ParametrizedAttentionPoolLatent; patch it before that" in reason(module)
        module = latent()
        nn.utils.parametrize.register_parametrization(module.kv, "weight", nn.Identity())
        assert reason(module) == "kv is a ParametrizedLinear"

    def test_hooked_members(self):
        module = latent()
        module.kv.register_forward_hook(lambda *args: None)
        assert "kv has hooks" in reason(module)

    def test_replaced_forwards_of_members(self, monkeypatch):
        module = latent()
        module.kv.forward = module.kv.forward
        assert "kv has hooks or another forward" in reason(module)
        module = latent()
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
        assert "kv has hooks or another forward" in reason(module)

    def test_options_of_timm(self):
        assert "normalises the keys" in reason(latent(qk_norm=True))
        assert "folding does not pay" in reason(latent(latent_len=16))
        pool = timm_layer("AttentionPool2d", 32, head_dim=8, pool_type="")
        assert "returns the pixels" in reason(pool())
        assert "rotates the keys" in reason(timm_layer("RotAttentionPool2d", 32, head_dim=8)())


class TestOwnForward:
    """Conditions that may change after a module was patched."""

    def test_members_replaced_later(self):
        module, x = latent().eval(), torch.randn(2, 50, 32)
        vt_fast.patch(module)
        assert hosts.ops_in(lambda: module(x)) == 1
        handle = module.kv.register_forward_hook(lambda module, args, result: 2 * result)
        assert runs_own(module, x)
        handle.remove()
        assert hosts.ops_in(lambda: module(x)) == 1
        module.kv = nn.Sequential(module.kv)
        assert runs_own(module, x)

    def test_hooks_of_all_modules(self):
        module, x = latent().eval(), torch.randn(2, 10, 32)
        vt_fast.patch(module)
        with hooks_of_all(lambda member, args, y: 2 * y if type(member) is nn.Linear else None):
            assert runs_own(module, x)

    def test_masks(self):
        module, x = latent().eval(), torch.randn(2, 50, 32)
        vt_fast.patch(module)
        assert runs_own(module, x, torch.rand(2, 4, 1, 50) > 0.5)
        own = module._vt_fast_host.forward
        for mask in (torch.rand(2, 1, 1, 50) > 0.5, torch.rand(1, 1, 1, 50) > 0.5, torch.randn(2, 1, 1, 50)):
            assert hosts.ops_in(lambda: module(x, mask)) == 1  # noqa: B023
            torch.testing.assert_close(module(x, mask), own(module, x, mask))

    def test_masks_of_all_pixels(self):
        """The host gives zeros, without the bias of the values, as its fused attention does."""
        module, x = latent().eval(), torch.randn(2, 50, 32)
        nn.init.normal_(module.kv.bias)
        vt_fast.patch(module)
        mask = torch.zeros(2, 1, 1, 50, dtype=torch.bool)
        mask[1] = True
        for each in (mask, torch.zeros(2, 1, 1, 50).masked_fill(~mask, -torch.inf)):
            assert hosts.ops_in(lambda: module(x, each)) == 1  # noqa: B023
            torch.testing.assert_close(module(x, each), module._vt_fast_host.forward(module, x, each))

    @pytest.mark.parametrize("part", ["", "attn_drop"])
    def test_dropout_of_a_part_in_training(self, part):
        module, x = class_attention(attn_drop=0.5).eval(), torch.randn(2, 50, 32)
        vt_fast.patch(module)
        module.get_submodule(part).training = True
        assert runs_own(module, x)

    def test_subclasses_of_tensors(self):
        """Quantised weights, for example; a compiler must not use them either."""
        module, x = latent().eval(), torch.randn(2, 50, 32)
        vt_fast.patch(module)
        weight = module.kv.weight.detach()
        module.kv.weight = nn.Parameter(TwoTensor(weight, weight.clone()))
        counts = []
        with torch.no_grad():
            assert hosts.ops_in(lambda: module(x)) == 0
            torch._dynamo.reset()
            torch.compile(module, backend=hosts.counted_graphs(counts))(x)
        assert sum(counts) == 0

    def test_dropout_in_training(self):
        module, x = class_attention(attn_drop=0.5), torch.randn(2, 50, 32)
        assert "dropout" in vt_fast.patch(module).rows[0].note
        assert runs_own(module.train(), x)
        assert hosts.ops_in(lambda: module.eval()(x)) == 1

    def test_pool_type_changes(self):
        module, x = timm_layer("AttentionPool2d", 32, head_dim=8)().eval(), torch.randn(2, 32, 7, 7)
        vt_fast.patch(module)
        assert hosts.ops_in(lambda: module(x)) == 1
        module.reset(pool_type="")
        assert runs_own(module, x)

    def test_pre_logits(self):
        module = timm_layer("AttentionPool2d", 32, out_features=24, head_dim=8)().eval()
        vt_fast.patch(module)
        x = torch.randn(2, 32, 7, 7)
        own = module._vt_fast_host.forward(module, x, pre_logits=True)
        torch.testing.assert_close(module(x, pre_logits=True), own)


def test_hooks_of_the_module_still_run():
    module, seen = latent().eval(), []
    module.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    vt_fast.patch(module)
    module(torch.randn(2, 50, 32))
    assert seen == [(2, 32)]


def test_state_dicts_load_both_ways():
    module, patched, x = latent().eval(), latent().eval(), torch.randn(2, 50, 32)
    vt_fast.patch(patched)
    patched.load_state_dict(module.state_dict())
    torch.testing.assert_close(patched(x), module(x))
    module.load_state_dict(patched.state_dict())


def test_biases_of_the_keys_have_a_gradient():
    """`DistributedDataParallel` waits for the gradients of all parameters."""
    module = class_attention(qkv_bias=True)
    vt_fast.patch(module)
    module(torch.randn(2, 50, 32)).sum().backward()
    assert torch.equal(module.k.bias.grad, torch.zeros(32))


def test_wrapped_after_patching():
    module, x = latent().eval(), torch.randn(2, 50, 32)
    vt_fast.patch(module)
    expected = module(x)
    nn.utils.parametrize.register_parametrization(module, "latent", nn.Identity())
    torch.testing.assert_close(module(x), expected)
    with pytest.raises(ValueError, match=r"got a ParametrizedAttentionPoolLatent of torch"):
        vt_fast.unpatch(module)
    nn.utils.parametrize.remove_parametrizations(module, "latent")
    vt_fast.unpatch(module)
    assert hosts.ops_in(lambda: module(x)) == 0


def test_a_forward_of_its_own_after_patching():
    """It may call the one that it found."""
    module, x = latent().eval(), torch.randn(2, 50, 32)
    vt_fast.patch(module)
    forward = module.forward
    module.forward = lambda x: forward(x)
    with pytest.raises(ValueError, match=r"must have the forwards that `patch` gave it, got <function"):
        vt_fast.unpatch(module)
    assert hosts.ops_in(lambda: module(x)) == 1
    del module.forward
    vt_fast.unpatch(module)
    assert hosts.ops_in(lambda: module(x)) == 0


@every()
def test_autocast(host):
    module, patched, inputs = hosts.twins(host, torch.float32)
    exact = host.solve(copy.deepcopy(module).double(), [value.double() for value in inputs])
    with torch.autocast("cpu", torch.bfloat16):
        found, own = host.solve(patched, inputs), host.solve(module, inputs)
    ratios = hosts.error_ratios(found, own, exact)
    assert sum(ratios) / len(ratios) < 1


def test_fake_tensors_and_functional_calls():
    module, x = latent().double().eval(), torch.randn(2, 50, 32).double()
    other = {name: value + 1e-2 for name, value in module.state_dict().items()}
    expected = torch.func.functional_call(module, other, (x,))
    vt_fast.patch(module)
    torch.testing.assert_close(torch.func.functional_call(module, other, (x,)), expected)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert torch.func.functional_call(
            module, {k: mode.from_tensor(v) for k, v in other.items()}, fake
        ).shape == (2, 32)
    gradients = torch.func.grad(lambda values: torch.func.functional_call(module, values, (x,)).sum())(other)
    assert gradients.keys() == other.keys()


def test_no_host_is_imported():
    code = (
        "import sys, torch, vt_fast; before = set(sys.modules); vt_fast.patch(torch.nn.Linear(2, 2)); "
        "print({name.partition('.')[0] for name in set(sys.modules) - before} "
        "& {'timm', 'transformers', 'open_clip', 'einops', 'perceiver_pytorch', 'segment_anything', "
        "'physicsnemo', 'slot_attention', 'torch_geometric'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
