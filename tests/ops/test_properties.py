"""Properties for random operands: weights sum to 1, and changes that must not affect a result.

Where two calls must agree, so must their gradients: comparing.assert_same checks both.
"""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests._support.comparing import assert_close, assert_same, evaluate
from tests._support.drawing import at_pixels, problems, properties, randn, samples_with_pixels, seeds, solver
from tests._support.problems import OPS

pytestmark = pytest.mark.on_cpu


@properties
@given(problem=problems("tokenize"))
def test_the_weights_of_a_token_sum_to_one(problem):
    x = problem.operands["x"]
    x[..., 0], x[..., x.shape[-1] // 2] = 1, 1  # the first channel of each head
    if "extra_values" in problem.operands:
        problem.operands["extra_values"][:, 0] = 1
    tokens, _ = solver(problem)(**problem.operands)
    expected = samples_with_pixels(problem).double()[:, None].expand(tokens.shape[:2])
    assert_close(tokens[..., 0], expected)
    assert_close(tokens[..., x.shape[-1] // 2], expected)
    if "extra_values" in problem.operands:
        assert_close(tokens[..., x.shape[-1]], expected)


@properties
@given(problem=problems("tokenize", never=("extra_values", "scale")))
def test_a_constant_map_gives_that_constant(problem):
    x, queries = problem.operands["x"], problem.operands["queries"]
    num_heads = problem.options.get("num_heads", 1)
    pixel = x[:, :1]
    tokens, lse = solver(problem)(**(problem.operands | {"x": pixel.expand_as(x)}))
    some = samples_with_pixels(problem)
    assert_close(tokens, torch.where(some[:, None, None], pixel, 0).expand_as(tokens))
    weights = problem.operands.get("pixel_bias", x.new_zeros(x.shape[:2]))
    if "mask" in problem.operands:
        weights = weights.masked_fill(~problem.operands["mask"], -torch.inf)
    blocks = pixel.unflatten(2, (num_heads, -1)).transpose(1, 2)  # (B, heads, 1, C / num_heads)
    logits = (queries.unflatten(-2, (num_heads, -1)) * blocks).sum(-1).flatten(1)
    assert_close(lse, logits + torch.logsumexp(weights, 1, keepdim=True))


@properties
@given(problem=problems("project", never=("residual",), always=("no residual",)))
def test_equal_values_are_added_everywhere(problem):
    num_heads, token_bias = problem.options.get("num_heads", 1), problem.operands.get("token_bias")
    value = problem.operands["values"][..., :1, :]  # one token alone gives the same
    values = value.expand_as(problem.operands["values"])
    change = solver(problem)(**(problem.operands | {"values": values}))
    expected = value if value.dim() == 3 else value[None]
    if token_bias is not None:
        some = (token_bias.unflatten(-1, (num_heads, -1)) > -torch.inf).any(-1)[..., None, :]
        expected = expected * some.repeat_interleave(expected.shape[-1] // num_heads, -1)
    assert_close(change, expected.expand_as(change))


@properties
@given(problem=problems("tokenize", always=("pixel_bias",)))
def test_shifting_all_logits_shifts_lse_alone(problem):
    shift = randn(problem.operands["x"].shape[0], 1) * 5

    def shifted(shift, pixel_bias, **operands):
        tokens, lse = solver(problem)(pixel_bias=pixel_bias + shift, **operands)
        return tokens, lse - shift

    def plain(shift, **operands):
        return solver(problem)(**operands)

    samples = samples_with_pixels(problem)
    if samples.all():
        assert_same(shifted, plain, shift=shift, **problem.operands)
    else:  # lse of -inf has a cotangent that the shift itself would receive
        tokens, lse = shifted(shift, **problem.operands)
        expected = plain(shift, **problem.operands)
        assert_close(tokens, expected[0])
        assert_close(lse, expected[1])


@properties
@given(problem=problems("project", always=("token_bias",), never=("shared bias",)))
def test_shifting_a_head_of_biases_changes_nothing(problem):
    num_heads = problem.options.get("num_heads", 1)

    def shifted(shift, token_bias, **operands):
        token_bias = token_bias + shift.repeat_interleave(token_bias.shape[-1] // num_heads, -1)
        return solver(problem)(token_bias=token_bias, **operands)

    shift = randn(problem.operands["x"].shape[0], num_heads) * 5
    assert_same(
        shifted, lambda shift, **operands: solver(problem)(**operands), shift=shift, **problem.operands
    )


@pytest.mark.parametrize("op", OPS)
@properties
@given(data=st.data())
def test_the_order_of_pixels_does_not_matter(op, data):
    problem = data.draw(problems(op))
    pixels = problem.operands["x"].shape[1]
    order = torch.tensor(data.draw(st.permutations(range(pixels))))

    def permuted(**operands):
        results = solver(problem)(**at_pixels(operands, order))
        results = results if isinstance(results, tuple) else (results,)
        if op == "tokenize" or results[0] is None:
            return results
        back = torch.empty_like(order)
        back[order] = torch.arange(pixels)
        return results[0][:, back], *results[1:]

    assert_same(permuted, solver(problem), **problem.operands)


@pytest.mark.parametrize("op", OPS)
@properties
@given(data=st.data())
def test_samples_do_not_see_their_batch(op, data):
    problem = data.draw(problems(op))

    def one_by_one(**operands):
        def part(name, value, sample):
            per_sample = {"queries": 3, "keys": 3, "values": 3, "token_bias": 2, "extra_values": 9}.get(
                name, 0
            )
            return value[sample : sample + 1] if value.dim() >= per_sample else value

        results = []
        for sample in range(operands["x"].shape[0]):
            parts = {name: part(name, value, sample) for name, value in operands.items()}
            result = solver(problem)(**parts)
            results.append(result if isinstance(result, tuple) else (result,))
        return tuple(None if part[0] is None else torch.cat(part) for part in zip(*results, strict=True))

    assert_same(one_by_one, solver(problem), **problem.operands)


@pytest.mark.parametrize("op", OPS)
@properties
@given(data=st.data())
def test_nan_in_one_sample_does_not_reach_another(op, data):
    problem = data.draw(problems(op, never=("shared", "shared bias"), batch=st.integers(2, 3)))
    names = [name for name in problem.operands if name not in ("mask", "extra_values")]
    poisoned = data.draw(st.sampled_from(names))
    bad = data.draw(st.integers(0, problem.operands["x"].shape[0] - 1))
    junk = data.draw(st.sampled_from([torch.nan, torch.inf]))
    clean = evaluate(solver(problem), **problem.operands)
    problem.operands[poisoned][bad] = junk
    good = torch.arange(problem.operands["x"].shape[0]) != bad
    for name, value in evaluate(solver(problem), **problem.operands).items():
        if name != "dextra_values":
            assert_close(value[good], clean[name][good], name)


def strided(value, choose):
    """The same values in another order of dimensions, at an offset, or every second element of memory."""
    order = choose.sample(range(value.dim()), value.dim())
    value = value.permute(order).contiguous()
    if choose.random() < 0.5:
        value = torch.cat([value[:1], value])[1:]
    if choose.random() < 0.5:
        value = torch.stack([value, value], -1)[..., 0]
    return value.permute([order.index(dim) for dim in range(value.dim())])


@pytest.mark.parametrize("op", OPS)
@properties
@given(data=st.data(), choose=seeds.map(random.Random))
def test_strides_do_not_matter(op, data, choose):
    problem = data.draw(problems(op))
    pixels = problem.operands["x"].shape[1]
    height = choose.choice([None, *(size for size in range(1, pixels + 1) if pixels % size == 0)])

    def as_map(pixels):
        return pixels if height is None else pixels.transpose(1, 2).unflatten(2, (height, -1))

    def restrided(**operands):
        operands |= {name: as_map(operands[name]) for name in ("x", "residual") if name in operands}
        results = solver(problem)(**{name: strided(value, choose) for name, value in operands.items()})
        results = results if isinstance(results, tuple) else (results,)
        if op != "tokenize" and height is not None and results[0] is not None:
            results = (results[0].flatten(2).transpose(1, 2), *results[1:])
        # so that the arriving gradients have strides too
        return tuple(
            None if result is None else torch.stack([result, result.detach()], -1)[..., 0]
            for result in results
        )

    assert_same(restrided, solver(problem), **problem.operands)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
@properties
@given(data=st.data())
def test_extreme_logits_stay_finite(op, dtype, data):
    problem = data.draw(problems(op))
    for name in data.draw(
        st.sets(st.sampled_from(("queries", "keys", "pixel_bias", "token_bias")), min_size=1)
    ):
        if name in problem.operands:
            problem.operands[name] *= 1e4
    operands = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in problem.operands.items()
    }
    some = samples_with_pixels(problem)
    for name, value in evaluate(solver(problem), **operands).items():
        if value.dtype != dtype or name == problem.lse:
            value = value[some]
        assert value.isfinite().all(), name
    if op == "tokenize":
        x, tokens = operands["x"], solver(problem)(**operands)[0][..., : operands["x"].shape[-1]]
        slack = math.sqrt(x.shape[1]) * torch.finfo(dtype).eps * x.abs().max()
        assert (tokens[some] <= x.amax(1, keepdim=True)[some] + slack).all()
        assert (tokens[some] >= x.amin(1, keepdim=True)[some] - slack).all()
