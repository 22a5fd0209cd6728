"""Parameters, their names, their dtype and device, and the choice of backend."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from tests._support.nn_cases import CASES, B, C, L, build, feature_map, incoming, made, run, stack
from vt_fast import nn
from vt_fast.nn.base import BackendModule


def linear(name, *shape):
    """The parameters of a linear layer with a bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name):
    """Those of a norm of 8 channels."""
    return linear(name, 8)


# A stored model depends on these: change none without a way to load the old ones.
FROM_TOKENS = linear("query", 8, 6) | {"key.weight": (8, 4)} | linear("value", 8, 2) | linear("token", 6, 8)
FEED_FORWARD = norm("transformer.token_norm") | linear("transformer.linear", 8, 8)
BLOCK = {
    "tokenizer.filters": (2, 8),
    **FEED_FORWARD,
    **linear("projector.query", 8, 8),
    "projector.key.weight": (8, 8),
    **linear("projector.value", 8, 8),
}
LAST_BLOCK = linear("tokenizer.query", 8, 8) | FEED_FORWARD
NAMES = {
    "filter": (
        lambda: nn.FilterTokenizer(8, 2, 6, value_groups=2, position=nn.LinearPositionCode(3, 4)),
        {"filters": (2, 8), "position.weight": (9, 4)} | linear("value", 8, 4) | linear("token", 6, 12),
    ),
    "recurrent": (lambda: nn.RecurrentTokenizer(8, 2, 6, key_groups=2, value_groups=4), FROM_TOKENS),
    "static": (
        lambda: nn.StaticTokenizer(8, 2, 6, position=nn.ConvPositionCode(4, 3, convolutions=2, width=5)),
        {"filters": (2, 8), **linear("value", 8, 8), **linear("token", 6, 11)}
        | {"position.kernel0": (5, 1, 3, 3), "position.kernel1": (5, 5, 3, 3)}
        | {"position.mix": (1, 5, 1, 1), "position.weight": (1, 3)},
    ),
    "dynamic": (
        lambda: nn.DynamicTokenizer(8, 2, 6, num_heads=4, key_groups=2, value_groups=4),
        FROM_TOKENS,
    ),
    "clustering": (lambda: nn.ClusteringTokenizer(8, 2), {}),
    "pooling": (lambda: nn.PoolingTokenizer(8, 2, 6), linear("token", 6, 8)),
    "transformer": (
        lambda: nn.TokenTransformer(8, hidden=12, token_norm="layer", groups=2),
        {**norm("token_norm"), **linear("key", 4, 4), "query.weight": (4, 4), **linear("value", 8, 4)}
        | {**linear("first", 12, 8), **linear("second", 8, 12)},
    ),
    "transformer v1": (
        lambda: nn.TokenTransformer(8, variant="v1", bias=False),
        {"key.weight": (4, 8), "query.weight": (4, 8), "value.weight": (8, 8), "linear.weight": (8, 8)},
    ),
    "graph": (lambda: nn.GraphConv(2, 8), {"adjacency": (2, 2)} | linear("linear", 8, 8)),
    "none": (lambda: nn.TokenFeedForward(8), linear("linear", 8, 8)),
    "projector": (
        lambda: nn.Projector(8, 6, 12, width=4, query_groups=2),
        {**linear("query", 4, 4), "key.weight": (4, 6), **linear("value", 12, 6), "shortcut.weight": (12, 8)},
    ),
    "stack": (
        lambda: nn.VisualTransformerStack(8, 2, num_tokens=2, relation="none", last_projector=False),
        {f"blocks.0.{key}": shape for key, shape in BLOCK.items()}
        | {f"blocks.1.{key}": shape for key, shape in LAST_BLOCK.items()},
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes(name):
    make, expected = NAMES[name]
    assert {key: tuple(value.shape) for key, value in make().state_dict().items()} == expected


@pytest.mark.parametrize("name", CASES)
def test_round_trip_copy_and_pickle(name):
    module = made(CASES[name])
    x, tokens = feature_map("contiguous"), incoming(module)
    expected = run(module, x, tokens)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = CASES[name]().double()
    loaded.load_state_dict(torch.load(file))
    for other in (loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for one, two in zip(run(other, x, tokens), expected, strict=True):
            assert torch.equal(one, two)
    nn.set_backend(module, "torch")
    assert copy.deepcopy(module).backend == "torch"
    assert pickle.loads(pickle.dumps(module)).backend == "torch"


@pytest.mark.parametrize("name", CASES)
def test_the_backend_is_no_part_of_the_state(name):
    module = CASES[name]()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    nn.set_backend(module, "reference")
    after = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_no_worse_than_the_reference_in_it(name, dtype):
    """Against float64, folded errors stay within twice those of the paper as written, plus one rounding."""
    exact = made(CASES[name])
    if "clustering" in name and dtype != torch.float32:
        # A rounded pixel may change its cluster; then both paths are far from float64, each in its own way.
        exact = made(CASES[name]).to(dtype).double()
    module = copy.deepcopy(exact).to(dtype)
    x = feature_map("contiguous").detach().to(dtype)
    tokens = incoming(module).detach().to(dtype)
    exact.load_state_dict({key: value.double() for key, value in module.state_dict().items()})
    truth = run(exact, x.double(), tokens.double())
    folded = run(module, x, tokens)
    nn.set_backend(module, "reference")
    written = run(module, x, tokens)
    for one, two, true in zip(folded, written, truth, strict=True):
        assert one.dtype == two.dtype == dtype
        error, allowed = (one - true).norm(), 2 * (two - true).norm()
        assert error <= allowed + torch.finfo(dtype).eps * true.norm()


def test_autocast():
    module = made(CASES["stack: default"], dtype=torch.float32)
    x = feature_map("contiguous", dtype=torch.float32)
    truth, _ = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, tokens = module(x)
    assert y.dtype == tokens.dtype == torch.bfloat16
    module.backend = "reference"
    with torch.autocast("cpu", torch.bfloat16):
        written, _ = module(x)
    eps = torch.finfo(torch.bfloat16).eps
    assert (y - truth).norm() <= 2 * (written - truth).norm() + eps * truth.norm()
    y.float().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad)


def maps_kept(module, x):
    """How many tensors of the map's size are kept for the backward."""
    kept = set()

    def keep(tensor):
        if tensor.numel() == x.numel():
            kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = module(x)
    assert results[0].requires_grad
    return len(kept)


@pytest.mark.parametrize("form", ["contiguous", "channels_last", "rows"])
@pytest.mark.parametrize(("name", "count"), [("stack: default", 3), ("module: default", 1)])
def test_every_map_is_kept_once_under_autocast_too(name, count, form):
    module, x = made(CASES[name], dtype=torch.float32), feature_map(form, dtype=torch.float32)
    assert maps_kept(module, x) == count
    with torch.autocast("cpu", torch.bfloat16):
        assert maps_kept(module, x) == count


def test_autocast_leaves_the_map_of_the_reference_and_float64_alone():
    x = feature_map("contiguous", dtype=torch.float32)
    module, seen = made(CASES["stack: default"], dtype=torch.float32), []
    module[0].tokenizer.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        module(x)
        module[0](x)
        module[0].tokenizer.backend = "reference"
        module(x)
        module[0](x)
        nn.set_backend(module, None)
        module.double()(x.double())
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32, torch.float64]


def test_a_container_sets_and_tells_the_backend_of_its_members():
    module = stack(C, 2, num_tokens=L, backend="torch")
    assert module.backend == module[1].backend == module[0].projector.backend == "torch"
    module.backend = "reference"
    assert {part.backend for part in module.modules() if isinstance(part, BackendModule)} == {"reference"}
    module[0].backend = None
    assert module.backend == "mixed"
    assert module[0].backend is None
    assert build(C).backend is None


def test_a_container_leaves_the_choice_of_its_members_alone():
    tokenizer = nn.FilterTokenizer(C, backend="reference")
    module = nn.VisualTransformer.from_parts(tokenizer, torch.nn.Identity())
    assert module.backend == tokenizer.backend == "reference"
    assert nn.VisualTransformer.from_parts(None, torch.nn.Identity()).backend is None


def test_set_backend_reaches_into_any_network():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, C, 1), torch.nn.ModuleDict({"vt": build(C)}))
    nn.set_backend(net, "reference")
    assert net[1]["vt"].backend == "reference"


