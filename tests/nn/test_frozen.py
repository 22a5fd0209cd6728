"""`freeze`: kept operands are used, and are never stale."""

import copy
import pickle

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.utils import prune

import vt_fast
from tests._support.two_processes import two_processes
from vt_fast import nn
from vt_fast.nn import frozen

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]


def made():
    module = nn.FilterTokenizer(
        8, 3, position=nn.LinearPositionCode(4, 5), token_linear=False, token_channels=13
    )
    return nn.freeze(module.double().eval())


def image(*size):
    return torch.randn(2, 8, *(size or (6, 6))).double()


def entries(module):
    return module._kept.entries


def folds(module, x):
    """Whether a call makes its operands anew. Its result is that of an unfrozen copy, to the bit."""
    before = {name: entry.value for name, entry in entries(module).items()}
    found = module(x)
    assert torch.equal(found, nn.unfreeze(copy.deepcopy(module))(x))
    return any(before.get(name) is not entry.value for name, entry in entries(module).items())


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_operands_are_kept():
    module, x = made(), image()
    assert folds(module, x)
    assert set(entries(module)) == {"queries", "position"}
    assert not folds(module, x)
    assert not folds(module.eval(), image())


def in_place(module):
    module.filters.add_(1)


def of_the_position(module):
    module.position.weight.mul_(2)


def replaced(module):
    module.filters = torch.nn.Parameter(module.filters + 1)


def by_data(module):
    module.filters.data = module.filters + 1


def by_an_optimizer(module):
    module.filters.grad = torch.ones_like(module.filters)
    torch.optim.SGD([module.filters], 0.1).step()


def foreach(module):
    torch._foreach_add_([module.filters], 1.0)


def through_a_view(module):
    module.filters[0].fill_(3)


def scaled(module):
    module.scale = 2 * module.scale


def loaded(module):
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})


def assigned(module):
    other = {name: value + 1 for name, value in module.state_dict().items()}
    module.load_state_dict(other, assign=True)


CHANGES = [in_place, of_the_position, replaced, by_data, by_an_optimizer, foreach, through_a_view, scaled]


@pytest.mark.parametrize("change", [*CHANGES, loaded, assigned], ids=lambda change: change.__name__)
def test_changes_are_noticed(change):
    module, x = made(), image()
    before = module(x)
    change(module)
    assert folds(module, x)
    assert not torch.equal(module(x), before)
    assert not folds(module, x)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"query_groups": 4}])
def test_a_projector_keeps_one_product_in_place_of_two(options):
    projector = nn.freeze(nn.Projector(8, 32, 24, **options).double().eval())
    x, tokens = torch.randn(2, 8, 5, 6).double(), torch.randn(2, 3, 32).double()

    def check():
        plain = nn.unfreeze(copy.deepcopy(projector))
        for found, expected in zip(projector.operands(tokens), plain.operands(tokens), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(projector(x, tokens), plain(x, tokens), rtol=1e-12, atol=1e-12)
        return entries(projector)["keys"].value[0]

    first = check()
    assert check() is first
    for parameter in projector.parameters():
        parameter.add_(torch.randn_like(parameter))
        check()
    assert check() is not first
    projector.scale *= 2
    check()


@pytest.mark.parametrize("options", [{"num_heads": 2}, {"width": 4}, {"query_groups": None}])
def test_projectors_that_keep_no_keys(options):
    channels = 8 if "query_groups" not in options else 24
    projector = nn.freeze(nn.Projector(channels, 32, 24, **options).eval())
    projector.operands(torch.randn(2, 3, 32))
    assert not entries(projector)


@pytest.mark.parametrize("member", ["query", "key"])
def test_members_of_a_projector_with_hooks_are_called(member):
    projector = nn.freeze(nn.Projector(8, 32, 24).eval())
    called = []
    getattr(projector, member).register_forward_hook(lambda *_: called.append(member))
    projector.operands(torch.randn(2, 3, 32))
    assert called
    assert not entries(projector)


@pytest.mark.parametrize("member", ["query", "key"])
def test_pruned_members_of_a_projector(member):
    projector, tokens = nn.freeze(nn.Projector(8, 32, 24).eval()), torch.randn(2, 3, 32)
    projector.operands(tokens)
    layer = getattr(projector, member)
    prune.random_unstructured(layer, "weight", 0.5)
    layer.weight_orig.add_(1)
    layer.weight_mask.fill_(1)
    found = projector.operands(tokens)[0]
    assert torch.equal(found, projector.query.fold(projector.key(tokens) * projector.scale))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_wide_projectors(mode):
    """As wide as products that oneDNN gets, with tokens that have gaps."""
    projector, tokens = nn.freeze(nn.Projector(256, 1024, 512).eval()), torch.randn(4, 33, 1024)[:, ::2]
    exact = nn.unfreeze(copy.deepcopy(projector)).double().operands(tokens.double())
    with mode():
        for _ in range(2):
            keys, _, token_bias = projector.operands(tokens)
            torch.testing.assert_close(keys, exact[0].float())
            torch.testing.assert_close(token_bias, exact[2].float())
    assert "keys" in entries(projector)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_token_bias_of_a_projector_is_not_rounded_under_autocast(dtype):
    projector = nn.freeze(nn.Projector(8, 32, 24, dtype=dtype).eval())
    x, tokens = torch.randn(2, 8, 5, 6).to(dtype), torch.randn(2, 3, 32).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = projector.operands(tokens)[2]
        projector(x, tokens)
    assert entries(projector)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, projector.operands(tokens)[2])


