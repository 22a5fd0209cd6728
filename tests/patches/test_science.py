"""What the patches of physicsnemo, slot-attention and torch-geometric refuse or pass to the host."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import vt_fast
from tests._support import hosts
from tests.patches.cases import CASES, aggregation, physics, seeded, slots, two_layers
from tests.patches.test_patch import reason, runs_own

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu, pytest.mark.hosts]


class TestPhysicsNeMo:
    @pytest.fixture(autouse=True)
    def _needs(self):
        hosts.need("physicsnemo.nn")

    def test_noise_and_transformer_engine(self):
        module = physics()()
        module.plus = True
        assert "adds noise" in reason(module)
        for name in ("physicsnemo mesh", "physicsnemo FLARE"):
            module = CASES[name].make()
            module.use_te = True
            assert "Transformer Engine" in reason(module)

    def test_subclasses(self):
        kind = type(physics()())
        names = {"_compute_slices_from_projections": lambda self, *args: args}
        module = type("Mine", (kind,), names)(24, heads=4, dim_head=8, use_te=False)
        assert "overrides _compute_slices_from_projections" in reason(module)

    @pytest.mark.parametrize("name", ["physicsnemo mesh", "physicsnemo FLARE"])
    def test_errors_and_hooks(self, name):
        module, x = CASES[name].make().eval(), torch.randn(2, 50, 24)
        vt_fast.patch(module)
        assert hosts.ops_in(lambda: module(x)) == 2
        with pytest.raises((ValueError, RuntimeError)):
            module(x[..., :8])
        part = module.in_project_slice if "mesh" in name else module.self_v
        part.register_forward_hook(lambda *args: None)
        assert runs_own(module, x)

    def test_float16(self):
        """Sums of 65,600 points are infinite there, so that the host divides before it sums."""
        module = physics()().eval()
        for parameter in (*module.in_project_slice.parameters(), module.in_project_fx.weight):
            nn.init.zeros_(parameter)
        nn.init.constant_(module.in_project_slice.bias[0], 20)
        nn.init.constant_(module.in_project_fx.bias, 2)
        vt_fast.patch(module)
        x = torch.randn(1, 65_600, 24).half()
        assert runs_own(module.half(), x)
        assert module(x).isfinite().all()
        assert hosts.ops_in(lambda: module.float()(x.float())) == 2
        with torch.autocast("cpu", torch.float16):
            assert hosts.ops_in(lambda: module(x.float())) == 0

    def test_dropout_draws_the_same(self):
        module, x = physics()().double(), torch.randn(2, 50, 24).double()
        module.out_dropout.p = 0.5
        found = []
        for patched in (False, True):
            if patched:
                vt_fast.patch(module)
            torch.manual_seed(3)
            found.append(module(x))
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("value", [0.1, 7.0])
    def test_clamped_temperatures(self, value):
        module, x = physics()().double(), torch.randn(2, 50, 24).double()
        nn.init.constant_(module.temperature, value)
        expected = module(x)
        vt_fast.patch(module)
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)
        module(x).sum().backward()
        assert not module.temperature.grad.any()


class TestSlots:
    @pytest.fixture(autouse=True)
    def _needs(self):
        hosts.need("slot_attention")

    @pytest.mark.parametrize("name", ["slot-attention", "slot-attention, heads"])
    def test_noise_is_the_same(self, name):
        module, x = CASES[name].make().double(), torch.randn(2, 50, 16).double()
        found = []
        for patched in (False, True):
            if patched:
                vt_fast.patch(module)
            torch.manual_seed(3)
            found.append(module(x, num_slots=3))
        assert found[0].shape == (2, 3, 16)
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)

    def test_many_slots(self):
        module, x = slots("MultiHeadSlotAttention", heads=4, dim_head=2)(), torch.randn(2, 50, 16)
        vt_fast.patch(module)
        assert runs_own(module, x)

    @pytest.mark.parametrize("name", ["SlotAttention", "MultiHeadSlotAttention"])
    def test_float16(self, name):
        module, x = slots(name)(), torch.randn(2, 50, 16).half()
        vt_fast.patch(module)
        assert runs_own(module.half(), x)

    def test_hooks(self):
        module, x = slots()(), torch.randn(2, 50, 16)
        vt_fast.patch(module)
        assert hosts.ops_in(lambda: seeded(module, x)) == 3
        module.to_v.register_forward_hook(lambda *args: None)
        assert runs_own(module, x)


class TestGraphs:
    @pytest.fixture(autouse=True)
    def _needs(self):
        hosts.need("torch_geometric.nn")

    def made(self, *layers):
        module = aggregation(*(layers or [lambda: nn.Linear(16, 1)]))().eval()
        vt_fast.patch(module)
        return module, torch.randn(50, 16)

    def test_nodes_in_any_order(self):
        module, x = self.made()
        index = torch.randint(4, (50,))
        assert runs_own(module, x, index, dim_size=4)
        assert hosts.ops_in(lambda: module(x, index.sort().values)) == 1

    @pytest.mark.parametrize("layers", [(), (two_layers,)], ids=["linear", "two layers"])
    def test_export_of_any_number_of_nodes(self, layers):
        module, x = self.made(*layers)

        class Pooled(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = module

            def forward(self, x, ptr):
                return self.module(x, ptr=ptr)

        sizes = {0: torch.export.Dim("nodes", min=2, max=4096)}
        program = torch.export.export(Pooled(), (x, torch.tensor([0, 20, 50])), dynamic_shapes=(sizes, None))
        x, ptr = torch.randn(70, 16), torch.tensor([0, 69, 70])
        torch.testing.assert_close(program.module()(x, ptr), module(x, ptr=ptr))

    def test_nodes_that_cannot_be_looked_at(self):
        """A trace would take other nodes for sorted, too."""
        module, x = self.made()
        index = torch.arange(50) // 10
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            found = module(mode.from_tensor(x), mode.from_tensor(index), dim_size=5)
        assert found.shape == (5, 16)
        module.requires_grad_(False)
        traced = torch.jit.trace(lambda x, index: module(x, index, dim_size=5), (x, index), check_trace=False)
        torch.testing.assert_close(traced(x, index.flip(0)), module(x, index.flip(0), dim_size=5))

    def test_other_dimensions(self):
        module, x = self.made(two_layers)
        assert runs_own(module, x[None], torch.zeros(50, dtype=torch.long), dim_size=1)

    def test_gates_with_several_columns(self):
        module, x = self.made(lambda: nn.Linear(16, 16), lambda: nn.Linear(16, 16))
        assert runs_own(module, x, ptr=torch.tensor([0, 20, 50]), dim_size=2)

    def test_several_layers_of_torch_geometric(self):
        from torch_geometric.nn import MLP

        def mlp(channels):
            return lambda: MLP([16, 8, channels], norm=None)

        module, x = self.made(mlp(1), mlp(12))
        ptr = torch.tensor([0, 20, 20, 50])
        assert hosts.ops_in(lambda: module(x, ptr=ptr)) == 1
        torch.testing.assert_close(module(x, ptr=ptr), module._vt_fast_host.forward(module, x, ptr=ptr))

    def test_errors_are_the_hosts(self):
        module, x = self.made()
        with pytest.raises(ValueError, match="invalid 'dim_size'"):
            module(x, torch.arange(50), dim_size=10)

    def test_no_nodes(self):
        module, x = self.made()
        found = module(x[:0], torch.zeros(0, dtype=torch.long), dim_size=3)
        assert torch.equal(found, torch.zeros(3, 16))
