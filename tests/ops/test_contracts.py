"""Contracts of the public ops beyond their values: dtypes, strides, masks, empty samples, aliasing."""

import itertools
import random

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

import vt_fast
from tests._support import devices
from tests._support.comparing import assert_repeated, tolerance
from tests._support.pairs import pairs
from tests._support.problems import LAYOUTS, OPS, make, widest
from vt_fast.layout import empty_map_like
from vt_fast.reference import ops as reference
from vt_fast.testing import assert_as_accurate

LAYOUT_AND_WIDTH = list(itertools.product(LAYOUTS, [1, 6, 12, 17]))


def like(x, channels):
    """What torch.empty_like gives for a map like x with this number of channels, built independently."""
    dim = 2 if x.dim() == 3 else 1
    if channels <= x.shape[dim]:
        return torch.empty_like(x.narrow(dim, 0, channels))
    # repeat a map along its channels in its own order of dimensions, outermost first
    order = sorted(range(x.dim()), key=lambda d: (-x.stride(d), d))
    shape = list(x.shape)
    shape[dim] = channels
    model = torch.empty([shape[d] for d in order])
    return model.permute([order.index(d) for d in range(x.dim())])


@pytest.mark.one_in(25)
# empty_like cannot tell where a map of another width has its dimension of stride 0.
@pytest.mark.parametrize(
    ("layout", "channels"), [case for case in LAYOUT_AND_WIDTH if "expanded" not in case[0] or case[1] == 12]
)
def test_maps_have_the_strides_of_empty_like(layout, channels):
    x = LAYOUTS[layout](2, 12, 5, 7).requires_grad_()
    keys, values = torch.randn(2, 4, 12), torch.randn(2, 4, channels)
    y = vt_fast.project(x, keys, values)
    assert y.stride() == like(x, channels).stride()
    y2, tokens, lse = vt_fast.project_tokenize(x, keys, values, torch.randn(3, channels), return_stats=True)
    assert y2.stride() == y.stride()
    assert tokens.is_contiguous()
    assert lse.is_contiguous()
    for result in (y, y2, vt_fast.tokenize(x, torch.randn(4, 12))):
        (dx,) = torch.autograd.grad(result.sum(), x)
        assert dx.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("seed", range(4))
def test_maps_of_any_strides_have_those_of_empty_like(seed):
    generator = random.Random(seed)
    for _ in range(50):
        sizes = [generator.choice([1, 1, 2, 3]) for _ in range(generator.choice([3, 4]))]
        wide = [size + generator.choice([0, 0, 1]) for size in sizes]
        order = generator.sample(range(len(sizes)), len(sizes))
        memory = torch.randn([1 if generator.random() < 0.2 else wide[dim] for dim in order])
        x = memory.permute([order.index(dim) for dim in range(len(sizes))]).expand(wide)
        x = x[tuple(slice(size) for size in sizes)]
        channels = x.shape[2 if x.dim() == 3 else 1]
        for width in {channels, 5}:
            y = vt_fast.project(x, torch.randn(2, channels), torch.randn(2, width))
            expected = empty_map_like(x, width).stride()
            # torch's own kernels and fake kernels differ where a size is 1.
            found = [(a, b) for a, b, size in zip(y.stride(), expected, y.shape, strict=True) if size > 1]
            assert all(a == b for a, b in found), (x.shape, x.stride(), width)


