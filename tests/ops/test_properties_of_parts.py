"""Two ways to compute the same: parts of a map, masks and biases, heads, tokens, one pass or two.

Their results and gradients must agree.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests._support.comparing import assert_close, assert_same
from tests._support.drawing import at_pixels, problems, properties, randn, seeds, small, solver
from tests._support.problems import Problem
from vt_fast.backends.eager import tiles
from vt_fast.functional import merge, project, tokenize

pytestmark = pytest.mark.on_cpu


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Even these maps take several tiles."""
    monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", 20)


@properties
@given(problem=problems("tokenize"), parts=st.integers(1, 5))
def test_merging_masked_parts_gives_the_whole(problem, parts):
    # each pixel to any part; some parts are empty
    part_of = torch.randint(parts, problem.operands["x"].shape[:2])

    def merged(mask=None, **operands):
        masks = [part_of == part if mask is None else mask & (part_of == part) for part in range(parts)]
        results = [solver(problem)(mask=mask, **operands) for mask in masks]
        return merge(*map(torch.stack, zip(*results, strict=True)))

    assert_same(merged, solver(problem), **problem.operands)


@properties
@given(problem=problems("tokenize"), data=st.data())
def test_merging_pieces_gives_the_whole(problem, data):
    pixels = problem.operands["x"].shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, pixels))) | {0, pixels})

    def merged(**operands):
        pieces = [at_pixels(operands, slice(*ends)) for ends in itertools.pairwise(cuts)]
        results = [solver(problem)(**piece) for piece in pieces]
        return merge(*map(torch.stack, zip(*results, strict=True)))

    assert_same(merged, solver(problem), **problem.operands)


@properties
@given(seed=seeds, data=st.data(), shards=st.integers(1, 5), num_heads=st.integers(1, 3))
def test_merge_takes_any_order_and_grouping(seed, data, shards, num_heads):
    torch.manual_seed(seed)
    tokens, lse = randn(shards, 2, 3, num_heads * 2), 3 * randn(shards, 2, num_heads * 3)
    lse[torch.rand(shards, 2) < 0.3] = -torch.inf
    order = data.draw(st.permutations(range(shards)))
    ends = sorted(data.draw(st.sets(st.integers(1, shards))) | {0, shards})

    def in_groups(tokens, lse):
        tokens, lse = tokens[order], lse[order]
        groups = [merge(tokens[a:b], lse[a:b]) for a, b in itertools.pairwise(ends)]
        return merge(*map(torch.stack, zip(*groups, strict=True)))

    assert_same(in_groups, merge, tokens=tokens, lse=lse)


@pytest.mark.parametrize("by", ["mask", "pixel_bias"])
@pytest.mark.parametrize("op", ["tokenize", "project_tokenize"])
@properties
@given(data=st.data())
def test_masking_a_pixel_is_leaving_it_out(op, by, data):
    problem = data.draw(problems(op, always=("no map",), never=("mask", by)))
    batch, pixels = problem.operands["x"].shape[:2]
    keep = data.draw(st.lists(st.integers(0, pixels - 1), min_size=1, unique=True).map(sorted))
    mask = torch.zeros(batch, pixels, dtype=torch.bool)
    mask[:, keep] = True
    junk = data.draw(st.sampled_from([1e3, torch.nan, torch.inf]))
    choice = {"mask": mask} if by == "mask" else {"pixel_bias": torch.where(mask, 0.0, -torch.inf).double()}

    def masked(**operands):
        for name in {"x", "residual"} & operands.keys():
            operands[name] = torch.where(mask[..., None], operands[name], junk)
        return solver(problem)(**operands, **choice)[-2:]

    def left_out(**operands):
        return solver(problem)(**at_pixels(operands, keep))[-2:]

    assert_same(masked, left_out, **problem.operands)


@properties
@given(problem=problems("tokenize"), data=st.data())
def test_a_log_weight_of_log_k_is_repeating_the_pixel_k_times(problem, data):
    pixels = problem.operands["x"].shape[1]
    counts = torch.tensor(
        data.draw(st.lists(st.integers(0, 3), min_size=pixels, max_size=pixels).filter(any))
    )
    repeated = torch.arange(pixels).repeat_interleave(counts)

    def weighted(pixel_bias=0, **operands):
        log_counts = counts.double().log().expand(operands["x"].shape[:2])
        return solver(problem)(pixel_bias=pixel_bias + log_counts, **operands)

    def several(**operands):
        return solver(problem)(**at_pixels(operands, repeated))

    assert_same(weighted, several, **problem.operands)