def test_a_scale_that_is_a_tensor():
    projector, tokens = nn.freeze(nn.Projector(8, 32, 24).eval()), torch.randn(2, 3, 32)
    projector.scale = torch.tensor(0.5)
    before = projector.operands(tokens)[0]
    projector.scale.fill_(1)
    torch.testing.assert_close(projector.operands(tokens)[0], 2 * before)


def test_a_subclass_with_other_keys():
    class Tripled(nn.Projector):
        def _rows(self, tokens):
            return 3 * super()._rows(tokens)

    projector, tokens = nn.freeze(Tripled(8, 32, 24).eval()), torch.randn(2, 3, 32)
    plain = nn.unfreeze(copy.deepcopy(projector))
    assert torch.equal(projector.operands(tokens)[0], plain.operands(tokens)[0])


def test_a_functional_call_of_a_projector():
    projector, tokens = nn.freeze(nn.Projector(8, 32, 24).eval()), torch.randn(2, 3, 32)
    projector.value.weight.normal_()  # it is 0, and the keys would not matter
    projector.operands(tokens)
    x = torch.randn(2, 8, 5, 6)
    weights = {"key.weight": projector.key.weight * 3}
    with torch.enable_grad():
        computed = {"key.weight": projector.key.weight * 3}
    plain = nn.unfreeze(copy.deepcopy(projector))
    expected = torch.func.functional_call(plain, weights, (x, tokens))
    assert not torch.allclose(projector(x, tokens), expected)
    for each in (weights, computed):
        assert torch.equal(torch.func.functional_call(projector, each, (x, tokens)), expected)


def test_another_tensor_at_the_same_address():
    module, x = made(), image()
    for value in range(20):  # a freed tensor's address is taken at once
        module.filters = torch.nn.Parameter(torch.full((3, 8), float(value)).double())
        assert folds(module, x)


def test_dtype_device_and_size():
    module = made()
    module(image())
    assert folds(module.float(), image().float())
    assert folds(module, image(5, 7).float())
    assert folds(module, image().float())
    module.to("meta")
    assert module(image().to("meta", torch.float32)).device.type == "meta"


@pytest.mark.parametrize(
    "drop",
    [
        pytest.param(lambda module: module.train(), id="train"),
        pytest.param(lambda module: module.train().eval(), id="train and eval"),
        pytest.param(lambda module: torch.nn.Sequential(module).train(), id="train of the parent"),
        pytest.param(lambda module: module.load_state_dict(module.state_dict()), id="load_state_dict"),
        pytest.param(lambda module: module.double(), id="_apply"),
        pytest.param(lambda module: torch.nn.Sequential(module).double(), id="_apply of the parent"),
    ],
)
def test_dropped(drop):
    module = made()
    module(image())
    assert entries(module)
    drop(module)
    assert not entries(module)


