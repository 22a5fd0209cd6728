"""The switches of the op family, each against the reference."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests._support import devices, problems
from tests._support.comparing import assert_close, assert_solved
from tests._support.family import CASES, cover, make, taken
from vt_fast import functional, layout
from vt_fast.backends import eager
from vt_fast.backends.contract import Project, Tokenize
from vt_fast.backends.eager import tiles
from vt_fast.ops import PROJECT, TOKENIZE
from vt_fast.reference import ops as reference

RAW = {"tokenize": TOKENIZE, "project": PROJECT}
by_case = pytest.mark.parametrize(("op", "options"), CASES)


@by_case
def test_equals_autograd_through_the_reference(op, options):
    assert_solved(make(op, options))


@by_case
def test_narrow_dtypes(op, options):
    for dtype in devices.dtypes(devices.backend())[1:]:
        problem = make(op, options)
        if options[0] is None or options[0] == "exp":
            # Weights of any size: what is left of large sums is not as accurate as the sums.
            problem.options["scale"] = 0.125
        assert_solved(problem, dtype)


@by_case
def test_permuting_samples_permutes_results(op, options):
    """Shared and per-sample operands are told by their shapes alone, even where B equals R or N."""
    problem = make(op, options)
    if "offsets" in problem.operands:
        pytest.skip("bags are not one tensor's samples")
    expected = problem.call(problem.leaves(), plain=False)
    order = torch.tensor([2, 0, 1])
    shared = {
        name for name, value in problem.operands.items() if value.dim() == (1 if name == "token_bias" else 2)
    } - {"mask", "pixel_bias"}
    for name, value in problem.operands.items():
        problem.operands[name] = value if name in shared else value[order]
    for found, wanted in zip(problem.call(problem.leaves(), plain=False), expected, strict=True):
        assert_close(found, wanted[order])


# ---- bags ----


def bags_of(sizes, channels=8, rows=4):
    torch.manual_seed(1)
    dtype = problems.widest()
    x = torch.randn(sum(sizes), channels, dtype=dtype)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return x, offsets, torch.randn(rows, channels, dtype=dtype)


def test_bags_of_one_size_are_a_batch():
    taken("`offsets`")
    x, offsets, queries = bags_of([5, 5, 5])
    tokens, lse = functional.tokenize(x, queries, offsets=offsets, return_stats=True)
    expected = functional.tokenize(x.view(3, 5, 8), queries, return_stats=True)
    assert_close((tokens, lse), tuple(expected))
    y = functional.project(x, queries, tokens, residual=x, offsets=offsets)
    dense = x.view(3, 5, 8)
    assert_close(y.view(3, 5, 8), functional.project(dense, queries, tokens, residual=dense))


@pytest.mark.parametrize("sizes", [[0, 0], [0, 3, 0], [], [1], [3000, 0, 1]])
def test_sizes_of_bags(sizes):
    taken("`offsets`")
    x, offsets, queries = bags_of(sizes)
    solutions = []
    for module in (functional, reference):
        a, b = x.clone().requires_grad_(), queries.clone().requires_grad_()
        tokens, lse = module.tokenize(a, b, offsets=offsets, return_stats=True)
        y = module.project(a, b, b, offsets=offsets)
        loss = tokens.sin().sum() + lse.nan_to_num(neginf=0).sin().sum() + y.sin().sum()
        solutions.append((tokens, lse, y, *torch.autograd.grad(loss, (a, b))))
    assert_close(*solutions)


def test_a_bag_of_one_tile_has_the_same_bits_whatever_other_bags_there_are():
    taken("`offsets`")
    x, offsets, queries = bags_of([7, 2, 9])
    all_of_them = functional.tokenize(x, queries, offsets=offsets)
    alone = functional.tokenize(x[9:], queries, offsets=torch.tensor([0, 9]))
    assert torch.equal(all_of_them[2:], alone)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("wrong", "clamped"),
    [([2, 5, 7], [0, 5, 9]), ([-1, 20, 3], [0, 9, 9]), ([4], [9]), ([0, 6, 4, 9], [0, 6, 6, 9])],
)
def test_wrong_offsets_on_a_device_are_clamped(wrong, clamped, monkeypatch):
    """As if on a GPU, where they cannot be refused: what is computed is that of bags that cover the map."""

    def bounds(offsets, total):
        elsewhere = SimpleNamespace(tolist=offsets.tolist, device=torch.device("cuda"))
        found = layout.bag_bounds(elsewhere, total)
        assert found == clamped
        return found

    x, _, queries = bags_of([9])
    offsets, covering = torch.tensor(wrong), torch.tensor(clamped)
    expected = None
    if len(wrong) > 1:
        call = Tokenize(x, queries, None, None, None, 1, False, offsets=covering)
        expected = (
            *eager.tokenize(call),
            eager.project(Project(x, queries, queries, None, None, False, 1, offsets=covering)),
        )
    monkeypatch.setattr(tiles, "bag_bounds", bounds)
    found = (
        *eager.tokenize(Tokenize(x, queries, None, None, None, 1, False, offsets=offsets)),
        eager.project(Project(x, queries, queries, None, None, False, 1, offsets=offsets)),
    )
    if expected is None:
        expected = x.new_empty(0, 4, 8), x.new_empty(0, 4), torch.zeros_like(x)
    assert_close(found, expected)


@pytest.mark.one_backend
def test_nested_tensors_are_bags():
    x, offsets, queries = bags_of([4, 0, 5])
    queries = queries.requires_grad_()
    nested = torch.nested.nested_tensor_from_jagged(x.clone().requires_grad_(), offsets)
    mask = torch.nested.nested_tensor_from_jagged(torch.arange(9) % 3 != 0, nested.offsets())
    scores = torch.nested.nested_tensor_from_jagged(torch.randn(9, 4, dtype=x.dtype), nested.offsets())
    scores = scores.transpose(1, 2)
    tokens = functional.tokenize(nested, queries, mask=mask, scores=scores)
    dense = {"mask": mask.values(), "scores": scores.values(), "offsets": offsets}
    assert torch.equal(tokens, functional.tokenize(x, queries, **dense))
    for residual in (nested, None):
        y = functional.project(nested, queries, tokens, residual=residual)
        flat = functional.project(
            x, queries, tokens, residual=None if residual is None else x, offsets=offsets
        )
        assert y.is_nested
        assert torch.equal(y.values(), flat)
        assert (y + nested).shape == nested.shape  # the bags are known to be the same
    y.values().sin().sum().backward()
    assert queries.grad.abs().sum() > 0


@pytest.mark.one_backend
def test_nested_tensors_that_are_no_bags():
    x, offsets, queries = bags_of([4, 5])
    nested = torch.nested.nested_tensor_from_jagged(x, offsets)
    other = torch.nested.nested_tensor_from_jagged(torch.ones(9, dtype=torch.bool), offsets + 0)
    with pytest.raises(ValueError, match="`mask` must be nested as `x` is, in dimension 1 and with the same"):
        functional.tokenize(nested, queries, mask=other)
    with pytest.raises(ValueError, match="`offsets` must be None where `x` is nested, got a tensor"):
        functional.tokenize(nested, queries, offsets=offsets)
    strided = torch.nested.nested_tensor([x[:4], x[4:]])
    with pytest.raises(ValueError, match=r"`mask` must be nested as `x` is.*got torch.strided"):
        functional.tokenize(nested, queries, mask=torch.nested.nested_tensor([x[:4, 0] > 0, x[4:, 0] > 0]))
    square = torch.nested.nested_tensor_from_jagged(x[:, :4], offsets)  # as many channels as pixels in a bag
    for op in (functional.tokenize, lambda x, rows: functional.project(x, rows, rows)):
        with pytest.raises(
            TypeError, match=r"`x` must have layout=torch.jagged where.*got torch.str"
        ) as hint:
            op(strided, queries)
        with pytest.raises(ValueError, match=r"`x` must be \(B, \*, C\) where it is nested, got \(2, 4, j"):
            op(square.transpose(1, 2), queries[:, :4])
    how = re.search(r"\((torch\.nested.*)\), got", str(hint.value)).group(1)
    jagged = eval(how, {"torch": torch, "x": strided})
    assert torch.equal(functional.tokenize(jagged, queries), functional.tokenize(nested, queries))
    with pytest.raises(TypeError, match=r"`x` must be a dense \(torch.strided\) tensor, got a nested tensor"):
        functional.project_tokenize(strided, queries, queries, queries)
    with pytest.raises(
        ValueError, match=r"`offsets` must start at 0, not fall, and end at the number of pix"
    ):
        functional.tokenize(torch.nested.nested_tensor_from_jagged(x, offsets - 1), queries)


@pytest.mark.parametrize("how", ["compiled", "vmap", "grad", "raw"])
@pytest.mark.parametrize("op", ["tokenize", "project"])
def test_wrong_offsets_where_the_call_is_traced(op, how):
    """The message has the numbers, too: the op finds it out when it runs."""
    taken("`offsets`")
    if torch.empty(0).device.type != "cpu":
        pytest.skip("offsets on a GPU are clamped")
    x, offsets, rows = torch.randn(9, 8), torch.tensor([0, 6, 4, 9]), torch.randn(4, 8)

    def call(rows):
        given = (rows,) if op == "tokenize" else (rows, rows)
        return getattr(functional, op)(x, *given, offsets=offsets)

    def raw(rows):
        if op == "tokenize":
            return torch.ops.vt_fast.tokenize(
                x, rows, None, None, None, 1, False, offsets=offsets, backend=devices.backend()
            )
        return torch.ops.vt_fast.project(
            x, rows, rows, None, None, False, 1, offsets=offsets, backend=devices.backend()
        )

    run = {
        "compiled": lambda: torch.compile(call, backend="aot_eager")(rows),
        "vmap": lambda: torch.vmap(call)(rows[None].expand(2, -1, -1)),
        "grad": lambda: torch.func.grad(lambda rows: call(rows).sum())(rows),
        "raw": lambda: raw(rows),
    }[how]
    torch.compiler.reset()
    with pytest.raises(
        (ValueError, RuntimeError), match=r"start at 0, not fall, and end at.* 9, got \[0, 6, 4, 9\]"
    ):
        run()


# ---- layer norm ----


def test_layer_norm_with_weights_folded():
    taken("`layer_norm_eps`")
    x, queries = torch.randn(2, 9, 8, dtype=problems.widest()), torch.randn(4, 8, dtype=problems.widest())
    weight, bias = torch.randn(2, 8, dtype=problems.widest())
    normalised = torch.nn.functional.layer_norm(x, (8,), weight, bias, 1e-5)
    found = functional.tokenize(x, queries * weight, layer_norm_eps=1e-5) * weight + bias
    torch.testing.assert_close(found, functional.tokenize(normalised, queries))


# ---- what PyTorch does with them ----

by_some = pytest.mark.parametrize(("op", "options"), cover())


def torch_alone(op, options):
    """A problem with finite operands, in float32, for the backend "torch"."""
    problem = make(op, options)
    for name, value in problem.operands.items():
        if value.is_floating_point():
            problem.operands[name] = value.nan_to_num(0.25, neginf=-1)
    return problem


def without_infinite_lse(problem):
    """Where bags are empty, or samples masked, lse has no finite differences."""
    if problem.options["normalize"] == "pixels" and {"offsets", "mask"} & problem.operands.keys():
        problem.options["return_stats"] = False


@pytest.fixture
def on_torch():
    with devices.preferring("torch"):
        yield


def of_torch(test):
    """Once for each of some cases, on the backend "torch"."""
    for mark in (pytest.mark.one_backend, pytest.mark.on_cpu, pytest.mark.usefixtures("on_torch"), by_some):
        test = mark(test)
    return test


class Call(torch.nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def forward(self, *values):
        operands = dict(zip(self.problem.operands, values, strict=True))
        return tuple(self.problem.call(operands, plain=False))


@of_torch
def test_gradcheck(op, options):
    problem = torch_alone(op, options)
    without_infinite_lse(problem)
    problem.gradcheck(fast=True)


@of_torch
def test_double_backward_of_the_reference(op, options):
    problem = torch_alone(op, options)
    without_infinite_lse(problem)
    operands = problem.leaves()
    names = [name for name, value in operands.items() if value.requires_grad]

    def function(*values):
        return tuple(problem.call(operands | dict(zip(names, values, strict=True)), plain=True))

    inputs = [operands[name] for name in names]
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@of_torch
def test_opcheck(op, options):
    problem = torch_alone(op, options)
    arguments = raw_arguments(problem)
    torch.library.opcheck(
        RAW[op].raw,
        arguments,
        test_utils=(
            "test_schema",
            "test_autograd_registration",
            "test_faketensor",
            "test_aot_dispatch_static",
        ),
    )


def raw_arguments(problem):
    given = problem.arguments(problem.leaves(torch.float64)) | {
        "residual_is_input": problem.options.get("residual") == "input",
        "keep_exact": True,
    }
    if given["residual_is_input"]:
        given["residual"] = None
    schema = RAW[problem.op].raw._schema.arguments[:-1]
    return tuple(given.get(each.name, each.default_value) for each in schema)


@of_torch
def test_compiled(op, options):
    problem = torch_alone(op, options)
    operands = problem.leaves(torch.float32)
    torch.compiler.reset()  # the cases would exceed its limit of recompilations
    program = torch.compile(Call(problem), fullgraph=True, backend="aot_eager")
    check_program(program, problem, operands)


@of_torch
def test_exported(op, options):
    problem = torch_alone(op, options)
    operands = problem.leaves(torch.float32)
    program = torch.export.export(Call(problem), tuple(operands.values())).module()
    check_program(program, problem, operands)


def check_program(program, problem, operands):
    found, expected = program(*operands.values()), problem.call(operands, plain=False)
    for part, wanted in zip(found, expected, strict=True):
        assert torch.equal(part, wanted)
        assert part.stride() == wanted.stride()
    leaves = [value for value in operands.values() if value.requires_grad]
    sums = [sum(part.nan_to_num(neginf=0).sin().sum() for part in parts) for parts in (found, expected)]
    grads = [torch.autograd.grad(each, leaves, allow_unused=True, materialize_grads=True) for each in sums]
    for part, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(part, wanted)


@of_torch
def test_under_autocast_biases_and_scores_stay(op, options):
    problem = torch_alone(op, options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = problem.call(problem.leaves(torch.float32), plain=False)
    assert found[0].dtype == torch.bfloat16
    operands = {
        name: value.to(
            torch.bfloat16 if name not in ("token_bias", "scores", "pixel_bias") else torch.float32
        )
        if value.is_floating_point()
        else value
        for name, value in problem.operands.items()
    }
    rows = next((name for name in ("queries", "keys") if name in operands), None)
    if rows is not None:  # which are scaled before they are cast
        operands[rows] = (problem.operands[rows].float() * 0.75).to(torch.bfloat16)
        problem.options["scale"] = 1.0
    for part, wanted in zip(found, problem.call(operands, plain=False), strict=True):
        assert torch.equal(part, wanted)


@of_torch
def test_flops(op, options):
    """The reference's, plus the logits that the backward computes again; for each bag apart it counts 0."""
    problem = torch_alone(op, options)
    if "offsets" in problem.operands:
        whole = [value for name, value in problem.operands.items() if name in ("queries", "keys", "values")]
        if any(value.dim() == 3 for value in whole):
            pytest.skip("the reference goes bag by bag")
    counts = []
    for plain in (False, True):
        operands = problem.leaves(torch.float64)
        forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with forward:
            results = problem.call(operands, plain)
        with backward:
            torch.autograd.backward(results, [torch.ones_like(result) for result in results])
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0][0] == counts[1][0] > 0
    rows = problem.operands.get("queries" if op == "tokenize" else "keys")
    x = problem.operands["x"]
    pixels = x.numel() // x.shape[1 if x.dim() == 4 else -1]
    recomputed = 0 if rows is None else 2 * pixels * rows.shape[-2] * rows.shape[-1]
    assert counts[0][1] == counts[1][1] + recomputed


