"""`vt_fast.distributed` in 1 to 8 processes: the results and gradients of one, exchanged in few bytes."""

import os
import re
import tempfile
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist
from torch.utils.checkpoint import checkpoint

from tests._support import family, problems, sharding
from tests._support.comparing import assert_close
from tests._support.two_processes import processes
from tools.sharding import Traffic
from vt_fast import distributed, functional
from vt_fast.distributed import exchange
from vt_fast.testing import assert_as_accurate

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]

CASES = [
    (op, options, ("bnc", "nchw", "channels_last")[index % 3])
    for index, (op, options) in enumerate(problems.CASES)
]


def shares(count):
    """How the pixels are shared out: nearly alike, unequally, and with processes that have none."""
    yield [1 / count] * count
    if count > 1:
        weights = [2.0**-rank for rank in range(count)]
        yield [weight / sum(weights) for weight in weights]
        yield [0.0] * (count - 1) + [1.0]
        yield [float(rank == count // 2) for rank in range(count)]


def made(step=1):
    cases = [("problems", case) for case in CASES] + [("family", case) for case in family.CASES]
    for index, (kind, case) in enumerate(cases[::step]):
        yield index, problems.make(*case) if kind == "problems" else family.make(*case)


def randn(*shape, seed=0, dtype=torch.float64):
    """The same numbers in each process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def own(x, rank=None, dim=1):
    """This process's part of a map."""
    return x.tensor_split(dist.get_world_size(), dim)[dist.get_rank() if rank is None else rank].detach()


# ---- values ----


def check_all(rank):
    count = dist.get_world_size()
    ways = list(shares(count))
    # Fewer cases where more processes share the cores.
    for index, problem in made(count if count > 2 else 1):
        expected = problem.solve(torch.float64, plain=True)
        results = [value for name, value in expected.items() if name.startswith("result")]
        for way in ways[index % 2 :: 2] if count > 1 else ways:
            bounds = sharding.cuts(problem, way)
            function = getattr(distributed, problem.op)
            found = sharding.solve(problem, function, bounds, rank, results)
            wanted = sharding.part_of_solution(problem, expected, bounds, rank)
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                label = f"{problem.op} {problem.options} {list(problem.operands)} {bounds} {name}"
                assert_close(found[name], value, label)
            again = sharding.solve(problem, function, bounds, rank, results)
            for name, value in found.items():
                assert torch.equal(value.nan_to_num(), again[name].nan_to_num())
            sharding.assert_same_bits(list(sharding.replicated(problem, found).values()))


def check_narrow_dtypes(rank):
    """Sums are exchanged in float32, so that they are rounded once."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for op, options in (("tokenize", ("shared",)), ("project_tokenize", ("token_bias",))):
            problem = problems.make(op, options)
            problem.round_operands(dtype)
            exact, plain = problem.solve(plain=True), problem.solve(dtype, plain=True)
            bounds = sharding.cuts(problem, list(shares(dist.get_world_size()))[1])
            narrow = problems.Problem(op, problem.leaves(dtype), problem.options)
            results = [value for name, value in exact.items() if name.startswith("result")]
            found = sharding.solve(narrow, getattr(distributed, op), bounds, rank, results)
            wanted = sharding.part_of_solution(problem, exact, bounds, rank)
            judge = sharding.part_of_solution(problem, plain, bounds, rank)
            for name, value in found.items():
                assert value.dtype == (torch.float32 if name == problem.lse else dtype)
                assert_as_accurate(value, wanted[name], judge[name], name, terms=200)


def check_backends(rank):
    x, queries = own(randn(2, 37, 16)), randn(4, 16, seed=1)
    expected = functional.tokenize(randn(2, 37, 16), queries)
    for backend in ("torch", "cpu"):
        assert_close(distributed.tokenize(x, queries, backend=backend), expected)
    with pytest.raises(ValueError, match='`backend` must be None or one of "cpu"'):
        distributed.tokenize(x[:, :0], queries, backend="none")
    with pytest.raises((ValueError, RuntimeError), match="cuda"):
        distributed.tokenize(x, queries, backend="cuda")


def check_autocast(rank):
    x, queries = randn(2, 40, 16, dtype=torch.float32), randn(4, 16, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        tokens, lse = distributed.tokenize(own(x), queries, return_stats=True)
        y = distributed.project(own(x), queries, tokens)
        expected, expected_lse = functional.tokenize(x, queries, return_stats=True)
    assert tokens.dtype == y.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    exact, _ = functional.tokenize(*(each.bfloat16().double() for each in (x, queries)), return_stats=True)
    assert_as_accurate(tokens, exact, expected, "tokens", terms=40)
    torch.testing.assert_close(lse, expected_lse)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_processes_find_what_one_finds(count):
    processes(count, check_all)


# ---- who holds what ----


def check_convention(rank):
    """A loss of the map's parts and of tokens: each process gets its part of dx, and all of dqueries."""
    x, queries = randn(1, 31, 6), randn(3, 6, seed=1)
    whole, rows = x.clone().requires_grad_(), queries.clone().requires_grad_()
    tokens = functional.tokenize(whole, rows)
    y = functional.project(whole, rows, tokens)
    (y.sin().sum() + tokens.cos().sum()).backward()
    mine, own_rows = own(x).requires_grad_(), queries.clone().requires_grad_()
    tokens = distributed.tokenize(mine, own_rows)
    y = distributed.project(mine, own_rows, tokens)
    # Each process adds its part of the map's loss. That of the tokens is the same on all, and counts once.
    (y.sin().sum() + tokens.cos().sum()).backward()
    assert_close(mine.grad, own(whole.grad))
    assert_close(own_rows.grad, rows.grad)
    sharding.assert_same_bits([tokens, own_rows.grad])


def check_a_process_that_does_not_use_its_map(rank):
    """It takes part in the sums all the same, as long as its backward pass reaches the function."""
    x, keys, values = randn(1, 30, 6), randn(1, 3, 6, seed=1), randn(1, 3, 6, seed=2).requires_grad_()
    y = distributed.project(own(x), keys, values)
    (y.sum() * float(rank == 0)).backward()
    alone = randn(1, 3, 6, seed=2).requires_grad_()
    functional.project(own(x, 0), keys, alone).sum().backward()
    assert_close(values.grad, alone.grad)


def check_shared(rank):
    """Parameters of other layers on the pixels: whole gradients, by one collective for all of them."""
    layer, x = torch.nn.Linear(6, 4).double(), randn(2, 31, 6)
    layer(x).sin().sum().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    with Traffic() as seen:
        y = torch.nn.functional.linear(own(x), *distributed.shared(layer.weight, layer.bias))
        y.sin().sum().backward()
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        assert_close(parameter.grad, grad)
    assert seen.sent == [("_allgather_base_", 8 * (1 + 6 * 4 + 4))]
    frozen, bias = distributed.shared(layer.weight.detach(), layer.bias)
    assert not frozen.requires_grad
    assert bias.requires_grad


def check_groups(rank):
    """Groups of groups, and two halves that share out a map each."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    across = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    both = [pairs[rank // 2], across[rank % 2]]
    x, queries = randn(2, 41, 6), randn(3, 6, seed=1)
    for normalize in ("pixels", "tokens"):
        solutions = []
        for function, values, options in (
            (functional.tokenize, x, {}),
            (distributed.tokenize, own(x), {"group": both}),
        ):
            rows = queries.clone().requires_grad_()
            tokens, stats = function(values, rows, normalize=normalize, return_stats=True, **options)
            (tokens.sin().sum() + stats.cos().sum()).backward()
            solutions.append([tokens, stats, rows.grad])
        assert_close(*reversed(solutions))
        sharding.assert_same_bits(solutions[1])
    half = x[rank // 2 :][:1]
    found = distributed.tokenize(half.tensor_split(2, 1)[rank % 2], queries, group=both[0])
    assert_close(found, functional.tokenize(half, queries))
    with pytest.raises(ValueError, match="`group` must contain this process, got a group of others"):
        distributed.tokenize(x, queries, group=pairs[1 - rank // 2])


# ---- what is sent ----


def check_traffic(rank):
    """One collective a pass, of the tokens' size; none of a map's. Float64: 8 bytes a number."""
    batch, pixels, channels, count, heads = 2, 4000, 16, 3, 2
    x = own(randn(batch, pixels, channels)).requires_grad_()
    queries = randn(heads * count, channels // heads, seed=1).requires_grad_()
    with Traffic() as forward:
        tokens, lse = distributed.tokenize(x, queries, num_heads=heads, return_stats=True)
    with Traffic() as backward:
        (tokens.sum() + lse.sum()).backward()
    pooled = 1 + batch * count * channels + batch * heads * count
    assert forward.sent == [("_allgather_base_", 8 * pooled)]
    assert backward.sent == [("_allgather_base_", 8 * (1 + queries.numel()))]

    keys, values = (randn(batch, count, channels, seed=seed).requires_grad_() for seed in (1, 2))
    bias = randn(count, seed=3).requires_grad_()
    with Traffic() as forward:
        y = distributed.project(x, keys, values, token_bias=bias, residual=x)
    with Traffic() as backward:
        y.sum().backward()
    assert forward.sent == []
    assert backward.sent == [("_allgather_base_", 8 * (1 + keys.numel() + values.numel() + bias.numel()))]

    with Traffic() as forward:
        y, tokens = distributed.project_tokenize(x, keys, values, values.detach(), residual=x)
    with Traffic() as backward:
        (y.sum() + tokens.sum()).backward()
    assert forward.sent == [("_allgather_base_", 8 * (1 + batch * count * (channels + 1)))]
    assert backward.sent == [("_allgather_base_", 8 * (1 + keys.numel() + values.numel()))]

    with Traffic() as seen:  # nothing is sent for operands without gradients
        distributed.tokenize(x, keys.detach()).sum().backward()
    assert len(seen.sent) == 1


# ---- errors ----


def check_different_calls(rank):
    x, wide = randn(1, 9, 8), rank == 0
    with pytest.raises(RuntimeError, match="have not made the same call"):
        distributed.tokenize(x, randn(2, 8), normalize="pixels" if wide else "tokens")
    # As many numbers, in another shape.
    batch, count = (2, 3) if wide else (3, 2)
    with pytest.raises(RuntimeError, match="have not made the same call"):
        distributed.tokenize(randn(batch, 9, 8), randn(count, 8))
    for options in (
        {"scale": 0.5 if wide else 1.0},
        {"layer_norm_eps": 1e-5 if wide else None},
        {"num_heads": 2 if wide else 1, "scores": randn(1, 2, 9)},
    ):
        with pytest.raises(RuntimeError, match="have not made the same call"):
            distributed.tokenize(x, None if "scores" in options else randn(2, 8), **options)
    with (
        torch.autocast("cpu", enabled=wide),
        pytest.raises(RuntimeError, match="have not made the same call"),
    ):
        distributed.tokenize(x.float(), randn(2, 8).float())
    # Gradients of keys (1, 2, 8) meet those of keys (2, 8).
    keys = (randn(1, 2, 8) if wide else randn(2, 8)).requires_grad_()
    y = distributed.project(x, keys, randn(1, 2, 8))
    with pytest.raises(RuntimeError, match="have not made the same call"):
        y.sum().backward()


def check_different_calls_on_other_devices(rank):
    """Where a check of data would wait for the device, what is found is NaN."""
    synchronous, exchange._SYNCHRONOUS = exchange._SYNCHRONOUS, []
    x, queries = randn(1, 9, 8), randn(2, 8)
    assert_close(distributed.tokenize(own(x), queries), functional.tokenize(x, queries))
    found = distributed.tokenize(x, queries, normalize="pixels" if rank else "tokens")
    assert found.isnan().all()
    exchange._SYNCHRONOUS = synchronous


def check_arguments(rank):
    x, queries = randn(2, 9, 8), randn(3, 8)
    with pytest.raises(ValueError, match=re.escape("`mask` must be (B, N) with B = 2, N = 9, got (2, 8)")):
        distributed.tokenize(x, queries, mask=torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=re.escape("`mask` must be (B, N) with B = 2, N = 0, got (2, 8)")):
        distributed.tokenize(x[:, :0], queries, mask=torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="`x` must have no size of 0 except B"):
        distributed.tokenize(x[..., :0], queries)
    with pytest.raises(TypeError, match="`return_stats` must be a bool, got int"):
        distributed.tokenize(x, queries, return_stats=1)
    with pytest.raises(TypeError, match="`x` must be float16, bfloat16, float32 or float64, got"):
        distributed.tokenize(x[:, :0].long(), queries)
    with pytest.raises(RuntimeError, match="run in eager mode only"):
        torch.func.vmap(lambda x: distributed.tokenize(x, queries))(x[None])
    rows = queries.clone().requires_grad_()
    for wanted in (distributed.tokenize(x, rows), *distributed.shared(rows)):
        with pytest.raises(RuntimeError, match="differentiated only once: use no create_graph=True"):
            torch.autograd.grad(wanted.sum(), rows, create_graph=True)
    with pytest.raises(ValueError, match="`group` must hold each group once"):
        distributed.tokenize(x, queries, group=[dist.group.WORLD] * 2)


def check_checkpoints(rank):
    """They compute the forward pass again, its exchange included, also where a process has no pixels."""
    x, queries, keys = randn(2, 9, 8), randn(3, 8, seed=1).requires_grad_(), randn(2, 3, 8, seed=2)
    for part in (own(x), x if rank == 0 else x[:, :0]):
        part = part.clone().requires_grad_()

        def solve(part, queries):
            return distributed.project_tokenize(part, keys, keys, queries, residual=part)[1].sin()

        tokens = checkpoint(solve, part, queries, use_reentrant=False)
        found = torch.autograd.grad(tokens.sum(), (part, queries))
        assert_close(found, torch.autograd.grad(solve(part, queries).sum(), (part, queries)))


def test_two_processes():
    processes(
        2,
        check_narrow_dtypes,
        check_backends,
        check_autocast,
        check_convention,
        check_a_process_that_does_not_use_its_map,
        check_shared,
        check_traffic,
        check_different_calls,
        check_different_calls_on_other_devices,
        check_arguments,
        check_checkpoints,
    )


def test_groups_of_groups():
    processes(4, check_groups)


LIMIT = 3.0


def work_until_one_is_gone(rank, folder, late):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=3,
        timeout=timedelta(seconds=LIMIT),
    )
    x, queries = own(randn(1, 30, 6)), randn(3, 6, seed=1).requires_grad_()
    tokens = distributed.tokenize(x, queries)
    if rank == 1:
        if not late:
            os._exit(1)
        time.sleep(LIMIT + 5)
        os._exit(0)
    start = time.monotonic()
    try:
        tokens.sum().backward()
    except RuntimeError as error:
        seen = f"{time.monotonic() - start:.1f} {queries.grad} {error}"
    else:
        seen = "no error"
    with open(f"{folder}/{rank}", "w") as file:
        file.write(seen)
    os._exit(0)


@pytest.mark.parametrize("late", [False, True])
def test_a_process_that_is_gone_is_an_error_for_the_others(late):
    with tempfile.TemporaryDirectory() as folder:
        started = torch.multiprocessing.spawn(work_until_one_is_gone, (folder, late), nprocs=3, join=False)
        for process in started.processes:
            process.join(60)
            assert not process.is_alive()
        for rank in (0, 2):
            with open(f"{folder}/{rank}") as file:
                seconds, gradient, error = file.read().split(maxsplit=2)
            assert float(seconds) < LIMIT + 5
            assert gradient == "None"
            assert error
