"""The ops inside PyTorch: opcheck, compile, export, torch.func, double backward, autocast, tracing."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from torch.utils.checkpoint import checkpoint

import vt_fast
from tests._support import devices, problems
from tests._support.comparing import tolerance
from tests._support.judging import short
from tests._support.pairs import pairs
from tests._support.problems import CASES, OPS, make, widest
from vt_fast import backends
from vt_fast.backends import contract
from vt_fast.ops import PROJECT, PROJECT_TOKENIZE, TOKENIZE, library
from vt_fast.reference import ops as reference

RAW = {"tokenize": TOKENIZE, "project": PROJECT, "project_tokenize": PROJECT_TOKENIZE}


def raw_arguments(problem, dtype, keep_exact=True):
    """The arguments with which the public function would call the raw op, which chooses a backend itself."""
    operand = problem.leaves(dtype).get
    options = problem.options
    num_heads = options.get("num_heads", 1)
    if problem.op == "tokenize":
        tensors = [operand(name) for name in ("x", "queries", "mask", "pixel_bias", "extra_values")]
        return (*tensors, num_heads, keep_exact)
    residual_is_input = "residual" in options
    if problem.op == "project":
        tensors = [operand(name) for name in ("x", "keys", "values", "token_bias", "residual")]
        return (*tensors, residual_is_input, num_heads)
    names = ("x", "keys", "values", "queries", "token_bias", "residual", "mask", "pixel_bias", "extra_values")
    tensors = [operand(name) for name in names]
    return (*tensors, residual_is_input, num_heads, options["return_map"], keep_exact)


# Every other case has the other layout.
@pytest.mark.one_in(11)
@pytest.mark.parametrize(
    ("case", "layout"), list(zip(CASES, itertools.cycle(["bnc", "nchw, sliced"]))), ids=short
)
def test_opcheck(case, layout):
    op, _ = case
    problem = make(*case, layout)
    if "token_bias" in problem.operands:
        problem.operands["token_bias"] = problem.operands["token_bias"].clamp(min=-1)
    torch.library.opcheck(RAW[op].raw, raw_arguments(problem, torch.float32))


@pytest.mark.parametrize("op", OPS)
def test_opcheck_in_bfloat16(op):
    options = ("residual", "wide") if op != "tokenize" else ("extra_values",)
    problem = make(op, options, "channels_last")
    torch.library.opcheck(
        RAW[op].raw,
        raw_arguments(problem, torch.bfloat16),
        # Compiled and eager run the same op; what differs is how autograd sums in 16 bits.
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_the_backward(op):
    problem = make(
        op, ("residual", "wide") if op != "tokenize" else ("mask", "extra_values"), "channels_last"
    )
    arguments = [
        value.detach() if isinstance(value, torch.Tensor) else value
        for value in raw_arguments(problem, widest())
    ]
    results = RAW[op].raw(*arguments)
    if op == "tokenize":
        tokens, _, lse = results
        arguments = [
            tokens,
            lse,
            *arguments[:5],
            tokens,
            lse,
            1,
            [True, False, True, True, False, False, False],
        ]
    elif op == "project":
        arguments = [results, *arguments[:4], False, 1, [True, True, False, True, False]]
    else:
        y, tokens, _, lse = results
        needs = [True, False, True, True, True, True, True, False]
        arguments = [y, tokens, None, *arguments[:9], tokens, lse, False, 1, needs]
    torch.library.opcheck(RAW[op].raw_backward, tuple(arguments))


def solve_with(function, problem):
    """Results and gradients through ``function(operands)``."""
    operands = problem.leaves()
    results = function(operands)
    loss = sum((result * (index + 1)).sin().sum() for index, result in enumerate(results))
    leaves = [value for value in operands.values() if value.requires_grad]
    return [*(result.detach() for result in results), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize(
    ("op", "layout", "backend"),
    pairs(OPS, ["bnc", "nchw", "channels_last"], devices.USABLE),
    indirect=["backend"],
)
def test_compiled_with_dynamic_shapes(op, layout):
    options = (
        ("residual", "wide", "token_bias") if op == "project" else ("mask", "pixel_bias", "extra_values")
    )
    torch._dynamo.reset()
    torch._dynamo.config.error_on_recompile = True
    try:
        # no two sizes are the same: the compiler takes equal ones for the same symbol
        first = make(op, options, layout, tokens=4, queries=6)
        compiled = torch.compile(
            lambda operands: first.call(operands, plain=False),
            fullgraph=True,
            dynamic=True,
            backend="aot_eager",
        )
        for sizes in ((2, 5, 7, 4, 6), (3, 11, 4, 5, 7), (2, 8, 13, 9, 17)):
            names = ("batch", "height", "width", "tokens", "queries")
            problem = make(op, options, layout, **dict(zip(names, sizes, strict=True)))
            eager = solve_with(lambda operands, p=problem: p.call(operands, plain=False), problem)
            for a, b in zip(solve_with(compiled, problem), eager, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=tolerance(1e-12))
                assert a.stride() == b.stride()
    finally:
        torch._dynamo.config.error_on_recompile = False


@pytest.mark.slow
@pytest.mark.one_in(3)
@pytest.mark.parametrize("op", OPS)
def test_compiled_by_inductor(op):
    problem = make(op, ("residual", "wide") if op == "project" else (), "channels_last")
    eager = solve_with(lambda operands: problem.call(operands, plain=False), problem)
    compiled = torch.compile(lambda operands: problem.call(operands, plain=False), fullgraph=True)
    for a, b in zip(solve_with(compiled, problem), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance(1e-12))


@pytest.mark.slow
def test_code_compiled_for_other_derivatives_is_not_used(tmp_path):
    def misses() -> int:
        torch._dynamo.reset()
        before = counters["aot_autograd"]["autograd_cache_miss"]
        torch.compile(lambda x, rows: vt_fast.tokenize(x, rows).sin())(x, rows).sum().backward()
        return counters["aot_autograd"]["autograd_cache_miss"] - before

    other = tmp_path / "vt_fast"
    shutil.copytree(Path(vt_fast.__file__).parent, other, ignore=shutil.ignore_patterns("_native"))
    assert library.cache_tag(other) == library.cache_tag()
    assert torch.compiler.config.cache_key_tag.endswith(library.cache_tag())
    tags = {library.cache_tag()}
    for name in ("layout.py", "ops/tokenize.py"):
        (other / name).write_text((other / name).read_text() + "# another version\n")
        tags.add(library.cache_tag(other))
    assert len(tags) == 3
    (other / "layout.py").unlink()  # as in a program that has compiled code alone
    assert library.cache_tag(other) == f"vt_fast-{vt_fast.__version__}"
    (other / "layout.py").touch()

    x, rows = torch.randn(1, 8, 5, 7), torch.randn(3, 8, requires_grad=True)
    with fresh_cache():
        assert (misses(), misses()) == (1, 0)
        with torch.compiler.config.patch(cache_key_tag=library.cache_tag(other)):
            assert misses() == 1


class Model(torch.nn.Module):
    """Two passes over a map, with something on either side of each op."""

    def __init__(self):
        super().__init__()
        self.queries = torch.nn.Parameter(torch.randn(4, 8, dtype=widest()))

    def forward(self, x):
        tokens, lse = vt_fast.tokenize(x.relu(), self.queries, return_stats=True)
        y, tokens = vt_fast.project_tokenize(x, tokens, tokens.sin(), self.queries, residual=x)
        return vt_fast.project(y, tokens, tokens, residual=x).cos(), tokens, lse


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_nodes_and_gradients(strict):
    model, x = Model(), torch.randn(2, 8, 5, 7, dtype=widest())
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert [target for target in targets if "vt_fast" in target] == [
        "vt_fast.tokenize.default",
        "vt_fast.project_tokenize.default",
        "vt_fast.project.default",
    ]
    exported = program.module()
    x = torch.randn(5, 8, 5, 7, dtype=widest(), requires_grad=True)
    results, expected = exported(x), model(x)
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b)
    leaves = [x, dict(exported.named_parameters())["queries"]]
    ours = torch.autograd.grad(sum(result.sum() for result in results), leaves)
    theirs = torch.autograd.grad(sum(result.sum() for result in expected), [x, model.queries])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance(1e-12))


@pytest.mark.parametrize("op", OPS)
def test_func_grad(op):
    problem = make(op, ("token_bias",) if op == "project" else ("pixel_bias", "extra_values"))
    names = [name for name, value in problem.operands.items() if value.is_floating_point()]

    def loss(plain, *values):
        return sum(
            result.sin().sum() for result in problem.call(dict(zip(names, values, strict=True)), plain)
        )

    operands = problem.leaves()
    values = [operands[name].detach().clamp(min=-1) for name in names]
    every = tuple(range(1, len(values) + 1))
    ours = torch.func.grad(loss, argnums=every)(False, *values)
    theirs = torch.func.grad(loss, argnums=every)(True, *values)
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance(1e-10), msg=name)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.one_in(3)
@pytest.mark.parametrize("op", OPS)
def test_per_sample_gradients_by_vmap(op):
    problem = make(op, ("shared", *(("token_bias",) if op == "project" else ("pixel_bias",))))
    if "token_bias" in problem.operands:
        problem.operands["token_bias"] = problem.operands["token_bias"].clamp(min=-1)
    shared = [name for name in problem.operands if name in ("queries", "keys", "values")]
    own = [name for name in problem.operands if name not in shared]

    def loss(plain, *values):
        operands = dict(zip([*shared, *own], values, strict=True))
        operands |= {name: operands[name][None] for name in own}
        return sum(result.sin().sum() for result in problem.call(operands, plain))

    leaves = problem.leaves()
    values = [leaves[name].detach() for name in [*shared, *own]]
    dims = (None, *([None] * len(shared)), *([0] * len(own)))
    grad = torch.func.grad(loss, argnums=tuple(range(1, len(values) + 1)))
    ours = torch.func.vmap(grad, in_dims=dims)(False, *values)
    theirs = torch.func.vmap(grad, in_dims=dims)(True, *values)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance(1e-10))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("op", OPS)
def test_forward_mode_raises_and_names_the_way_out(op, mode):
    problem = make(op)
    operands = {name: value.detach() for name, value in problem.leaves().items()}

    def function(x, plain=False):
        return problem.call(operands | {"x": x}, plain)[0]

    x = operands["x"]
    message = rf"vt_fast\.{op} has no forward-mode derivative.*vt_fast\.reference\.ops\.{op}"
    with mode(), pytest.raises(RuntimeError, match=message):
        torch.func.jvp(function, (x,), (x,))
    with mode(), torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
        function(torch.autograd.forward_ad.make_dual(x, x))
    _, tangent = torch.func.jvp(lambda x: function(x, plain=True), (x,), (x,))
    assert (tangent != 0).any()


@pytest.mark.parametrize("op", OPS)
def test_double_backward_raises_and_names_the_way_out(op):
    problem = make(op)
    operands = problem.leaves()
    message = rf"vt_fast\.{op} can be differentiated only once.*vt_fast\.reference\.ops\.{op}"
    # The sum's gradient does not require grad itself, which is where once_differentiable says nothing.
    loss = problem.call(operands, plain=False)[0].sum()
    grads = torch.autograd.grad(loss, list(operands.values()), create_graph=True)
    with pytest.raises(RuntimeError, match=message):
        (sum(grad.sum() for grad in grads) + operands["x"].sum()).backward()
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(
            lambda x: torch.func.grad(
                lambda x: problem.call(operands | {"x": x}, plain=False)[0].sin().sum()
            )(x).sum()
        )(operands["x"].detach())


@pytest.mark.on_cpu
@pytest.mark.parametrize("op", OPS)
def test_the_way_out_of_double_backward_works(op):
    problem = make(op, (), channels=4, height=2, width=2, tokens=2)
    names = list(problem.operands)
    inputs = [problem.operands[name].detach().clone().requires_grad_() for name in names]

    def function(*values):
        return tuple(problem.call(dict(zip(names, values, strict=True)), plain=True))

    assert torch.autograd.gradgradcheck(function, inputs)


def test_checkpointing():
    model, x = Model(), torch.randn(2, 8, 5, 7, dtype=widest(), requires_grad=True)
    plain = torch.autograd.grad(model(x)[0].sum(), (x, model.queries))
    saved = torch.autograd.grad(checkpoint(model, x, use_reentrant=False)[0].sum(), (x, model.queries))
    for a, b in zip(saved, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_autocast(op, dtype, how):
    options = ("token_bias",) if op == "project" else ("pixel_bias", "mask")
    problem = make(op, options, "nchw", channels=16)  # so many that each backend takes them
    single = problem.leaves(torch.float32)
    # operands of both widths, as a model under autocast has them
    mixed = single | {"x": single["x"].detach().to(dtype).requires_grad_()}
    function = lambda operands: problem.call(operands, plain=False)  # noqa: E731
    if how == "compiled":
        torch._dynamo.reset()
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.autocast(problems.device(), dtype=dtype):
        results = function(mixed)
    # Biases stay in float32.
    low = {
        name: value if value.dtype == torch.bool or "bias" in name else value.detach().to(dtype)
        for name, value in single.items()
    }
    low = {name: value.requires_grad_(value.is_floating_point()) for name, value in low.items()}
    expected = problem.call(low, plain=False)
    for a, b in zip(results, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    leaves = [value for value in mixed.values() if value.requires_grad]
    ours = torch.autograd.grad(sum(result.float().sum() for result in results), leaves)
    theirs = torch.autograd.grad(
        sum(result.float().sum() for result in expected),
        [value for value in low.values() if value.requires_grad],
    )
    for leaf, a, b in zip(leaves, ours, theirs, strict=True):
        assert a.dtype == leaf.dtype
        assert torch.equal(a, b.to(a.dtype))


def test_autocast_does_not_reach_inside_the_ops():
    x, queries = torch.randn(2, 50, 16, dtype=torch.bfloat16), torch.randn(4, 16, dtype=torch.bfloat16)
    outside = vt_fast.tokenize(x, queries, return_stats=True)
    with torch.autocast(problems.device(), dtype=torch.bfloat16):
        inside = vt_fast.tokenize(x, queries, return_stats=True)
        leaf = x.clone().requires_grad_()
        (dx_inside,) = torch.autograd.grad(vt_fast.tokenize(leaf, queries).sum(), leaf)
    (dx,) = torch.autograd.grad(vt_fast.tokenize(leaf, queries).sum(), leaf)
    assert torch.equal(inside[0], outside[0])
    assert torch.equal(inside[1], outside[1])
    assert torch.equal(dx_inside, dx)


def test_autocast_leaves_float64_alone():
    x, queries = torch.randn(2, 50, 16, dtype=torch.float64), torch.randn(4, 16, dtype=torch.float64)
    with torch.autocast(problems.device(), dtype=torch.bfloat16):
        assert vt_fast.tokenize(x, queries).dtype == torch.float64


# It says so of each shape that is checked: a trace holds for its shapes.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_jit_trace():
    model, x = Model(), torch.randn(2, 8, 5, 7, dtype=widest())
    traced = torch.jit.trace(model, (x,))
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert {"vt_fast::tokenize", "vt_fast::project", "vt_fast::project_tokenize"} <= set(kinds)
    for a, b in zip(traced(x), model(x), strict=True):
        assert torch.equal(a, b)


def test_inference_mode_and_no_grad():
    model, x = Model(), torch.randn(2, 8, 5, 7, dtype=widest())
    expected = model(x)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            results = model(x)
        for a, b in zip(results, expected, strict=True):
            assert torch.equal(a, b)
            assert not a.requires_grad


def test_the_reference_takes_the_same_arguments():
    import inspect

    for op in OPS:
        public = inspect.signature(getattr(vt_fast, op)).parameters
        plain = inspect.signature(getattr(reference, op)).parameters
        assert [name for name in public if name != "backend"] == list(plain)
        assert all(public[name].default == plain[name].default for name in plain)


@pytest.mark.parametrize("op", OPS)
def test_records_follow_the_schemas(op):
    names = {"tokenize": "Tokenize", "project": "Project", "project_tokenize": "ProjectTokenize"}
    for part in RAW[op].passes:
        schema = torch._C.parse_schema(f"vt_fast::{part.schema()}")
        names_of_arguments = [argument.name for argument in schema.arguments]
        assert part.record is getattr(contract, names[op] + ("Backward" if "backward" in part.name else ""))
        assert tuple(names_of_arguments[: len(part.record._fields)]) == part.record._fields
        assert names_of_arguments[-1] == "backend"
    results = [result.name for result in RAW[op].raw_backward._schema.returns]
    assert results == [f"d{field}" for field in getattr(contract, names[op] + "Gradients")._fields]


@pytest.mark.parametrize("op", OPS)
def test_the_registered_schemas_are_those_of_python(op):
    """Where the compiled library defines them, as where it does not."""
    for part in RAW[op].passes:
        for backend in (None, *backends.NAMES):
            written = torch._C.parse_schema(f"vt_fast::{part.schema(backend)}")
            registered = getattr(torch.ops.vt_fast, written.name.removeprefix("vt_fast::")).default
            assert str(registered._schema) == str(written)


@pytest.mark.parametrize("op", OPS)
def test_defaults_may_be_given_or_left_out(op):
    arguments = raw_arguments(make(op), torch.float32)
    raw = RAW[op].raw
    later = raw._schema.arguments[len(arguments) : -1]
    assert {"scores", "offsets", "normalize"} <= {argument.name for argument in later}
    given = {argument.name: argument.default_value for argument in later}
    found = raw(*arguments, **given, backend=devices.backend())
    torch.testing.assert_close(found, raw(*arguments))


def test_project_tokenize_refuses_the_rest_of_the_family():
    arguments = raw_arguments(make("project_tokenize"), torch.float32)
    raw = RAW["project_tokenize"].raw
    for given in ({"scores": torch.zeros(3)}, {"offsets": torch.zeros(3)}, {"normalize": "exp"}):
        name = next(iter(given))
        with pytest.raises((RuntimeError, ValueError), match=f"`{name}`"):
            raw(*arguments, **given)