def test_writes_that_leave_no_trace():
    """The documented limit: they need `unfreeze`, or train()."""
    module, x = made(), image()
    before = module(x)
    module.filters.data.add_(1)
    assert torch.equal(module(x), before)
    nn.freeze(nn.unfreeze(module))
    assert not torch.equal(module(x), before)
    before = module(x)
    module.train()
    module.filters.data.add_(1)
    module.eval()
    assert not torch.equal(module(x), before)


def test_off_in_training_with_gradients_and_in_inference_tensors():
    module, x = made(), image()
    module.train()
    module(x)
    assert not entries(module)
    module.eval()
    with torch.enable_grad():
        module(x).sum().backward()
    assert module.filters.grad is not None
    assert not entries(module)
    with torch.inference_mode():
        module(x)
        assert entries(module)
        inference = nn.freeze(nn.FilterTokenizer(8, 3).double().eval())
        inference(x)
        assert not entries(inference)
    assert not folds(module, x)
    with torch.enable_grad():  # what inference mode has made is not saved for a backward
        x.requires_grad_()
        module(x).sum().backward()


def test_autocast_has_operands_of_its_own():
    module, x = made().float(), image().float()
    plain = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert folds(module, x)
        assert not folds(module, x)
    assert folds(module, x)
    assert torch.equal(module(x), plain)


def test_functional_calls():
    module, x = made(), image()
    before = module(x)
    other = {name: value + 1 for name, value in module.state_dict().items()}
    found = torch.func.functional_call(module, other, (x,))
    assert not torch.equal(found, before)
    assert torch.equal(module(x), before)
    kept = dict(entries(module))
    stacked = {name: torch.stack([value, value + 1]) for name, value in module.state_dict().items()}
    torch.func.vmap(lambda values: torch.func.functional_call(module, values, (x,)))(stacked)
    assert entries(module) == kept


@pytest.mark.parametrize("kind", ["tokenizer", "projector"])
def test_off_under_compile_export_and_tracing(kind):
    module, given = made(), (image(),)
    weight = module.filters
    if kind == "projector":
        module = nn.freeze(nn.Projector(8, 32, 24).double().eval())
        module.value.weight.normal_()  # it is 0, and the keys would not matter
        weight, given = module.key.weight, (image(), torch.randn(2, 3, 32).double())
    expected = module(*given)
    for make in (
        lambda: torch.compile(module, fullgraph=True, backend="eager"),
        lambda: torch.export.export(module, given).module(),
        lambda: torch.export.export(module, given, strict=True).module(),
        lambda: torch.jit.trace(module, given, check_trace=False),
    ):
        entries(module).clear()
        compiled = make()
        torch.testing.assert_close(compiled(*given), expected)
        assert not entries(module)
    torch._dynamo.reset()
    module(*given)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    compiled(*given)
    before = compiled(*given)
    weight.data.mul_(3)  # kept operands would not notice
    assert not torch.allclose(compiled(*given), before)
    torch.testing.assert_close(compiled(*given), nn.unfreeze(copy.deepcopy(module))(*given))


def test_copies_and_pickles_are_empty():
    module, x = made(), image()
    expected = module(x)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert entries(copied) == {}
        assert entries(module)
        assert torch.equal(copied(x), expected)
        assert entries(copied)
    other = copy.copy(module)  # shares what is kept
    other._parameters = dict(module._parameters)
    other.filters = torch.nn.Parameter(module.filters + 1)
    assert not torch.equal(other(x), expected)
    assert torch.equal(module(x), expected)


def test_a_position_code_with_hooks_is_called():
    module, x, calls = made(), image(), []
    module.position.register_forward_hook(lambda *args: calls.append(1))
    module(x)
    module(x)
    assert len(calls) == 2