@pytest.mark.parametrize("name", CASES)
def test_repr(name):
    module = CASES[name]()
    text = repr(module)
    assert type(module).__name__ in text
    if not isinstance(module, (nn.VisualTransformer, nn.VisualTransformerStack)):
        assert "backend" not in text
        module.backend = "reference"
        assert "backend='reference'" in repr(module)


def test_repr_of_the_parts():
    assert repr(nn.FilterTokenizer(64, 8)) == "FilterTokenizer(64, num_tokens=8, token_channels=64)"
    assert "64, num_tokens=16, token_channels=64, op_heads=4, num_heads=16" in repr(
        nn.DynamicTokenizer(64, key_groups=4, value_groups=4)
    )
    assert repr(nn.TokenTransformer(64, num_heads=4, variant="v1")).startswith(
        "TokenTransformer(\n  64, num_heads=4, variant='v1'"
    )
    assert repr(nn.GraphConv(16, 64)).startswith("GraphConv(\n  num_tokens=16, token_channels=64\n")
    assert repr(nn.LinearPositionCode(14, 9)) == "LinearPositionCode(grid=14, features=9)"
    assert "64, token_channels=32, out_channels=96, width=96, num_heads=2" in repr(
        nn.Projector(64, 32, 96, num_heads=2)
    )


def test_shared_parameters_get_the_sum_of_their_gradients():
    """One recurrent module used twice, as a user may do to save parameters."""
    block = made(lambda: build(C, num_tokens=L, tokenizer="recurrent"))
    shared = nn.VisualTransformerStack.from_parts([made(lambda: build(C, num_tokens=L)), block, block])
    apart = copy.deepcopy(shared)
    apart.blocks[2] = copy.deepcopy(block)
    x = feature_map("contiguous")
    for module in (shared, apart):
        sum(part.square().sum() for part in module(x)).backward()
    for (_, one), (_, two), (_, three) in zip(
        shared[1].named_parameters(), apart[1].named_parameters(), apart[2].named_parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, two.grad + three.grad, rtol=1e-10, atol=1e-10)
    assert len(list(shared.parameters())) < len(list(apart.parameters()))
    assert x.shape[0] == B
