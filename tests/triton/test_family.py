"""The switches of the op family, in the kernels, against the reference in the widest dtype."""

import pytest
import torch

from tests._support import devices
from vt_fast import functional
from vt_fast.backends.triton.settings import KEEP, STREAM, WHOLE, Setting, using
from vt_fast.reference import ops as reference

# A tile that all forms can hold, for maps of more pixels.
SETTINGS = {
    "keep": Setting(16, 16, 0, KEEP, 4, 2),
    "stream": Setting(16, 16, 1, STREAM, 4, 1),
    "whole": Setting(32, 16, 1, WHOLE, 4, 2),
}
# One bag is empty, one more than a tile.
OFFSETS = [0, 3, 3, 40, 41, 47]
BAGS = 5
FORMS = pytest.mark.parametrize("form", SETTINGS)
LAYOUTS = pytest.mark.parametrize("layout", ["bnc", "nchw", "sliced"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def widest():
    return devices.dtypes("triton")[0]


def draw(*sizes):
    return torch.randn(sizes, dtype=widest())


def feature_map(layout, batch, channels, height=5, width=7):
    """(B, N, C) or (B, C, H, W) of 35 pixels."""
    if layout == "bnc":
        return draw(batch, height * width, channels)
    if layout == "nchw":
        return draw(batch, channels, height, width)
    return draw(batch, 2 * channels, height, width + 2)[:, ::2, :, 1:-1]


def solve(op, operands, exact):
    """Results and gradients, by name. Operands of a floating dtype get gradients."""
    given = {}
    for name, value in operands.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = (value.double() if exact else value).detach().requires_grad_()
        given[name] = value
    if operands.get("residual") is operands["x"]:
        given["residual"] = given["x"]
    function = getattr(reference if exact else functional, op)
    results = function(**given, **({} if exact else {"backend": "triton"}))
    results = [each for each in (results if isinstance(results, tuple) else (results,)) if each is not None]
    generator = torch.Generator(operands["x"].device).manual_seed(1)
    loss = 0
    for each in results:
        arriving = torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each)
        # A statistic of -inf has a gradient too, which must not be used.
        loss = loss + torch.where(each.isfinite(), each, 0).mul(arriving).sum()
    wanted = {name: value for name, value in given.items() if getattr(value, "requires_grad", False)}
    grads = torch.autograd.grad(loss, wanted.values(), allow_unused=True, materialize_grads=True)
    return {f"result {i}": each for i, each in enumerate(results)} | {
        f"gradient of {name}": grad for name, grad in zip(wanted, grads, strict=True)
    }


def check(op, form=None, **operands):
    """The kernels agree with the reference."""
    expected = solve(op, operands, True)
    if form is None:
        found = solve(op, operands, False)
    else:
        with using(SETTINGS[form]):
            found = solve(op, operands, False)
    assert found.keys() == expected.keys()
    exact = widest() == torch.float64
    for name, value in found.items():
        expected_value = expected[name].to(value.dtype)
        tolerance = {"rtol": 0, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(
            value, expected_value, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def rows_of(shared, batch, *sizes):
    return draw(*sizes) if shared else draw(batch, *sizes)


@FORMS
@LAYOUTS
@pytest.mark.parametrize("keys_width", [8, 24], ids=["block keys", "full keys"])
@pytest.mark.parametrize("summed", [False, True], ids=["block values", "summed"])
def test_heads_of_project(form, layout, keys_width, summed):
    x = feature_map(layout, 2, 24)
    shared = form == "keep"
    check(
        "project", form, x=x, keys=rows_of(shared, 2, 3 * 5, keys_width),
        values=rows_of(not shared, 2, 15 if summed else 5, 24), num_heads=3,
        token_bias=rows_of(shared, 2, 15), residual=x if form == "keep" else None,
    )  # fmt: skip


def test_removed_heads_of_project():
    keys, values, bias = draw(2, 6, 10), draw(6, 9), draw(2, 6)
    bias[0, 2] = bias[:, 5] = bias[1, 3] = -torch.inf
    bias[1, :3] = -torch.inf  # a whole head
    keys[:, 5] = torch.nan
    values[5] = torch.nan
    check(
        "project", x=draw(2, 19, 20), keys=keys, values=values, token_bias=bias, num_heads=2
    )  # fmt: skip


@FORMS
@pytest.mark.parametrize("keys_width", [6, 18], ids=["block keys", "full keys"])
@pytest.mark.parametrize("summed", [False, True], ids=["block values", "summed"])
def test_heads_of_project_tokenize(form, keys_width, summed):
    x = draw(2, 35, 18)
    check(
        "project_tokenize", form, x=x, keys=draw(2, 9, keys_width), values=draw(9 if summed else 3, 18),
        queries=draw(4, 18), num_heads=3, token_bias=draw(9), residual=x, mask=torch.rand(2, 35) > 0.3,
    )  # fmt: skip


def test_many_rows_of_project_tokenize():
    """More than the kernel for both holds."""
    check(
        "project_tokenize", x=draw(2, 20, 18), keys=draw(60, 6), values=draw(2, 60, 17), queries=draw(4, 17),
        num_heads=3,
    )  # fmt: skip


POOLING = pytest.mark.parametrize("normalize", ["pixels", "tokens", None])


@FORMS
@POOLING
@pytest.mark.parametrize("width", [8, 24], ids=["blocks", "full"])
@pytest.mark.parametrize("shared", [False, True], ids=["per sample", "shared"])
def test_pooling(form, normalize, width, shared):
    layout = {"keep": "nchw", "stream": "sliced", "whole": "bnc"}[form]
    check(
        "tokenize", form, x=feature_map(layout, 2, 24), queries=rows_of(shared, 2, 3 * 5, width), num_heads=3,
        token_bias=rows_of(form == "stream", 2, 15), pixel_bias=draw(2, 35), mask=torch.rand(2, 35) > 0.3,
        normalize=normalize, return_stats=True,
    )  # fmt: skip


@POOLING
def test_removed_rows_and_empty_samples(normalize):
    x, queries, bias, mask = draw(2, 37, 10), draw(2, 6, 10), draw(2, 6), torch.rand(2, 37) > 0.5
    bias[0, 2] = bias[:, 5] = -torch.inf
    bias[1, :3] = -torch.inf  # a whole head
    queries[:, 5] = torch.nan
    mask[1] = False
    x[~mask] = torch.nan
    for width in (10, 5):
        check(
            "tokenize", x=x, queries=queries[..., :width].contiguous(), num_heads=2, token_bias=bias,
            mask=mask, normalize=normalize, return_stats=True,
        )  # fmt: skip


@pytest.mark.parametrize("normalize", ["tokens", None])
def test_parts_of_pooling(normalize):
    """More pixels than a program has, and no bias; only some gradients."""
    check(
        "tokenize", "stream", x=draw(1, 201, 16), queries=draw(3, 16), normalize=normalize, return_stats=True
    )  # fmt: skip


@FORMS
@pytest.mark.parametrize("bags", [False, True], ids=["samples", "bags"])
def test_a_token_bias_of_each_sample_with_shared_queries(form, bags):
    """The gradients are summed over different pixels."""
    x, count = (draw(47, 24), BAGS) if bags else (draw(5, 19, 24), 5)
    for normalize, width in (("tokens", 24), (None, 8)):
        check(
            "tokenize", form, x=x, queries=draw(6, width), num_heads=3, token_bias=draw(count, 6),
            normalize=normalize, offsets=torch.tensor(OFFSETS) if bags else None, return_stats=True,
        )  # fmt: skip


def test_token_bias_adds_to_lse_alone():
    x, queries, bias = draw(2, 40, 16), draw(4, 16), draw(4)
    plain, lse = functional.tokenize(x, queries, return_stats=True, backend="triton")
    tokens, shifted = functional.tokenize(x, queries, token_bias=bias, return_stats=True, backend="triton")
    torch.testing.assert_close(tokens, plain)
    torch.testing.assert_close(shifted, lse + bias)


@FORMS
@pytest.mark.parametrize("normalize", ["exp", None])
def test_spreading(form, normalize):
    x = feature_map("nchw" if form == "stream" else "bnc", 2, 20)
    bias = draw(2, 6)
    bias[0, 4] = bias[1, :3] = -torch.inf
    check(
        "project", form, x=x, keys=draw(2, 6, 10) / 3, values=draw(3, 20), token_bias=bias, num_heads=2,
        normalize=normalize, residual=x if form == "keep" else None,
    )  # fmt: skip


def test_more_rows_than_a_program_holds_are_refused():
    x = draw(1, 5, 4)
    for rows, num_heads in ((257, 1), (2 * 129, 2)):
        with pytest.raises(ValueError, match=r"at most 256 num_heads \* queries, both rounded up"):
            functional.tokenize(x, draw(rows, 4), num_heads=num_heads, normalize="tokens", backend="triton")
    # Of heads that see channel blocks, or have nothing in common, each is counted by itself or as one row.
    for rows, width, eps in ((2 * 257, 2, None), (257, 4, None), (258, 2, 1e-5)):
        with pytest.raises(
            ValueError, match="at most 256 rows of queries, for each head where heads see channel"
        ):
            functional.tokenize(
                x, draw(rows, width), num_heads=4 // width, layer_norm_eps=eps, backend="triton"
            )
    assert functional.tokenize(x, draw(2 * 256, 2), num_heads=2, backend="triton").shape == (1, 256, 4)


@FORMS
@pytest.mark.parametrize("normalize", ["pixels", "tokens"])
@pytest.mark.parametrize("channels", [12, 54], ids=["narrower", "wider"])
def test_a_second_map(form, normalize, channels):
    layouts = {"keep": ("nchw", "nchw"), "stream": ("sliced", "nchw"), "whole": ("bnc", "bnc")}[form]
    mask = torch.rand(2, 35) > 0.3
    x, values = feature_map(layouts[0], 2, 24), feature_map(layouts[1], 2, channels)
    for each in (x, values):
        pixels = each if each.dim() == 3 else each.flatten(2).mT
        if pixels.data_ptr() == each.data_ptr():
            pixels[~mask] = torch.nan
    check(
        "tokenize", form, x=x, values=values, queries=rows_of(form == "keep", 2, 3 * 5, 8), num_heads=3,
        mask=mask, token_bias=draw(15), normalize=normalize, return_stats=True,
    )  # fmt: skip


def test_extra_values_follow_those_of_a_second_map():
    check(
        "tokenize", x=draw(2, 35, 8), values=draw(2, 35, 21), queries=draw(2, 5, 8), extra_values=draw(35, 3),
        pixel_bias=draw(2, 35), return_stats=True,
    )  # fmt: skip


@pytest.mark.parametrize("needed", ["x", "values", "queries"])
def test_one_gradient_alone(needed):
    operands = {"x": draw(2, 35, 8), "values": draw(2, 35, 21), "queries": draw(5, 8)}
    tensors = {name: value.requires_grad_(name == needed) for name, value in operands.items()}
    found = functional.tokenize(**tensors, backend="triton")
    expected = reference.tokenize(**tensors)
    arriving = torch.randn_like(found)
    (grad,) = torch.autograd.grad(found, tensors[needed], arriving)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, tensors[needed], arriving)[0])


def rows_of_bags(shared, *sizes):
    return draw(*sizes) if shared else draw(BAGS, *sizes)


@FORMS
@POOLING
@pytest.mark.parametrize("shared", [False, True], ids=["per bag", "shared"])
def test_bags_of_tokenize(form, normalize, shared):
    mask = torch.rand(47) > 0.3
    mask[40] = False  # a bag of one pixel
    x = draw(47, 18)
    x[~mask] = torch.nan
    check(
        "tokenize", form, x=x, queries=rows_of_bags(shared, 6, 6 if form == "keep" else 18), num_heads=3,
        token_bias=rows_of_bags(form == "keep", 6), pixel_bias=draw(47), mask=mask, normalize=normalize,
        values=draw(47, 33) if form == "stream" else None, offsets=torch.tensor(OFFSETS), return_stats=True,
    )  # fmt: skip


@FORMS
@pytest.mark.parametrize("shared", [False, True], ids=["per bag", "shared"])
def test_bags_of_project(form, shared):
    x = draw(47, 18)
    check(
        "project", form, x=x, keys=rows_of_bags(shared, 6, 6), num_heads=3, token_bias=draw(6),
        values=rows_of_bags(shared or form == "keep", 2, 21), offsets=torch.tensor(OFFSETS).int(),
        residual=draw(47, 21) if form == "keep" else None,
    )  # fmt: skip


@FORMS
@pytest.mark.parametrize("per_bag", ["token_bias", "keys", "values"])
def test_bags_of_project_that_share_most(form, per_bag):
    """Gradients of shared operands are summed across bags, where no other one of a bag is wanted."""
    sizes = {"keys": (6, 6), "values": (6, 18), "token_bias": (6,)}
    x = draw(47, 18)
    operands = {name: rows_of_bags(name != per_bag, *each) for name, each in sizes.items()}
    check(
        "project",
        form,
        x=x,
        num_heads=3,
        offsets=torch.tensor(OFFSETS),
        residual=x,
        scores=draw(6, 47),
        **operands,
    )


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]], ids=["no bags", "empty bags"])
def test_no_pixels(offsets):
    operands = {"x": draw(0, 8), "offsets": torch.tensor(offsets), "num_heads": 2}
    bags = len(offsets) - 1
    if bags:
        check("tokenize", queries=draw(4, 4), return_stats=True, **operands)
        check("tokenize", queries=draw(bags, 4, 4), normalize="tokens", return_stats=True, **operands)
        check("project", keys=draw(4, 4), values=draw(bags, 2, 6), **operands)
        return
    tokens = functional.tokenize(queries=draw(4, 4), backend="triton", **operands)
    assert tokens.shape == (0, 2, 8)