class Scaled(nn.LinearPositionCode):
    """With a buffer and an attribute that its table depends on."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("gain", torch.ones(()))
        self.times = 1

    def _cells(self):
        return super()._cells() * self.gain * self.times


def test_a_position_code_of_another_class_is_called():
    module, x = made(), image()
    module.position = Scaled(4, 5).double()
    before = module(x)
    module.position.gain.fill_(3)
    first = module(x)
    module.position.times = 2
    assert not torch.equal(first, before)
    assert not torch.equal(module(x), first)


def test_a_pruned_position_code():
    module, x = made(), image()
    prune.random_unstructured(module.position, "weight", 0.5)
    before = module(x)
    module.position.weight_mask.zero_()
    assert folds(module, x)
    assert not torch.equal(module(x), before)


def test_off_in_captures_of_cuda_graphs(monkeypatch):
    module, x = made(), image()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    module(x)
    assert not entries(module)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    module(x)
    assert entries(module)


def _sharded_parameters_change(rank):
    """In eval mode throughout, so that nothing but the parameters themselves tells of the steps."""
    x = image().float()
    mesh = init_device_mesh("cpu", (2,))
    flat = {"use_orig_params": True, "device_id": torch.device("cpu")}
    for wrap in (
        lambda net: FullyShardedDataParallel(net, sharding_strategy=ShardingStrategy.NO_SHARD, **flat),
        lambda net: FullyShardedDataParallel(net, **flat),
        lambda net: fully_shard(net, mesh=mesh),
    ):
        torch.manual_seed(0)
        net = wrap(torch.nn.Sequential(nn.FilterTokenizer(8, 3, token_linear=False, token_channels=8).eval()))
        nn.freeze(net)
        optimizer = torch.optim.SGD(net.parameters(), 1.0)
        for _ in range(3):
            with torch.no_grad():
                found = net(x)
            expected = net(x)  # with gradients nothing is kept
            assert torch.equal(found, expected)
            expected.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def test_sharded_parameters():
    two_processes(_sharded_parameters_change)


def test_state_is_that_of_the_module():
    plain, module = nn.FilterTokenizer(8, 3), nn.freeze(nn.FilterTokenizer(8, 3))
    assert list(module.state_dict()) == list(plain.state_dict())
    assert repr(module) == repr(plain)
    nn.unfreeze(module)
    assert vars(module).keys() == vars(plain).keys()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_fused_optimizers(kind):
    """They write parameters without a word to autograd."""
    module, x = nn.freeze(nn.FilterTokenizer(8, 3).eval()), torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        before = module(x)
    optimizer = kind(module.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        module(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        found = module(x)
        assert torch.equal(found, nn.unfreeze(copy.deepcopy(module))(x))
    assert not torch.equal(found, before)


def test_steps_that_are_not_fused_drop_nothing_of_other_modules():
    module, student = made(), torch.nn.Linear(2, 2)
    module(image())
    before = {name: entry.value for name, entry in entries(module).items()}
    with torch.enable_grad():
        student(torch.ones(2)).sum().backward()
    torch.optim.SGD(student.parameters(), lr=0.1, fused=False).step()
    module(image())
    assert before
    assert all(before[name] is entry.value for name, entry in entries(module).items())


@pytest.mark.parametrize("function", [nn.freeze, nn.unfreeze])
@pytest.mark.parametrize("given", [None, nn.FilterTokenizer])
def test_what_is_no_module(function, given):
    with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module, got (NoneType|type)"):
        function(given)


def test_nothing_to_freeze():
    with pytest.raises(ValueError, match=r"`module` must contain a module of `vt_fast.nn` .* got Linear"):
        nn.freeze(torch.nn.Linear(2, 2))


def test_networks():
    torch.manual_seed(0)
    net, x = vt_fast.models.VTResNet(18, num_classes=5).eval(), torch.randn(1, 3, 64, 64)
    expected = net(x)
    nn.freeze(net)
    found = net(x)
    torch.testing.assert_close(found, expected)  # the projector's keys are rounded in other places
    assert torch.equal(net(x), found)
    assert any(entries(part) for part in net.modules() if isinstance(part, frozen.Freezable))