@properties
@given(seed=seeds, num_heads=st.integers(1, 4), shared=st.booleans(), sizes=st.tuples(small, small, small))
def test_heads_of_tokenize_are_calls_on_channel_blocks(seed, num_heads, shared, sizes):
    torch.manual_seed(seed)
    tokens, width, pixels = sizes
    queries = randn(num_heads * tokens, width) if shared else randn(2, num_heads * tokens, width)

    def separately(x, queries, pixel_bias):
        banks, blocks = queries.chunk(num_heads, -2), x.chunk(num_heads, -1)
        results = [
            tokenize(block, bank, pixel_bias=pixel_bias, return_stats=True)
            for block, bank in zip(blocks, banks, strict=True)
        ]
        return tuple(torch.cat(part, -1) for part in zip(*results, strict=True))

    assert_same(
        lambda **operands: tokenize(**operands, num_heads=num_heads, return_stats=True),
        separately,
        x=randn(2, pixels, num_heads * width),
        queries=queries,
        pixel_bias=randn(2, pixels),
    )


@properties
@given(seed=seeds, num_heads=st.integers(1, 4), shared=st.booleans(), sizes=st.tuples(small, small, small))
def test_heads_of_project_are_calls_for_channel_blocks(seed, num_heads, shared, sizes):
    torch.manual_seed(seed)
    tokens, width, pixels = sizes
    lead = () if shared else (2,)

    def separately(x, keys, values, token_bias):
        blocks = zip(
            keys.chunk(num_heads, -2),
            values.chunk(num_heads, -1),
            token_bias.chunk(num_heads, -1),
            strict=True,
        )
        return torch.cat([project(x, k, v, token_bias=b) for k, v, b in blocks], -1)

    assert_same(
        lambda **operands: project(**operands, num_heads=num_heads),
        separately,
        x=randn(2, pixels, num_heads * width),
        keys=randn(*lead, num_heads * tokens, num_heads * width),
        values=randn(*lead, tokens, num_heads * width),
        token_bias=randn(*lead, num_heads * tokens),
    )


@pytest.mark.parametrize("op", ["project", "project_tokenize"])
@properties
@given(data=st.data())
def test_a_bias_of_minus_infinity_is_leaving_the_token_out(op, data):
    problem = data.draw(problems(op, never=("token_bias", "shared bias")))
    num_heads = problem.options.get("num_heads", 1)
    batch, tokens = problem.operands["x"].shape[0], problem.operands["values"].shape[-2]
    keep = data.draw(st.lists(st.integers(0, tokens - 1), min_size=1, unique=True).map(sorted))
    token_bias = torch.full((tokens,), -torch.inf, dtype=torch.float64)
    token_bias[keep] = 0
    token_bias = (
        token_bias.repeat(num_heads) if data.draw(st.booleans()) else token_bias.repeat(batch, num_heads)
    )
    rows = [head * tokens + token for head in range(num_heads) for token in keep]

    def left_out(keys, values, **operands):
        return solver(problem)(keys=keys[..., rows, :], values=values[..., keep, :], **operands)

    assert_same(
        lambda **operands: solver(problem)(token_bias=token_bias, **operands), left_out, **problem.operands
    )


@properties
@given(problem=problems("project_tokenize"))
def test_project_tokenize_is_project_then_tokenize(problem):
    def composed(queries, **operands):
        pooling = {
            name: operands.pop(name) for name in ("mask", "pixel_bias", "extra_values") if name in operands
        }
        settings = dict(problem.options)
        return_map, return_stats = settings.pop("return_map"), settings.pop("return_stats")
        scale = settings.pop("query_scale", 1.0)
        y = project(**Problem("project", operands, settings).arguments(operands))
        pooled = tokenize(y, queries, **pooling, scale=scale, return_stats=return_stats)
        return (y, *pooled) if return_map else pooled

    assert_same(solver(problem), composed, **problem.operands)


@properties
@given(problem=problems("tokenize", always=("extra_values",), never=("num_heads",)))
def test_pooled_positions_are_linear_in_the_table(problem):
    extra_values = problem.operands.pop("extra_values")
    channels = problem.operands["x"].shape[-1]
    other = torch.randn_like(extra_values)

    def pooled(table, operands):
        return solver(problem)(extra_values=table, **operands)[0][..., channels:]

    assert_same(
        lambda extra_values, other, **operands: pooled(2 * extra_values - 3 * other, operands),
        lambda extra_values, other, **operands: (
            2 * pooled(extra_values, operands) - 3 * pooled(other, operands)
        ),
        extra_values=extra_values,
        other=other,
        **problem.operands,
    )


@properties
@given(problem=problems("tokenize", never=("num_heads", "extra_values"), batch=st.just(1)))
def test_the_map_as_its_own_table_gives_the_tokens_twice(problem):
    tokens, _ = solver(problem)(extra_values=problem.operands["x"][0], **problem.operands)
    assert_close(*tokens.chunk(2, -1))
