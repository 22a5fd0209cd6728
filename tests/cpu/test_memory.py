"""The kernels write all of their results and nothing else, at any address and with any strides."""

import itertools

import pytest
import torch

import vt_fast
from tests._support import family
from tests._support.guarding import GuardedOps
from tests._support.instruction_sets import each
from tests._support.judging import DTYPES, short
from tests._support.pairs import pairs
from tests._support.problems import CASES, LAYOUTS, OPS, make
from tests._support.raw_backend import running_on


def check_guards(problem, dtype, **placing):
    """Raise unless guarded results are those of unguarded memory, and no guard was overwritten."""
    ops = torch.ops.vt_fast_cpu
    for name in each():
        expected = problem.solve(dtype)
        guarded = GuardedOps(ops, **placing)
        try:
            with running_on(guarded):
                found = problem.solve(dtype)
        except AssertionError as error:
            raise AssertionError(f"on {name}: {error}") from error
        assert guarded.calls == 2
        for key, value in found.items():
            assert not value.isnan().any(), (name, key)
            if placing.get("holes", 1) == 1:
                assert torch.equal(value, expected[key]), (name, key)


@pytest.mark.parametrize(
    ("case", "layout", "channels", "dtype"),
    pairs(CASES, ["bnc", "nchw", "nchw, transposed"], [18, 64], DTYPES),
    ids=short,
)
def test_nothing_but_results_is_written(case, layout, channels, dtype):
    problem = make(*case, layout, channels=channels, height=9, width=17)
    check_guards(problem, dtype, shift=1)


@pytest.mark.parametrize(("op", "layout", "dtype"), pairs(OPS, list(LAYOUTS), DTYPES), ids=short)
def test_maps_may_have_holes(op, layout, dtype):
    options = ("mask", "extra_values") if op != "project" else ("token_bias",)
    problem = make(op, options, layout, channels=17, height=5, width=29)
    check_guards(problem, dtype, holes=3)


@pytest.mark.parametrize(
    ("op", "layout", "size", "tokens"),
    pairs(OPS, ["bnc", "nchw"], [(1, 1), (1, 7), (1, 33), (12, 25)], [1, 7, 8, 9, 17, 33]),
)
def test_sizes(op, layout, size, tokens):
    height, width = size
    for channels in (1, 3, 31, 33, 131):
        problem = make(
            op,
            (),
            layout,
            batch=3,
            channels=channels,
            height=height,
            width=width,
            tokens=tokens,
            queries=tokens,
        )
        for dtype in (torch.float32, torch.bfloat16):
            check_guards(problem, dtype)


STORES = list(itertools.product(["project", "project_tokenize"], [0, 1]))


@pytest.mark.parametrize(
    ("store", "layout", "dtype"),
    pairs(STORES, ["bnc", "nchw"], [torch.float32, torch.float64, torch.bfloat16]),
    ids=short,
)
def test_maps_too_large_for_the_caches(store, layout, dtype):
    """Large maps are written with streaming stores, which need aligned memory."""
    op, shift = store
    pixels = (16 << 20) // (64 * dtype.itemsize)
    problem = make(op, ("shared",), layout, batch=1, channels=64, height=64, width=pixels // 64)
    problem.operands = {name: value.to(dtype) for name, value in problem.operands.items()}
    operands = problem.operands
    expected = problem.call(operands, plain=False)[0]
    slack = 16 * torch.finfo(dtype).eps * expected.abs().max().item() + 1e-10
    guarded = GuardedOps(torch.ops.vt_fast_cpu, shift=shift)
    for name in each():
        x = operands["x"].detach().requires_grad_()
        with running_on(guarded):
            results = problem.call(operands | {"x": x}, plain=False)
            (dx,) = torch.autograd.grad(results[0], x, torch.ones_like(results[0]))
        assert dx.isfinite().all(), name
        torch.testing.assert_close(results[0], expected, rtol=0, atol=slack, msg=name)
    assert guarded.calls > 1


def test_an_overwritten_guard_is_noticed():
    class Overwriting:
        class tokenize:
            class default:
                _schema = torch.ops.vt_fast_cpu.tokenize.default._schema

                def __new__(cls, *args):
                    tokens = args[6]
                    tokens.as_strided((1,), (1,), tokens.storage_offset() + tokens.numel()).zero_()

    x = torch.randn(1, 6, 4)
    arguments = (x, torch.randn(3, 4), None, None, None, 1, torch.empty(1, 3, 4), torch.empty(1, 3))
    arguments = (*arguments, None, None, None, None, "pixels", None)
    GuardedOps(torch.ops.vt_fast_cpu).tokenize.default(*arguments)
    assert torch.equal(arguments[6], vt_fast.tokenize(x, arguments[1], backend="cpu"))
    with pytest.raises(AssertionError, match="around tokens"):
        GuardedOps(Overwriting).tokenize.default(*arguments)


@pytest.mark.parametrize(("op", "options"), family.CASES)
def test_switches_write_nothing_but_results(op, options):
    problem = family.make(op, options)
    guarded = GuardedOps(torch.ops.vt_fast_cpu)
    expected = problem.solve()
    with running_on(guarded):
        found = problem.solve()
    assert guarded.calls == 2
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key