@pytest.mark.one_backend
def test_the_reference_refuses_weights_of_the_other_op():
    x, rows = torch.randn(2, 9, 8), torch.randn(4, 8)
    with pytest.raises(ValueError, match='`normalize` must be "pixels", "tokens" or None, got \'exp\''):
        reference.tokenize(x, rows, normalize="exp")
    with pytest.raises(ValueError, match='`normalize` must be "tokens", "exp" or None, got \'pixels\''):
        reference.project(x, rows, rows, normalize="pixels")


@pytest.mark.one_backend
def test_rows_or_scores_must_be_given():
    x, rows = torch.randn(2, 9, 8), torch.randn(4, 8)
    with pytest.raises(TypeError, match="`queries` or `scores` must be given, got None for both"):
        functional.tokenize(x)
    with pytest.raises(TypeError, match="`keys` or `scores` must be given, got None for both"):
        functional.project(x, None, rows)


@pytest.mark.one_backend
def test_a_map_that_gives_the_shape_alone_is_not_read_under_autocast():
    """Nor otherwise: what it holds does not matter."""
    x, values, scores = torch.full((2, 8, 3, 3), torch.nan), torch.randn(4, 8), torch.randn(2, 4, 3, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    expected = functional.project(torch.zeros_like(x), None, values, scores=scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = functional.project(x, None, values, scores=scores)
    assert found.dtype == torch.bfloat16
    assert found.stride() == x.stride()
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