@pytest.mark.one_in(39)
@pytest.mark.parametrize(("layout", "channels"), LAYOUT_AND_WIDTH)
def test_fake_tensors_have_the_true_strides(layout, channels):
    x = LAYOUTS[layout](2, 12, 5, 7)
    keys, values, queries = torch.randn(4, 12), torch.randn(4, channels), torch.randn(3, channels)

    def results(x, keys, values, queries):
        x = x.detach().requires_grad_()
        y, tokens, lse = vt_fast.project_tokenize(x, keys, values, queries, return_stats=True)
        first, first_lse = vt_fast.tokenize(x, keys, return_stats=True)
        found = [y, tokens, lse, first, first_lse, vt_fast.project(x, keys, values)]
        return found + [torch.autograd.grad(result.sum(), x, retain_graph=True)[0] for result in found]

    true = results(x, keys, values, queries)
    with FakeTensorMode() as mode:
        fake = results(*(mode.from_tensor(value) for value in (x, keys, values, queries)))
    for a, b in zip(true, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (tuple(b.shape), b.stride(), b.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype, backend):
    if dtype not in devices.dtypes(backend):
        pytest.skip("this backend computes in it in Triton's interpreter only")
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    x, tokens = torch.randn(2, 6, 8, dtype=dtype), torch.randn(2, 3, 8, dtype=dtype)
    pooled, lse = vt_fast.tokenize(x, tokens, return_stats=True)
    y, pooled2, lse2 = vt_fast.project_tokenize(x, tokens, tokens, tokens, return_stats=True)
    merged, merged_lse = vt_fast.merge(pooled[None], lse[None])
    assert {t.dtype for t in (pooled, pooled2, merged, y, vt_fast.project(x, tokens, tokens))} == {dtype}
    assert {t.dtype for t in (lse, lse2, merged_lse)} == {statistics}


@pytest.mark.parametrize(
    ("op", "layout", "by", "junk"),
    pairs(
        ["tokenize", "project_tokenize"],
        ["bnc", "nchw"],
        ["mask", "pixel_bias", "both"],
        [torch.nan, torch.inf, -torch.inf, 1e30],
    ),
)
def test_masked_pixels_are_never_used(op, layout, by, junk):
    options = ("mask", "pixel_bias", "extra_values", "shared")
    problem = make(op, (*options, "no map"), layout)
    mask = problem.operands["mask"]
    clean = problem.solve()
    if by == "pixel_bias":
        problem.operands["pixel_bias"][~mask] = -torch.inf
        del problem.operands["mask"]
    elif by == "both":
        problem.operands["pixel_bias"][~mask] = -torch.inf
    hidden = ~mask if layout == "bnc" else (~mask).unflatten(1, (5, 7))
    x = problem.operands["x"].clone()
    pixels = x if layout == "bnc" else x.permute(0, 2, 3, 1)
    pixels[hidden] = junk
    problem.operands["x"] = x
    dirty = problem.solve()
    for name, value in dirty.items():
        torch.testing.assert_close(value, clean[name], rtol=0, atol=tolerance(1e-12), msg=name)
    dpixels = dirty["dx"] if layout == "bnc" else dirty["dx"].permute(0, 2, 3, 1)
    assert (dpixels[hidden] == 0).all()
    assert (dirty["dpixel_bias"][~mask] == 0).all()


def test_a_map_that_is_wanted_is_computed_in_masked_pixels_too():
    problem = make("project_tokenize", ("mask",), "nchw")
    mask = problem.operands.pop("mask")
    operands = problem.leaves()
    plain = vt_fast.project(*(operands[name] for name in ("x", "keys", "values")))
    y, _ = vt_fast.project_tokenize(**operands, mask=mask)
    assert_repeated(y, plain)


def test_an_unused_map_does_not_bring_masked_pixels_into_gradients():
    problem = make("project_tokenize", ("mask", "shared"))
    operands = {name: value.detach() for name, value in problem.leaves().items()}
    operands["x"][~operands["mask"]] = torch.nan
    for name in ("x", "keys", "values", "queries"):
        operands[name].requires_grad_()
    _, tokens, lse = vt_fast.project_tokenize(**operands, return_stats=True)
    (tokens.sum() + lse.sum()).backward()
    assert all(operands[name].grad.isfinite().all() for name in ("x", "keys", "values", "queries"))


@pytest.mark.parametrize("mask_form", ["(B, N)", "(B, H, W)"])
@pytest.mark.parametrize("name", ["mask", "pixel_bias"])
def test_masks_and_weights_take_both_forms(name, mask_form):
    problem = make("tokenize", (name,), "channels_last")
    expected = problem.solve()
    if mask_form == "(B, H, W)":
        problem.operands[name] = problem.operands[name].unflatten(1, (5, 7))
    for key, value in problem.solve().items():
        assert torch.equal(value, expected[key].reshape(value.shape)), key


@pytest.mark.parametrize("num_heads", [(), ("num_heads",)])
@pytest.mark.parametrize("op", ["tokenize", "project_tokenize"])
def test_a_fully_masked_sample(op, num_heads):
    problem = make(
        op, ("mask", "pixel_bias", *num_heads, *(() if num_heads else ("extra_values",)), "no map")
    )
    problem.operands["mask"][1] = False
    solution = problem.solve()
    tokens, lse = solution["result 0"], solution["result 1"]
    assert (tokens[1] == 0).all()
    assert (lse[1] == -torch.inf).all()
    assert tokens[0].isfinite().all()
    for name in ("dx", "dqueries", "dpixel_bias"):
        assert (solution[name][1] == 0).all(), name
        assert solution[name].isfinite().all(), name


def test_nothing_that_arrives_at_a_fully_masked_sample_reaches_a_gradient():
    x, queries = torch.randn(2, 6, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    mask = torch.tensor([[True] * 6, [False] * 6])
    tokens, lse = vt_fast.tokenize(x, queries, mask=mask, return_stats=True)
    arriving = torch.ones_like(tokens), torch.ones_like(lse)
    arriving[0][1], arriving[1][1] = torch.nan, torch.nan
    dx, dqueries = torch.autograd.grad((tokens, lse), (x, queries), arriving)
    assert (dx[1] == 0).all()
    assert dx.isfinite().all()
    assert dqueries.isfinite().all()


@pytest.mark.parametrize("num_heads", [1, 2])
def test_bias_of_minus_infinity_removes_a_token(num_heads):
    x, keys, values = torch.randn(2, 6, 8), torch.randn(2, num_heads * 4, 8), torch.randn(2, 4, 8)
    keep = [0, 1, 3]
    rows = [head * 4 + token for head in range(num_heads) for token in keep]
    expected = vt_fast.project(x, keys[:, rows], values[:, keep], num_heads=num_heads)
    token_bias = torch.zeros(num_heads * 4)
    token_bias[2::4] = -torch.inf
    keys[:, 2::4], values[:, 2] = torch.nan, torch.nan
    leaves = [value.requires_grad_() for value in (x, keys, values, token_bias)]
    y = vt_fast.project(x, keys, values, num_heads=num_heads, token_bias=token_bias)
    torch.testing.assert_close(y, expected)
    dx, dkeys, dvalues, dtoken_bias = torch.autograd.grad(y.square().sum(), leaves)
    assert dx.isfinite().all()
    assert (dkeys[:, 2::4] == 0).all()
    assert (dvalues[:, 2] == 0).all()
    assert (dtoken_bias[2::4] == 0).all()


def test_without_any_token_nothing_is_added():
    x, tokens = torch.randn(2, 6, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    token_bias = torch.tensor([[-torch.inf] * 4, [0.0] * 4])
    y = vt_fast.project(x, tokens, tokens, token_bias=token_bias, residual=x)
    assert torch.equal(y[0], x[0])
    assert not torch.equal(y[1], x[1])
    assert (vt_fast.project(x, tokens, tokens, token_bias=token_bias)[0] == 0).all()
    dx, dtokens = torch.autograd.grad(y.sum(), (x, tokens))
    assert torch.equal(dx[0], torch.ones(6, 8))
    assert (dtokens[0] == 0).all()


@pytest.mark.parametrize("op", OPS)
def test_nan_stays_in_its_sample(op):
    problem = make(op, ("residual",) if op == "project" else ("pixel_bias",), batch=3)
    clean = problem.solve()
    problem.operands["x"] = problem.operands["x"].clone()
    problem.operands["x"][1, 4, 2] = torch.nan
    for name, value in problem.solve().items():
        assert torch.equal(value[[0, 2]], clean[name][[0, 2]]), name
    assert problem.solve()["result 0"][1].isnan().any()


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_changed_in_place(op):
    options = ("token_bias", "residual") if op == "project" else ("mask", "pixel_bias", "extra_values")
    problem = make(op, options)
    operands = problem.leaves()
    before = {name: value.detach().clone() for name, value in operands.items()}
    results = problem.call(operands, plain=False)
    cotangents = [torch.randn_like(result) for result in results]
    kept = [cotangent.clone() for cotangent in cotangents]
    torch.autograd.backward(results, cotangents)
    for name, value in operands.items():
        assert torch.equal(value, before[name]), name
    for cotangent, copy in zip(cotangents, kept, strict=True):
        assert torch.equal(cotangent, copy)


ALIASED = {
    "queries are x": lambda x, t: vt_fast.tokenize(x, x),
    "values are keys": lambda x, t: vt_fast.project(x, t, t),
    "the residual is x": lambda x, t: vt_fast.project(x, t, t, residual=x),
    "everything is one tensor": lambda x, t: vt_fast.project(x, x, x, residual=x),
    "queries are keys": lambda x, t: vt_fast.project_tokenize(x, t, t, t)[1],
    "all of it": lambda x, t: vt_fast.project_tokenize(x, x, x, x, residual=x, return_map=False)[1],
}


@pytest.mark.parametrize("case", ALIASED)
def test_the_same_tensor_may_be_passed_twice(case):
    check_aliased(case, ALIASED[case])


@pytest.mark.parametrize(
    ("case", "how", "backend"),
    pairs(list(ALIASED), ["compiled", "exported"], devices.USABLE),
    indirect=["backend"],
)
def test_the_same_tensor_may_be_passed_twice_to_a_graph(case, how):
    class Module(torch.nn.Module):
        def forward(self, x, t):
            return ALIASED[case](x, t)

    if how == "compiled":
        check_aliased(case, torch.compile(Module(), fullgraph=True, backend="aot_eager"))
    else:
        example = tuple(torch.randn(2, 5, 8, dtype=widest(), requires_grad=True) for _ in range(2))
        check_aliased(case, torch.export.export(Module(), example).module())


def check_aliased(case, function):
    """Raise unless results and gradients are those of a call with copies."""
    x = torch.randn(2, 5, 8, dtype=widest(), requires_grad=True)
    t = torch.randn(2, 5, 8, dtype=widest(), requires_grad=True)
    copies = {
        "queries are x": lambda: vt_fast.tokenize(x, x.clone()),
        "values are keys": lambda: vt_fast.project(x, t, t.clone()),
        "the residual is x": lambda: vt_fast.project(x, t, t.clone(), residual=x.clone()),
        "everything is one tensor": lambda: vt_fast.project(x, x.clone(), x.clone(), residual=x.clone()),
        "queries are keys": lambda: vt_fast.project_tokenize(x, t, t.clone(), t.clone())[1],
        "all of it": lambda: vt_fast.project_tokenize(
            x, x.clone(), x.clone(), x.clone(), residual=x.clone(), return_map=False
        )[1],
    }
    expected = copies[case]()
    result = function(x, t)
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance(1e-12))
    ours = torch.autograd.grad(result.square().sum(), (x, t), allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected.square().sum(), (x, t), allow_unused=True, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance(1e-12))


class ResidualIsInput(torch.nn.Module):
    """Calls whose map is computed inside the graph and is its own residual."""

    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x, t):
        x = x.sin()
        if self.op == "project":
            return vt_fast.project(x, t, t, residual=x)
        return vt_fast.project_tokenize(x, t, t, t, residual=x)[1]


@pytest.mark.parametrize("how", ["compiled", "exported", "exported strictly"])
@pytest.mark.parametrize("op", ["project", "project_tokenize"])
def test_a_residual_that_is_x_is_one_operand_of_the_op(op, how):
    x, t = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    module, graphs = ResidualIsInput(op), []
    if how == "compiled":

        def keep(graph, inputs):
            graphs.append(graph)
            return make_boxed_func(graph.forward)

        torch.compile(module, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(x, t)
    else:
        graphs.append(torch.export.export(module, (x, t), strict=how.endswith("strictly")).module())
    raw = getattr(torch.ops.vt_fast, op).default
    (call,) = (node for graph in graphs for node in graph.graph.nodes if node.target is raw)
    names = [argument.name for argument in raw._schema.arguments]
    assert call.args[names.index("residual")] is None
    assert call.args[names.index("residual_is_input")] is True


@pytest.mark.slow
@pytest.mark.parametrize("op", ["project", "project_tokenize"])
def test_a_residual_that_is_x_compiled_by_inductor(op):
    x, t = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 8, requires_grad=True)
    module = ResidualIsInput(op)
    results = [function(x, t) for function in (torch.compile(module, fullgraph=True), module)]
    grads = [torch.autograd.grad(result.sin().sum(), (x, t)) for result in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("op", OPS)
def test_the_scale_multiplies_the_logits(op):
    problem = make(op, ("scale", "pixel_bias") if op != "project" else ("scale", "token_bias"))
    found = problem.solve()
    for name, rows in (("scale", "queries" if op == "tokenize" else "keys"), ("query_scale", "queries")):
        if name in problem.options:
            problem.operands[rows] = problem.operands[rows] * problem.options.pop(name)
    expected = problem.solve()
    for name in found.keys() - {"dqueries", "dkeys"}:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance(1e-10), msg=name)


def with_large_biases(op):
    """Operands that bfloat16 can hold, and biases near 1000, which it would round by up to 4."""
    options = {
        "tokenize": ("pixel_bias",),
        "project": ("token_bias",),
        "project_tokenize": ("pixel_bias", "token_bias"),
    }
    problem = make(op, options[op], "nchw", channels=16)
    for name, value in problem.operands.items():
        biased = name in ("pixel_bias", "token_bias")
        problem.operands[name] = (value + 1000).float().double() if biased else value.bfloat16().double()
    return problem


@pytest.mark.parametrize("op", OPS)
def test_biases_in_float32_are_not_rounded(op, backend):
    if torch.bfloat16 not in devices.dtypes(backend):
        pytest.skip("this backend does not compute in bfloat16 here")
    problem = with_large_biases(op)
    exact = problem.solve(plain=True)
    plain = problem.solve(torch.bfloat16, plain=True, bias_dtype=torch.float32)
    found = problem.solve(torch.bfloat16, bias_dtype=torch.float32)
    lse = 0.0 if problem.lse is None else exact[problem.lse].abs().max().item()
    for name, value in found.items():
        assert value.dtype == plain[name].dtype
        assert_as_accurate(
            value,
            exact[name],
            plain[name],
            name,
            lse=lse,
            truncates=devices.truncates(backend, torch.bfloat16),
        )


def test_the_same_tensor_twice_as_two_arguments_of_a_compiled_function():
    x = torch.randn(2, 5, 8, requires_grad=True)
    compiled = torch.compile(
        lambda x, q, r: vt_fast.project_tokenize(x, q, q, q, residual=r)[:2],
        fullgraph=True,
        backend="aot_eager",
    )
    y, tokens = compiled(x, x, x)
    expected = vt_fast.project_tokenize(x, x, x, x, residual=x)
    assert torch.equal(y, expected[0])
    assert torch.equal(tokens, expected[1])


def test_merge_of_empty_shards_has_gradients_of_zero():
    tokens = torch.randn(3, 2, 4, 8, dtype=torch.float64, requires_grad=True)
    lse = torch.randn(3, 2, 4, dtype=torch.float64)
    lse[1] = -torch.inf
    lse[:, 1] = -torch.inf
    lse.requires_grad_()
    merged, merged_lse = vt_fast.merge(tokens, lse)
    assert (merged[1] == 0).all()
    assert (merged_lse[1] == -torch.inf).all()
    assert merged[0].isfinite().all()
    dtokens, dlse = torch.autograd.grad((merged.square().sum() + merged_lse.exp().sum()), (tokens, lse))
    assert dtokens.isfinite().all()
    assert dlse.isfinite().all()
    assert (dtokens[1] == 0).all()
    assert (dlse[1] == 0).all()
    assert (dlse[:, 1] == 0).all()


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_give_shapes_and_strides(op):
    problem = make(op, (), "channels_last")
    leaves = problem.leaves()
    operands = {name: value.to("meta") for name, value in leaves.items()}
    expected = problem.call(leaves, plain=False)
    for a, b in zip(problem.call(operands, plain=False), expected, strict=True):
        assert (a.device.type, a.shape, a.stride(), a.dtype) == ("meta", b.shape, b.stride(), b.dtype)


def test_an_infinite_logit_gives_an_infinite_lse_as_in_plain_pytorch():
    x, queries, weights = torch.randn(2, 6, 8), torch.randn(3, 8), torch.zeros(2, 6)
    weights[0, 2] = torch.inf
    _, lse = vt_fast.tokenize(x, queries, pixel_bias=weights, return_stats=True)
    _, expected = reference.tokenize(x, queries, pixel_bias=weights, return_stats=True)
    assert (lse[0] == torch.inf).all()
    torch.testing.assert_close(lse, expected)
    _, merged = vt_fast.merge(torch.zeros(2, 2, 3, 8), torch.stack([lse, torch.zeros_like(lse)]))
    assert torch.equal(merged.isinf(), lse.isinf())


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("residual", ["x", "a map"])
def test_masked_pixels_without_a_gradient_of_the_map_do_not_matter(how, residual):
    """The map may be used elsewhere, as long as no gradient arrives at its masked pixels."""
    problem = make("project_tokenize", ("mask", "shared", *(("residual",) if residual == "a map" else ())))
    mask = problem.operands.pop("mask")
    operands = {name: value.detach() for name, value in problem.leaves().items()}
    for name in {"x", "residual"} & set(operands):
        operands[name][~mask] = torch.nan
    leaves = [value.requires_grad_() for value in operands.values()]

    def loss(used, **operands):
        if residual == "x":
            operands["residual"] = operands["x"]
        y, tokens, lse = vt_fast.project_tokenize(**operands, mask=mask, return_stats=True)
        rest = torch.where(mask[..., None], y, 0).square().sum() if used else 0
        return tokens.sum() + lse.sum() + rest

    function = torch.compile(loss, backend="aot_eager", fullgraph=True) if how == "compiled" else loss
    for used in (False, True):
        grads = torch.autograd.grad(function(used, **operands), leaves)
        clean = {name: torch.where(value.isnan(), 0, value).detach() for name, value in operands.items()}
        inputs = [value.requires_grad_() for value in clean.values()]
        expected = torch.autograd.grad(loss(used, **clean), inputs)
        for name, a, b in zip(operands, grads, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance(1e-10), msg=name)


def test_merge_takes_nothing_from_an_empty_shard():
    tokens, lse = torch.randn(2, 1, 3, 8, dtype=torch.float64), torch.randn(2, 1, 3, dtype=torch.float64)
    tokens[1], lse[1] = torch.nan, -torch.inf
    merged, merged_lse = vt_fast.merge(tokens, lse)
    torch.testing.assert_close(merged, tokens[0])
    torch.testing.assert_close(merged_lse, lse[0])


@pytest.mark.parametrize("op", OPS)
def test_logits_that_overflow_are_not_taken_for_a_mask(op):
    problem = make(op, ("shared",))
    huge = torch.finfo(widest()).max / 1e8
    problem.operands["x"] = problem.operands["x"].abs() * huge
    for name in {"queries", "keys"} & set(problem.operands):
        problem.operands[name] = -problem.operands[name].abs() * huge
    for plain in (False, True):
        assert problem.call(problem.leaves(), plain)[-1 if op == "project" else 0].isnan().any()


@pytest.mark.parametrize("op", ["tokenize", "project_tokenize"])
def test_the_backward_starts_from_unrounded_tokens(op):
    """With an offset in the map, delta nearly cancels: rounded tokens would leave noise."""
    problem = make(op, ("shared",), channels=64, height=20, width=20, tokens=16, queries=16)
    problem.operands["x"] = (problem.operands["x"] + 30).bfloat16().double()
    for name in {"queries", "keys", "values"} & set(problem.operands):
        problem.operands[name] = (problem.operands[name] / 30).bfloat16().double()
    exact = problem.solve(plain=True)
    ours = problem.solve(torch.bfloat16)
    # As near to the exact result as its own rounding. Plain PyTorch in bfloat16 is far less accurate here.
    assert_as_accurate(ours["dqueries"], exact["dqueries"], exact["dqueries"].bfloat16(), "dqueries")


def test_the_map_is_tokenized_before_it_is_rounded(backend):
    if backend != "torch":
        pytest.skip("this backend may use the rounded map, as plain PyTorch does")
    problem = make("project_tokenize", ("shared",), channels=64, height=20, width=20, queries=16)
    problem.operands["queries"] *= 16
    problem.operands = {name: value.bfloat16().double() for name, value in problem.operands.items()}
    exact = problem.solve(plain=True)
    ours = problem.solve(torch.bfloat16)
    for name in ("result 1", "result 2"):
        lse = exact["result 2"].abs().max().item()
        dtype = ours[name].dtype
        assert_as_accurate(ours[name], exact[name], exact[name].to(dtype), name, lse=lse, terms=400)
