"""The op family's switches on every instruction set, in random combinations, against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vt_fast
from tests._support.definitions import INF
from tests._support.instruction_sets import each
from tests._support.problems import LAYOUTS
from tests._support.random_switches import TOLERANCES, Problem, check, close, detached, solve
from vt_fast.testing import peak_bytes


@pytest.mark.parametrize("seed", range(120))
@pytest.mark.parametrize("op", ["project", "tokenize"])
def test_switches(op: str, seed: int) -> None:
    check(Problem(op, seed))


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("op", ["project", "tokenize"])
def test_threads_do_not_matter(op: str, seed: int) -> None:
    problem = Problem(op, seed, large=True)
    operands = detached(problem.leaves(problem.dtype))
    kinds = problem.forward(operands)
    shapes = [kinds[0].shape] if op == "project" else [kinds[0].shape, kinds[2].shape]
    cotangents = [torch.randint(-4, 5, shape) / 4 for shape in shapes]
    for isa in each():
        first = None
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found = solve(problem, operands, cotangents)
            first = first or found
            for name, value in found.items():
                bits, others = (each.contiguous().view(torch.uint8) for each in (value, first[name]))
                same = torch.equal(bits, others)
                assert same, f"{name} with {threads} threads on {isa}"


# Bags that several units share, and bags of several chunks that one worker computes.
SIZES = [[5000, 0, 3, 700, 90, 2], [*[5000] * 5, 3], [*[300, 0, 900, 2] * 20, 700]]


@pytest.mark.parametrize("sizes", SIZES, ids=["few", "large", "many"])
@pytest.mark.parametrize("lead", [True, False], ids=["per bag", "shared"])
@pytest.mark.parametrize("layout", ["bnc", "bnc, pixels innermost"])
def test_a_bag_does_not_depend_on_the_others(layout: str, lead: bool, sizes: list[int]) -> None:
    torch.manual_seed(0)
    x = LAYOUTS[layout](1, 24, 1, sum(sizes))[0].float()
    bags = len(sizes)
    rows = {
        "queries": torch.randn(bags, 4, 24),
        "values": torch.randn(bags, 4, 24),
        "token_bias": torch.randn(bags, 4),
    }
    cotangents = torch.randn(bags, 4, 24), torch.randn(bags, 4), torch.randn(sum(sizes), 24)

    def solve(bag: slice, pixels: slice, sizes: list[int]) -> list[Tensor]:
        """Results of some bags, then gradients of the operands, those of rows only where they have a bag."""
        own = {name: value[bag if lead else 0].clone().requires_grad_() for name, value in rows.items()}
        part = x[pixels].requires_grad_()
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        queries, values, bias = own.values()
        more = {"token_bias": bias, "offsets": offsets, "backend": "cpu"}
        tokens, lse = vt_fast.tokenize(part, queries, return_stats=True, **more)
        y = vt_fast.project(part, queries, values, **more)
        grads = [cotangents[0][bag], cotangents[1][bag], cotangents[2][pixels]]
        leaves = [part, *own.values()] if lead else [part]
        gradients = torch.autograd.grad([tokens, lse.clamp(min=-100), y], leaves, grads)
        return [tokens, lse, y, *gradients]

    first = None
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        together = solve(slice(None), slice(None), sizes)
        first = first or together
        for found, expected in zip(together, first, strict=True):
            assert torch.equal(found, expected), f"{threads} threads"
    begin = 0
    for bag, size in enumerate(sizes):
        pixels = slice(begin, begin + size)
        alone = solve(slice(bag, bag + 1), pixels, [size])
        of_bag = [slice(bag, bag + 1), slice(bag, bag + 1), pixels, pixels, *[slice(bag, bag + 1)] * 3]
        for found, whole, part in zip(alone, together, of_bag, strict=False):
            assert torch.equal(found, whole[part]), f"bag {bag}"
        begin += size


@pytest.mark.parametrize("op", ["tokenize", "project"])
@pytest.mark.parametrize("lead", [True, False], ids=["per bag", "shared"])
def test_many_bags_of_several_chunks_need_little_memory(op: str, lead: bool, one_thread: None) -> None:
    """The workspace does not grow with the number of bags, each of which is cut into chunks."""

    def workspace(bags: int) -> list[int]:
        """Bytes of a forward and a backward that are not results."""
        size, channels = 2000, 64
        x, offsets = torch.randn(1, channels).expand(bags * size, -1), torch.arange(bags + 1) * size
        rows = torch.randn(*((bags,) if lead else ()), 8, channels, requires_grad=True)
        function = vt_fast.tokenize if op == "tokenize" else vt_fast.project
        operands = (x, rows) if op == "tokenize" else (x, rows, rows)

        def forward() -> Tensor:
            return function(*operands, offsets=offsets, backend="cpu")

        result = forward()
        arriving = torch.ones(1).expand_as(result)
        return [
            peak_bytes(lambda: forward().detach()) - result.nbytes,
            peak_bytes(lambda: torch.autograd.grad(result, rows, arriving))
            - (1 if op == "tokenize" else 2) * rows.nbytes,
        ]

    assert all(many <= few + 200_000 for few, many in zip(workspace(20), workspace(200), strict=True))


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
def test_heads_by_shape_in_project_tokenize(layout: str, dtype: torch.dtype) -> None:
    """Block keys and summed values: what project, then tokenize give."""
    torch.manual_seed(0)
    x = LAYOUTS[layout](2, 24, 5, 7).to(dtype)
    queries = torch.randn(3, 24, dtype=dtype)
    ops = torch.ops.vt_fast
    for keys in (torch.randn(2, 12, 8), torch.randn(12, 24)):
        for values in (torch.randn(12, 24), torch.randn(2, 4, 24)):
            keys, values = (keys / 4).to(dtype), values.to(dtype)
            y = ops.project_cpu(x, keys, values, None, None, True, 3)
            tokens, exact, lse = ops.tokenize_cpu(y, queries, None, None, None, 1, True)
            options = (None, None, None, None, None, True, 3)
            fused = ops.project_tokenize_cpu(x, keys, values, queries, *options, True, True)
            for found, wanted in zip(fused, (y, tokens, exact, lse), strict=True):
                close(found, wanted.double(), dtype, "a result")
            exact = exact if exact.numel() else tokens
            dtokens, dlse = torch.ones_like(tokens), torch.ones_like(lse)
            dy, dqueries = ops.tokenize_backward_cpu(
                dtokens, dlse, y, queries, None, None, None, exact, lse, 1, [True, True, *[False] * 5]
            )[:2]
            dx, dkeys, dvalues = ops.project_backward_cpu(
                dy, x, keys, values, None, True, 3, [True, True, True, False, False]
            )[:3]
            needs = [True, True, True, True, *[False] * 4]
            grads = ops.project_tokenize_backward_cpu(
                None, dtokens, dlse, x, keys, values, queries, *options[:5], exact, lse, True, 3, needs
            )
            for found, wanted in zip(grads, (dx, dkeys, dvalues, dqueries), strict=False):
                close(found, wanted.double(), dtype, "a gradient")


def test_bags_without_pixels_of_another_width():
    """Their maps have no address; rows keep the width of x."""
    x, queries = torch.zeros(0, 8), torch.randn(3, 8, requires_grad=True)
    for width in (4, 40):
        values = torch.zeros(0, width)
        tokens, mass = vt_fast.tokenize(
            x,
            queries,
            values=values,
            offsets=torch.zeros(3, dtype=torch.int64),
            return_stats=True,
            backend="cpu",
        )
        assert tokens.shape == (2, 3, width)
        assert not tokens.any()
        (grad,) = torch.autograd.grad(tokens.sum() + mass.nan_to_num(neginf=0).sum(), queries)
        assert not grad.any()


@pytest.mark.parametrize("pixels", [7, 5000])
@pytest.mark.parametrize("normalize", ["pixels", "tokens"])
def test_scores_of_minus_infinity_and_of_removed_rows(normalize, pixels):
    """A softmax over nothing is 0, and what a removed row would score is not used."""
    torch.manual_seed(0)
    x = torch.randn(2, pixels, 8, requires_grad=True)
    scores = torch.randn(2, 4, pixels)
    scores[0, 0], scores[1, :, 3] = -INF, -INF
    bias = torch.tensor([0.0, 1.0, -INF, 0.0])
    clean, dirty = scores.clone(), scores.clone()
    clean[:, 2], dirty[:, 2] = 0, torch.nan
    results = []
    for given in (clean, dirty):
        given.requires_grad_()
        tokens, stats = vt_fast.tokenize(
            x, scores=given, token_bias=bias, normalize=normalize, return_stats=True, backend="cpu"
        )
        assert tokens.isfinite().all()
        y = vt_fast.project(
            x, None, torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), scores=given,
            token_bias=bias, backend="cpu",
        )  # fmt: skip
        total = tokens.sum() + y.sum() + stats.nan_to_num(neginf=0).sum()
        results.append((tokens, y, *torch.autograd.grad(total, (x, given))))
    for found, expected in zip(*results, strict=True):
        assert found.isfinite().all()
        assert torch.equal(found, expected)
    if normalize == "pixels":
        assert not results[0][0][0, 0].any()


@pytest.mark.parametrize("eps", [0.0, -1.0, INF, float("nan")])
def test_eps_of_layer_norm(eps):
    with pytest.raises(ValueError, match="layer_norm_eps"):
        vt_fast.tokenize(torch.randn(2, 7, 8), torch.randn(3, 8), layer_norm_eps=eps, backend="cpu")
