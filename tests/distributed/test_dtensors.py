"""The public functions over DTensors: what they find, who holds it, and that no map is gathered."""

import re

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from tests._support import family, problems, sharding
from tests._support.comparing import assert_close
from tests._support.two_processes import processes
from tools.sharding import Traffic
from vt_fast import functional
from vt_fast.testing import assert_as_accurate

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]


def randn(*shape, seed=0):
    """The same numbers in each process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(problem, name, value):
    """The dimension of an operand for each dimension of the map that it has."""
    if name == "extra_values":
        return {1: 0}
    if name == "scores":
        return {0: 0, 1: 2} if value.dim() == 3 else {0: 0, 2: 2, 3: 3}
    if name in ("mask", "pixel_bias"):
        return {0: 0, 1: 1} if value.dim() == 2 else {0: 0, 2: 1, 3: 2}
    if sharding.is_of_pixels(problem, name):
        return {dim: dim for dim in range(value.dim())}
    return {}


def placed(value, mesh, placements, dims):
    """A DTensor that is sharded along these dimensions of a map, as far as it has them."""
    own = [Shard(dims[p.dim]) if p.is_shard() and p.dim in dims else Replicate() for p in placements]
    return distribute_tensor(value, mesh, own, src_data_rank=None)


def solve(problem, mesh, placements, plain_rows):
    """Results and gradients of the whole map, gathered from what each process has."""
    operands = {}
    for name, value in problem.operands.items():
        value = value.clone().detach()
        if not plain_rows or sharding.is_of_pixels(problem, name):
            value = placed(value, mesh, placements, places(problem, name, value))
        operands[name] = value.detach().requires_grad_(value.is_floating_point())
    function = getattr(functional, problem.op)
    with Traffic() as forward:
        found = function(**problem.arguments(operands))
    results = [each for each in (found if isinstance(found, tuple) else (found,)) if each is not None]
    loss = torch.zeros((), dtype=torch.float64)
    for result, cotangent in zip(results, sharding.cotangents(results), strict=True):
        if isinstance(result, DTensor):
            part = distribute_tensor(cotangent, mesh, result.placements, src_data_rank=None)
            loss = loss + (result.double() * part).sum().full_tensor()
        else:
            loss = loss + (result.double() * cotangent).sum()
    names = [name for name, value in operands.items() if value.requires_grad]
    with Traffic() as backward:
        grads = torch.autograd.grad(
            loss, [operands[name] for name in names], allow_unused=True, materialize_grads=True
        )
    solution = {f"result {index}": result.detach() for index, result in enumerate(results)}
    solution |= {f"d{name}": grad for name, grad in zip(names, grads, strict=True)}
    for name, value in solution.items():
        if name.startswith("d"):
            assert isinstance(value, DTensor) == isinstance(operands[name[1:]], DTensor)
            if isinstance(value, DTensor):
                assert value.placements == operands[name[1:]].placements
    whole = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in solution.items()
    }
    return results, whole, forward, backward


def cases():
    for op, options, layout in [
        ("tokenize", ("extra_values", "mask"), "bnc"),
        ("tokenize", ("num_heads", "shared", "pixel_bias", "scale"), "bnc"),
        *(("project_tokenize", options, "bnc") for options in problems.OPTIONS["project_tokenize"]),
        ("project_tokenize", (), "nchw"),
        ("project_tokenize", ("shared", "wide", "residual"), "channels_last"),
    ]:
        yield problems.make(op, options, layout, batch=3)
    for index, (op, options) in enumerate(family.CASES):
        if "bags" not in options and index % 3 == 0:
            yield family.make(op, options)


def check_pixels(rank):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for index, problem in enumerate(cases()):
        expected = problem.solve(torch.float64, plain=True)
        four = problem.operands["x"].dim() == 4
        plain_rows = (index % 2 == 0 and "queries" in problem.operands) or problem.op == "project"
        placements = [Shard(2 + index % 2 if four else 1)]
        results, found, forward, backward = solve(problem, mesh, placements, plain_rows)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, f"{problem.op} {problem.options} {placements} {name}")
        alone = getattr(functional, problem.op)(**problem.arguments(problem.operands))
        strides = [
            each.stride() for each in (alone if isinstance(alone, tuple) else (alone,)) if each is not None
        ]
        for number, result in enumerate(results):
            if sharding.is_map(problem, number):
                assert list(result.placements) == placements
                assert result.stride() == strides[number]
            else:
                assert isinstance(result, DTensor) != plain_rows
        # One message each way, of numbers for each token; the sum of the loss is another one.
        assert len(forward.sent) <= 1
        assert [name for name, _ in forward.sent + backward.sent] == ["_allgather_base_"] * (
            len(forward.sent) + len(backward.sent)
        )
        assert len(backward.sent) <= 1
        rows = sum(
            value.numel()
            for name, value in problem.operands.items()
            if not sharding.is_of_pixels(problem, name) and value.is_floating_point()
        )
        assert forward.total <= 8 * (1 + sum(r.numel() for r in results[-2:] if problem.op != "project"))
        assert backward.total <= 8 * (1 + rows)


def check_samples_and_pixels(rank):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "pixels"))
    for index, problem in enumerate(cases()):
        if index % 4:
            continue
        expected = problem.solve(torch.float64, plain=True)
        dim = 3 if problem.operands["x"].dim() == 4 else 1
        for placements in ([Shard(0), Shard(dim)], [Shard(dim), Replicate()], [Replicate(), Shard(0)]):
            for plain_rows in (False, True):
                _, found, _, _ = solve(problem, mesh, placements, plain_rows)
                for name, value in expected.items():
                    assert_close(found[name], value, f"{problem.op} {problem.options} {placements} {name}")
    # Pixels sharded along both dimensions of the mesh, over both sides of a map.
    x, queries = randn(2, 6, 5, 7), randn(4, 6, seed=1)
    for placements in ([Shard(2), Shard(3)], [Shard(3), Shard(2)]):
        whole = distribute_tensor(x, mesh, placements, src_data_rank=None)
        mask = randn(2, 5, 7, seed=2) > 0
        for given in (mask, mask.flatten(1)):
            found = functional.tokenize(whole, queries, mask=given)
            assert_close(found, functional.tokenize(x, queries, mask=given))
    rows = distribute_tensor(x.flatten(2).mT.contiguous(), mesh, [Shard(1), Shard(1)], src_data_rank=None)
    assert_close(functional.tokenize(rows, queries), functional.tokenize(x, queries))


def check_plain_operands(rank):
    """A plain mask or bias is the whole one, and cut as the map is; gradients are refused."""
    mesh = init_device_mesh("cpu", (2,))
    x, queries = randn(2, 6, 5, 3), randn(4, 6, seed=1)
    bias, table = randn(2, 5, 3, seed=3), randn(15, 2, seed=4)
    for dim in (2, 3):
        whole = distribute_tensor(x, mesh, [Shard(dim)], src_data_rank=None)
        for given in (bias, bias.flatten(1)):
            found = functional.tokenize(whole, queries, pixel_bias=given, extra_values=table)
            assert_close(found, functional.tokenize(x, queries, pixel_bias=given, extra_values=table))
        with pytest.raises(ValueError, match="`pixel_bias` must be a DTensor, placed as `x` is"):
            functional.tokenize(whole, queries, pixel_bias=bias.clone().requires_grad_())
    flat = distribute_tensor(bias.flatten(1), mesh, [Shard(1)], src_data_rank=None)
    with pytest.raises(ValueError, match="`pixel_bias` must have dimensions H and W where"):
        functional.tokenize(whole, queries, pixel_bias=flat)


def check_rows_that_are_elsewhere(rank):
    """Rows may be sharded in any way. They are small, and are gathered."""
    mesh = init_device_mesh("cpu", (2,))
    x, queries = randn(2, 9, 8), randn(4, 8, seed=1).requires_grad_()
    expected = functional.tokenize(x, queries)
    expected.sin().sum().backward()
    whole = distribute_tensor(x, mesh, [Shard(1)], src_data_rank=None)
    for dim in (0, 1):
        rows = distribute_tensor(queries.detach(), mesh, [Shard(dim)], src_data_rank=None).requires_grad_()
        tokens = functional.tokenize(whole, rows)
        assert_close(tokens.full_tensor(), expected)
        tokens.sin().sum().full_tensor().backward()
        assert rows.grad.placements == (Shard(dim),)
        assert_close(rows.grad.full_tensor(), queries.grad)
    with torch.no_grad():
        assert_close(functional.tokenize(whole, rows).full_tensor(), expected)


def check_autocast(rank):
    mesh = init_device_mesh("cpu", (2,))
    x, queries = randn(2, 9, 8).float(), randn(4, 8, seed=1).float()
    whole = distribute_tensor(x, mesh, [Shard(1)], src_data_rank=None)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = functional.tokenize(whole, queries)
        y = functional.project(whole, queries, tokens, residual=whole)
        _, pooled = functional.project_tokenize(whole, queries, tokens, queries)
        plain = functional.tokenize(x, queries)
    assert tokens.dtype == y.dtype == pooled.dtype == torch.bfloat16
    exact = functional.tokenize(x.bfloat16().double(), queries.bfloat16().double())
    assert_as_accurate(tokens, exact, plain, "tokens", terms=9)


def check_errors(rank):
    mesh = init_device_mesh("cpu", (2,))
    x, queries = randn(2, 9, 8), randn(3, 8)

    def placed(value, placement):
        return distribute_tensor(value, mesh, [placement], src_data_rank=None)

    channels = re.escape("`x` must be sharded over its samples or its pixels (dimensions 0 and 1)")
    with pytest.raises(ValueError, match=channels):
        functional.tokenize(placed(x, Shard(2)), queries)
    with pytest.raises(ValueError, match=channels):
        functional.project(DTensor.from_local(x, mesh, [Partial()]), queries, queries)
    pixels = placed(x, Shard(1))
    mask = torch.ones(2, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="`mask` must be placed as `x` is"):
        functional.tokenize(pixels, queries, mask=placed(mask, Replicate()))
    with pytest.raises(
        ValueError, match=re.escape("`queries` must be (L, C) or (B, L, C) with B = 2, C = 8")
    ):
        functional.tokenize(pixels, queries[:, :6])
    with pytest.raises(ValueError, match=r"call vt_fast\.distributed\.tokenize with"):
        functional.tokenize(placed(x[0], Shard(0)), queries, offsets=torch.tensor([0, 9]))
    other = init_device_mesh("cpu", (2, 1))
    rows = distribute_tensor(queries, other, [Replicate(), Replicate()], src_data_rank=None)
    with pytest.raises(TypeError, match="`return_stats` must be a bool, got int"):
        functional.tokenize(pixels, queries, return_stats=1)
    with pytest.raises(ValueError, match="`queries` must be on the mesh of `x`"):
        functional.tokenize(pixels, rows)


# ---- the raw ops ----


def check_raw_ops(rank):
    """By `register_sharding`, which is experimental: samples may be sharded, pixels never."""
    from vt_fast.distributed import dtensors  # noqa: F401 -- registers the rules

    mesh = init_device_mesh("cpu", (2,))
    op = torch.ops.vt_fast.tokenize.default
    x, queries, values = randn(2, 9, 8), randn(3, 8, seed=1), randn(2, 3, 8, seed=2)
    for rows in (queries, randn(2, 3, 8, seed=1)):
        leaves = [x.clone().requires_grad_(), rows.clone().requires_grad_()]
        tokens, _, lse = op(*leaves, None, None, None, 1, True)
        (tokens.sin().sum() + lse.sin().sum()).backward()
        batched = Shard(0) if rows.dim() == 3 else Replicate()
        own = [
            distribute_tensor(value, mesh, [placement], src_data_rank=None).detach().requires_grad_()
            for value, placement in ((x, Shard(0)), (rows, batched))
        ]
        with Traffic() as seen:
            found, _, found_lse = op(*own, None, None, None, 1, True)
        assert seen.sent == []
        assert found.placements == found_lse.placements == (Shard(0),)
        (found.sin().sum() + found_lse.sin().sum()).full_tensor().backward()
        assert_close(found.full_tensor(), tokens)
        for leaf, mine in zip(leaves, own, strict=True):
            assert_close(mine.grad.full_tensor(), leaf.grad)
    check_rows(mesh)
    sharded = distribute_tensor(x, mesh, [Shard(0)], src_data_rank=None)
    replicated, keys = (
        distribute_tensor(value, mesh, [Replicate()], src_data_rank=None) for value in (x, queries)
    )
    tokens = distribute_tensor(values, mesh, [Shard(0)], src_data_rank=None)
    y = torch.ops.vt_fast.project.default(sharded, keys, tokens, None, None, True, 1)
    assert y.placements == (Shard(0),)
    assert_close(y.full_tensor(), functional.project(x, queries, values, residual=x))
    y, _, _, lse = torch.ops.vt_fast.project_tokenize.default(
        sharded, keys, tokens, keys, None, None, None, None, None, True, 1, True, False
    )
    assert lse.placements == (Shard(0),)
    assert_close(
        op(replicated, keys, None, None, None, 1, False)[0].full_tensor(), functional.tokenize(x, queries)
    )
    for wrong in (Shard(1), Shard(2)):
        gathered = distribute_tensor(x, mesh, [wrong], src_data_rank=None)
        with Traffic() as seen, pytest.raises(RuntimeError, match="gathers no map"):
            op(gathered, keys, None, None, None, 1, False)
        with pytest.raises(RuntimeError, match="gathers no map"):
            torch.ops.vt_fast.project.default(gathered, keys, keys, None, None, True, 1)
        assert seen.sent == []
    uneven = distribute_tensor(randn(3, 9, 8), mesh, [Shard(0)], src_data_rank=None)
    with pytest.raises(RuntimeError, match="sharded evenly"):
        op(uneven, keys, None, None, None, 1, False)


def check_rows(mesh):
    """Heads that see all channels are rows, and each process may have some of them."""
    x, bias = randn(2, 9, 8), randn(4, seed=3)
    for dtype in (torch.float64, torch.bfloat16):
        for queries in (randn(4, 8, seed=1), randn(2, 4, 8, seed=1)):
            for normalize in ("pixels", None):
                given = [each.to(dtype) for each in (x, queries, bias)]
                leaves = [each.clone().requires_grad_() for each in given]
                dims = (None, queries.dim() - 2, 0)
                own = [
                    distribute_tensor(
                        each, mesh, [Replicate() if dim is None else Shard(dim)], src_data_rank=None
                    )
                    .detach()
                    .requires_grad_()
                    for each, dim in zip(given, dims, strict=True)
                ]
                solutions = []
                for values, seen in ((leaves, Traffic()), (own, Traffic())):
                    with seen:
                        tokens, _, stats = torch.ops.vt_fast.tokenize.default(
                            *values[:2],
                            *(None, None, None, 1, True),
                            token_bias=values[2],
                            normalize=normalize,
                        )
                    assert seen.sent == []
                    solutions.append((tokens, stats))
                    loss = tokens.double().sin().sum() + stats.double().sin().sum()
                    (loss.full_tensor() if isinstance(loss, DTensor) else loss).backward()
                for found, expected in zip(solutions[1], solutions[0], strict=True):
                    assert found.placements == (Shard(1),)
                    assert torch.equal(found.full_tensor(), expected)
                for mine, leaf in zip(own, leaves, strict=True):
                    tolerance = 1e-10 if dtype == torch.float64 else 2**-6 * leaf.grad.abs().max().item()
                    torch.testing.assert_close(mine.grad.full_tensor(), leaf.grad, rtol=0, atol=tolerance)
    # Where a softmax joins the rows, they are gathered: PyTorch must not take the rule of a call before.
    whole = distribute_tensor(x, mesh, [Replicate()], src_data_rank=None)
    rows = distribute_tensor(randn(4, 8, seed=1), mesh, [Shard(0)], src_data_rank=None)
    found = torch.ops.vt_fast.tokenize.default(whole, rows, None, None, None, 1, True, normalize="tokens")
    expected = functional.tokenize(x, randn(4, 8, seed=1), normalize="tokens")
    assert_close(found[0].full_tensor(), expected)


def test_two_processes():
    processes(
        2,
        check_pixels,
        check_plain_operands,
        check_rows_that_are_elsewhere,
        check_autocast,
        check_errors,
        check_raw_ops,
    )


def test_a_mesh_of_four_processes():
    processes(4, check_samples_and_pixels)
