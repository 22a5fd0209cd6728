"""Every host, against itself: results and gradients, narrow dtypes, training, compile, export and copies."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import vt_fast
from tests._support import hosts
from tests._support.hosts import flat
from tests.patches.cases import CASES, FEW, every

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]
EVERY = every()
# Those whose inputs all have the batch first.
BATCHED = [
    pytest.param(name, marks=() if name in FEW else pytest.mark.hosts)
    for name in (
        "timm latent",
        "timm pool 2d",
        "timm pool 2d, separate, resized",
        "timm CaiT",
        "timm ViT",
        "perceiver-pytorch",
        "open_clip pool 2d",
        "open_clip pooler",
        "physicsnemo Transolver",
        "physicsnemo FLARE",
    )
]


@EVERY
def test_results_and_gradients_in_float64(host):
    module, patched, inputs = hosts.twins(host)
    assert hosts.ops_in(lambda: host.results(module, inputs)) == 0
    assert hosts.ops_in(lambda: host.results(patched, inputs)) == host.ops
    hosts.close(host.solve(patched, inputs), host.solve(module, inputs))


@EVERY
@pytest.mark.parametrize("training", [False, True])
def test_members_that_are_wrapped_later(host, training):
    """As adapters and quantisation do: a patched module must not expect anything of them any more."""
    module, patched, inputs = hosts.twins(host)
    for each in (module, patched):
        each.train(training)
    for start in host.replaced:
        for name in [name for name, _ in module.get_submodule(start).named_modules() if name]:
            path = ".".join(filter(None, (start, name)))
            outcomes = []
            for each in (module, patched):
                member = each.get_submodule(path)
                each.set_submodule(path, nn.Sequential(member).train(training))
                try:
                    outcomes.append(host.results(each, inputs))
                except Exception as error:
                    outcomes.append((type(error), str(error)))
                each.set_submodule(path, member)
            expected, found = outcomes
            if isinstance(expected, list):
                assert isinstance(found, list), (path, found)
                for value, other in zip(found, expected, strict=True):
                    torch.testing.assert_close(value, other, atol=1e-10, rtol=1e-10)
            else:
                assert found == expected, path


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FEW else pytest.mark.hosts)
        for name in (
            "timm latent",
            "timm pool 2d",
            "timm class attention",
            "open_clip pool 2d",
            "open_clip pooler",
            "physicsnemo FLARE",
        )
    ],
)
def test_inputs_without_or_with_too_many_batches_meet_the_host_s_own_error(name):
    module, patched, (x,) = hosts.twins(CASES[name])
    for other in (x[0], x[None]):
        outcomes = []
        for each in (module, patched):
            try:
                outcomes.append(tuple(each(other).shape))
            except Exception as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_accuracy_of_narrow_dtypes(host, dtype):
    """Errors are as large as the host's own: a single one may be larger by chance, so their mean counts."""
    ratios = []
    for seed in range(host.seeds):
        module, patched, inputs = hosts.twins(host, dtype, seed)
        exact = host.solve(copy.deepcopy(module).double(), [value.double() for value in inputs])
        ratios += hosts.error_ratios(host.solve(patched, inputs), host.solve(module, inputs), exact)
    assert sum(ratios) / len(ratios) < 0.5  # times 1.41


@EVERY
def test_training(host):
    module, patched, inputs = hosts.twins(host)
    for each in (module, patched):
        optimizer = torch.optim.AdamW(each.parameters(), 1e-2, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            sum(value.square().mean() for value in host.results(each, inputs)).backward()
            optimizer.step()
    before = host.made()[0].state_dict()
    assert any(not torch.equal(before[name], value) for name, value in module.state_dict().items())
    hosts.close(patched.state_dict(), module.state_dict(), 1e-9)


@EVERY
def test_unpatch_gives_the_same_bits(host):
    module, patched, inputs = hosts.twins(host)
    host.results(patched, inputs)
    vt_fast.unpatch(patched)
    assert [type(part) for part in patched.modules()] == [type(part) for part in module.modules()]
    assert [vars(part).keys() for part in patched.modules()] == [
        vars(part).keys() for part in module.modules()
    ]
    found, expected = host.solve(patched, inputs), host.solve(module, inputs)
    for name, value in expected.items():
        assert value is None or torch.equal(found[name], value), name


@EVERY
def test_the_rest_of_the_module_stays(host):
    module, patched, inputs = hosts.twins(host)
    assert repr(patched) == repr(module)
    assert list(patched.state_dict()) == list(module.state_dict())
    for part, other in zip(patched.modules(), module.modules(), strict=True):
        assert isinstance(part, type(other))
        assert type(part).__name__ == type(other).__name__
    expected = host.results(patched, inputs)
    file = io.BytesIO()
    torch.save(patched, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    shallow = copy.copy(patched)
    for copied in (copy.deepcopy(patched), pickle.loads(pickle.dumps(patched)), loaded, shallow):
        assert hosts.ops_in(lambda: host.results(copied, inputs)) == host.ops  # noqa: B023
        assert all(map(torch.equal, host.results(copied, inputs), expected))


@EVERY
def test_compile_and_export(host):
    module, patched, inputs = hosts.twins(host)
    expected = host.results(module, inputs)
    torch._dynamo.reset()
    counts = []
    backend = hosts.counted_graphs(counts)
    compiled = torch.compile(patched, backend=backend, fullgraph=host.whole)
    hosts.close(dict(enumerate(host.results(compiled, inputs))), dict(enumerate(expected)))
    ops = host.ops if host.traced is None else host.traced
    assert sum(counts) == ops

    class Called(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = patched

        def forward(self, *inputs):
            return tuple(host.results(self.module, inputs))

    program = torch.export.export(Called(), tuple(inputs))
    nodes = [node for node in program.graph.nodes if str(node.target).startswith("vt_fast.")]
    assert len(nodes) == ops
    hosts.close(dict(enumerate(program.module()(*inputs))), dict(enumerate(expected)))


@pytest.mark.parametrize("name", BATCHED)
def test_export_of_any_batch(name):
    host = CASES[name]
    module, patched, inputs = hosts.twins(host)
    sizes = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(patched, tuple(inputs), dynamic_shapes=[sizes] * len(inputs))
    larger = [torch.cat([value, value[:1]]) for value in inputs]
    found = flat(program.module()(*larger))
    hosts.close(dict(enumerate(found)), dict(enumerate(host.results(module, larger))))
