"""Contracts of the op family's switches: in-place changes, biases that are not finite, maps not read."""

import pytest
import torch

from tests._support import devices, problems
from tests._support.comparing import assert_close
from tests._support.family import TAKEN, assert_sums_are_not_read, taken
from tests._support.problems import LAYOUTS
from vt_fast import functional
from vt_fast.layout import as_pixels
from vt_fast.reference import ops as reference

# ---- what is saved for the backward ----


def changed_in_place(function, *leaves):
    """Results, changed in place as a layer may change them, and gradients of the leaves."""
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    results = function(*leaves)
    for result in results:
        result.mul_(2).add_(1)
    arriving = [torch.linspace(-1, 1, result.numel(), dtype=result.dtype) for result in results]
    torch.autograd.backward([result.flatten() for result in results], arriving)
    return (*results, *(leaf.grad for leaf in leaves))


@pytest.mark.parametrize("dtype", ["widest", "narrow"])
@pytest.mark.parametrize("normalize", ["tokens", None])
def test_sums_may_be_changed_in_place(normalize, dtype):
    taken("`normalize=None`" if normalize is None else f'`normalize="{normalize}"`')
    torch.manual_seed(0)
    dtype = problems.widest() if dtype == "widest" else torch.bfloat16
    x, queries = torch.randn(2, 9, 16, dtype=dtype), torch.randn(4, 16, dtype=dtype) / 4
    tolerance = {} if dtype == problems.widest() else {"rtol": 0.05, "atol": 0.1}
    for used in (slice(0, 2), slice(0, 1), slice(1, 2)):  # tokens, mass
        found, expected = (
            changed_in_place(
                lambda *given: module.tokenize(*given, normalize=normalize, return_stats=True)[used],  # noqa: B023
                x,
                queries,
            )
            for module in (functional, reference)
        )
        torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("normalize", ["tokens", "exp", None])
def test_a_map_may_be_changed_in_place(normalize):
    torch.manual_seed(0)
    x, rows = torch.randn(2, 9, 16, dtype=problems.widest()), torch.randn(4, 16, dtype=problems.widest()) / 4
    solutions = [
        changed_in_place(lambda *given: [module.project(*given, normalize=normalize)], x, rows, rows)  # noqa: B023
        for module in (functional, reference)
    ]
    assert_close(*solutions)
    if normalize == "tokens":
        solutions = [
            changed_in_place(lambda *given: module.project_tokenize(*given, rows)[:1], x, rows, rows)  # noqa: B023
            for module in (functional, reference)
        ]
        assert_close(*solutions)


def test_means_changed_in_place_are_an_error():
    """The backward of a softmax over pixels starts from its results."""
    x, queries = torch.randn(2, 9, 16, requires_grad=True), torch.randn(4, 16)
    for changed in (0, 1):
        for results in (
            functional.tokenize(x, queries, return_stats=True),
            functional.project_tokenize(x, queries, queries, queries, return_stats=True)[1:],
        ):
            results[changed].mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                results[0].sum().backward()


@pytest.mark.parametrize("normalize", ["tokens", None])
def test_the_backward_of_sums_does_not_read_tokens_and_mass(normalize):
    taken("`normalize=None`" if normalize is None else f'`normalize="{normalize}"`')
    assert_sums_are_not_read(normalize, problems.widest())


# ---- biases that are not finite ----


@pytest.mark.parametrize("pixels", [9, 3000])
@pytest.mark.parametrize(
    ("normalize", "bad"),
    [
        ("pixels", torch.nan),
        ("pixels", torch.inf),
        ("tokens", torch.nan),
        (None, torch.nan),
        (None, torch.inf),
    ],
)
def test_a_token_bias_that_is_not_finite(bad, normalize, pixels):
    """The results of its row are NaN, also where a finite bias would cancel, or lse and mass infinite."""
    if normalize == "pixels":
        taken("`token_bias`")
    torch.manual_seed(0)
    x = torch.randn(2, pixels, 16, dtype=problems.widest())
    queries = torch.randn(4, 16, dtype=x.dtype)
    bias = torch.tensor([0.5, bad, 0 if normalize == "tokens" else -torch.inf, 1], dtype=x.dtype)
    mask = torch.ones(2, pixels, dtype=torch.bool)
    mask[1] = False
    for other in ({}, {"mask": mask}, {"num_heads": 2}, {"offsets": torch.tensor([0, 0, pixels])}):
        bags = "offsets" in other
        if bags and "`offsets`" not in TAKEN[devices.backend()]:
            continue
        solutions = [
            module.tokenize(
                x[0] if bags else x,
                queries[:, :8] if "num_heads" in other else queries,
                token_bias=bias,
                normalize=normalize,
                return_stats=True,
                **other,
            )
            for module in (functional, reference)
        ]
        for found, expected in zip(*solutions, strict=True):
            torch.testing.assert_close(found, expected, equal_nan=True)
        assert solutions[0][0].isnan().any()


@pytest.mark.parametrize("normalize", ["tokens", "exp", None])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_token_bias_of_project_that_is_not_finite(bad, normalize):
    torch.manual_seed(0)
    x, rows = torch.randn(2, 9, 16, dtype=problems.widest()), torch.randn(4, 16, dtype=problems.widest())
    bias = torch.tensor([0.5, bad, -torch.inf, 1], dtype=x.dtype)
    found, expected = (
        module.project(x, rows, rows, token_bias=bias, normalize=normalize)
        for module in (functional, reference)
    )
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert not found.isfinite().all()