@FORMS
@POOLING
@pytest.mark.parametrize("alone", [False, True], ids=["added", "alone"])
def test_scores_of_tokenize(form, normalize, alone):
    layout = {"keep": "nchw", "stream": "sliced", "whole": "bnc"}[form]
    mask = torch.rand(2, 35) > 0.3
    scores = draw(2, 6, 35)
    if normalize is not None:
        scores[:, 2] = scores[0, :, 5] = -torch.inf
    scores[~mask[:, None].expand(2, 6, 35)] = torch.nan
    x = feature_map(layout, 2, 18)
    check(
        "tokenize", form, x=x, queries=None if alone else draw(6, 6 if form == "keep" else 18), num_heads=3,
        scores=scores.view(2, 6, 5, 7) if form == "keep" else scores, mask=mask, normalize=normalize,
        values=feature_map(layout, 2, 21) if form == "whole" else None, return_stats=True,
    )  # fmt: skip


@FORMS
@pytest.mark.parametrize("normalize", ["tokens", "exp", None])
@pytest.mark.parametrize("alone", [False, True], ids=["added", "alone"])
def test_scores_of_project(form, normalize, alone):
    x = draw(2, 35, 18)
    scores = draw(2, 6, 35)
    if normalize is not None:
        scores[:, 2] = scores[0, :, 5] = -torch.inf
    check(
        "project", form, x=x, keys=None if alone else draw(2, 6, 6), values=draw(2, 18), num_heads=3,
        scores=scores, normalize=normalize, residual=x if form == "keep" else None,
        token_bias=draw(6) if form == "stream" else None,
    )  # fmt: skip