# ---- a map whose shape alone counts ----


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("how", ["eager", "compiled", "func"])
def test_a_map_that_is_not_read_has_no_gradient(how, autocast):
    """As autograd finds it for the reference. A residual, or x as the values, does have one."""
    taken("`scores`")
    if autocast and devices.backend() == "triton" and torch.empty(0).device.type == "cpu":
        pytest.skip("Triton's interpreter does not know bfloat16")
    torch.manual_seed(0)
    x, rows, scores = torch.randn(2, 9, 16), torch.randn(4, 16), torch.randn(2, 4, 9)
    cases = [
        (lambda ops, x: ops.project(x, None, rows, scores=scores), False),
        (lambda ops, x: ops.project(x, None, rows, scores=scores, residual=x), True),
        (lambda ops, x: ops.project(x, None, rows, scores=scores, residual=x * 1), True),
        (lambda ops, x: ops.tokenize(x, None, scores=scores, values=x.detach() + 1), False),
        (lambda ops, x: ops.tokenize(x, None, scores=scores, values=x.detach() + 1, normalize=None), False),
        (lambda ops, x: ops.tokenize(x, None, scores=scores), True),
        (lambda ops, x: ops.tokenize(x, rows, scores=scores, values=x.detach() + 1), True),
    ]
    for function, used in cases:
        grads = []
        for ops in (functional, reference):
            leaf = x.clone().requires_grad_()
            scores.requires_grad_()

            def call(given, ops=ops, function=function):
                return function(ops, given)

            if how == "compiled" and ops is functional:
                torch.compiler.reset()
                call = torch.compile(call, backend="aot_eager", fullgraph=True)
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast and ops is functional):
                if how == "func":
                    (grad,) = torch.func.vjp(call, x)[1](torch.ones_like(call(x)))
                    grads.append(grad)
                    continue
                y = call(leaf)
            y.float().sum().backward()
            grads.append(leaf.grad)
        found, expected = grads
        if how != "func":  # which has zeros in place of None
            assert (found is not None) == (expected is not None) == used
        if used:
            torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 if autocast else 1e-4)
        else:
            assert found is None or not found.any()


# ---- layer norm ----


@pytest.mark.parametrize("dtype", ["widest", "float32"])
@pytest.mark.parametrize("form", ["bnc", "bnc, pixels innermost", "nchw"])
@pytest.mark.parametrize("eps", [1e-46, 1e-40, 1e-30, 1e-5, 1e39])
def test_layer_norm_of_equal_channels(eps, form, dtype):
    """What `F.layer_norm` makes of this eps: NaN where it is 0 in the dtype of the sums."""
    taken("`layer_norm_eps`")
    torch.manual_seed(0)
    dtype = problems.widest() if dtype == "widest" else torch.float32
    x = LAYOUTS[form](2, 8, 3, 3).to(dtype)
    pixels = as_pixels(x)
    pixels[0] = 1
    pixels[1, 4] = -2
    solutions = []
    for fused in (True, False):
        leaf = x.clone().requires_grad_()
        queries = torch.full((2, 8), 0.25, dtype=dtype)
        if fused:
            tokens = functional.tokenize(leaf, queries, layer_norm_eps=eps)
        else:
            normalised = torch.nn.functional.layer_norm(as_pixels(leaf), (8,), eps=eps)
            tokens = reference.tokenize(normalised, queries)
        (grad,) = torch.autograd.grad(tokens.sum(), leaf)
        solutions.append((tokens, grad))
    (found, grad), (expected, wanted) = solutions
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert torch.equal(grad.isnan(), wanted.isnan())
    if eps == 1e-5:  # smaller ones multiply differences of equal numbers, which are rounded
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)
    assert found.isnan().any() == (eps == 1e-46 and dtype == torch.float32)


# ---- masked pixels and removed rows ----


@pytest.mark.parametrize("normalize", ["pixels", "tokens", None])
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("name", ["x", "values"])
def test_nothing_that_arrives_reaches_the_gradient_of_a_masked_pixel(name, layout, normalize):
    """Of x and of a second map: 0 times NaN is not 0."""
    if name == "values":
        taken("`values`")
    maps = {each: LAYOUTS[layout](2, 16, 5, 7).requires_grad_() for each in ("x", name)}
    mask = torch.rand(2, 35) < 0.6
    tokens = functional.tokenize(**maps, queries=torch.randn(4, 16), mask=mask, normalize=normalize)
    arriving = torch.zeros_like(tokens)
    arriving[:, 1] = torch.nan
    (grad,) = torch.autograd.grad(tokens, maps[name], arriving)
    grad = as_pixels(grad)
    assert grad[mask].isnan().any()
    assert not grad[~mask].any()


@pytest.mark.parametrize("normalize", ["pixels", None])
@pytest.mark.parametrize("count", [35, 3000])
def test_a_removed_row_has_no_statistic_of_nan(count, normalize):
    """Whatever pixels hold: lse -inf, or the mass 0."""
    if normalize == "pixels":
        taken("`token_bias`")
    x, queries = torch.randn(2, count, 16), torch.randn(4, 16)
    x[0, 3] = torch.nan
    bias = torch.tensor([0.0, -torch.inf, 1, 0])
    tokens, stats = functional.tokenize(x, queries, token_bias=bias, normalize=normalize, return_stats=True)
    assert (stats[:, 1] == (-torch.inf if normalize == "pixels" else 0)).all()
    assert tokens[0, 0].isnan().all()