@pytest.mark.parametrize("alone", [False, True], ids=["added", "alone"])
def test_scores_of_bags(alone):
    check(
        "tokenize", "stream", x=draw(47, 18), queries=None if alone else draw(6, 18), scores=draw(6, 47),
        offsets=torch.tensor(OFFSETS), return_stats=True,
    )  # fmt: skip
    check(
        "project", "stream", x=draw(47, 18), keys=None if alone else draw(6, 18), values=draw(BAGS, 6, 5),
        scores=draw(6, 47), offsets=torch.tensor(OFFSETS),
    )  # fmt: skip


@FORMS
@pytest.mark.parametrize("kind", ["blocks", "full", "scores"])
def test_layer_norm(form, kind):
    layout = {"keep": "nchw", "stream": "sliced", "whole": "bnc"}[form]
    mask = torch.rand(2, 35) > 0.3
    queries = {"blocks": draw(2, 6, 7), "full": draw(6, 21), "scores": None}[kind]
    check(
        "tokenize", form, x=feature_map(layout, 2, 21) + 3, queries=queries, num_heads=3, mask=mask,
        scores=draw(2, 6, 35) if kind == "scores" else None, layer_norm_eps=1e-3, return_stats=True,
        token_bias=draw(2, 6) if kind == "full" else None,
    )  # fmt: skip


def test_layer_norm_of_bags_and_with_extra_values():
    check(
        "tokenize", "stream", x=draw(47, 18), queries=draw(BAGS, 6, 18), offsets=torch.tensor(OFFSETS),
        layer_norm_eps=1e-5,
    )  # fmt: skip
    check(
        "tokenize", "keep", x=draw(2, 35, 18), queries=draw(6, 18), extra_values=draw(35, 3),
        pixel_bias=draw(2, 35), layer_norm_eps=1e-5,
    )  # fmt: skip
