"""The registries: cases, operands, peers, and the truth that they are all compared with."""

import json

import pytest
import torch

from benchmarks import cases, floors, gate, operands, peers, truth
from benchmarks.contenders import contenders
from benchmarks.peers import operand_names
from vt_fast import backends
from vt_fast.reference import ops as reference

SHAPE = cases.Shape(2, 5, 7, 12, 3)


@pytest.fixture(scope="module", params=cases.OPS)
def solved(request):
    """Operands, cotangents and truth of an op in float64."""
    drawn, cotangents = operands.draw(request.param, SHAPE, "fp64")
    return request.param, drawn, cotangents, truth.solve(request.param, drawn, cotangents)


def by_reference(op, drawn, cotangents):
    leaves = {name: value.clone().requires_grad_() for name, value in drawn.items()}
    if op != "tokenize":
        leaves["keys"] = leaves["token_keys"] @ leaves["query_weight"].T
    names = {"tokenize": ["x", "queries"], "project": ["x", "keys", "values"]}
    names["project_tokenize"] = [*names["project"], "queries"]
    residual = {} if op == "tokenize" else {"residual": leaves["x"]}
    found = getattr(reference, op)(*(leaves[name] for name in names[op]), **residual)
    found = found if op == "project_tokenize" else (found,)
    gradients = torch.autograd.grad(found, list(leaves.values()), cotangents)
    values = dict(zip(truth.RESULTS[op], found, strict=True))
    return values | {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def test_truth_is_the_reference(solved):
    op, drawn, cotangents, found = solved
    expected = by_reference(op, drawn, cotangents)
    assert set(found.values) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found.values[name], value.detach(), rtol=0, atol=1e-11, msg=name)


def test_truth_in_pieces_and_of_some_pixels_is_the_same(solved, monkeypatch):
    op, drawn, cotangents, whole = solved
    monkeypatch.setattr(truth, "_PIECE", 150)
    monkeypatch.setattr(truth, "_STRIDES", {100: 3})
    found = truth.solve(op, drawn, cotangents)
    assert found.stride == 3
    assert found.lse == pytest.approx(whole.lse)
    for name, value in whole.values.items():
        expected = value[:, ::3] if name in ("map", "dx") else value
        torch.testing.assert_close(found.values[name], expected, rtol=0, atol=1e-11, msg=name)
    same = operands.lay_out(drawn["x"], SHAPE, "nchw")
    assert gate.largest_error(same, drawn["x"][:, ::3], stride=3) == 0


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_every_contender_computes_its_op(solved, layout):
    op, drawn, cotangents, expected = solved
    case = cases.Case(op, SHAPE, "fp64", layout)
    plain = [peer.name for peer in peers.PEERS[op] if not peer.compiled]
    found = contenders(case, plain)
    assert {contender.name for contender in found} >= set(plain)
    given = [
        operands.lay_out(cotangent, SHAPE, layout) if name == "map" else cotangent
        for name, cotangent in zip(truth.RESULTS[op], cotangents, strict=True)
    ]
    for contender in found:
        inputs = {name: drawn[name] for name in contender.operands}
        inputs["x"] = operands.lay_out(inputs["x"], SHAPE, layout)
        leaves = [value.detach().requires_grad_() for value in inputs.values()]
        results = contender.function(*leaves)
        names = [*truth.RESULTS[op], *(f"d{name}" for name in inputs)]
        values = [*results, *torch.autograd.grad(results, leaves, given)]
        for name, error in gate.errors(zip(names, values, strict=True), expected).items():
            assert error < 1e-10, (contender.name, name)


def test_folded_and_dense_operands_mean_the_same_in_every_dtype():
    for dtype in ("bf16", "fp32"):
        drawn, _ = operands.draw("project", SHAPE, dtype)
        assert torch.equal(drawn["keys"], drawn["token_keys"] @ drawn["query_weight"].T)


def test_registries_fit_together():
    for op in cases.OPS:
        names = [peer.name for peer in peers.PEERS[op]]
        assert len(set(names)) == len(names)
        assert peers.YARDSTICKS[op] in names
        assert "eager" in names
        assert "sdpa" in names
        assert any(peer.compiled for peer in peers.PEERS[op])
        drawn, _ = operands.draw(op, SHAPE, "fp32")
        for peer in peers.PEERS[op]:
            assert set(operand_names(peer.function)) <= set(drawn)
            # compiled ones come last: plain ones tell whether to compile at all
            assert not peer.compiled or names.index(peer.name) >= sum(not p.compiled for p in peers.PEERS[op])
            assert not peer.compiled or peer.name.startswith("compile ")


def test_every_usable_backend_takes_part_and_the_first_is_ours():
    usable = [name for name, reason in backends.report() if reason is None]
    found = contenders(cases.Case("project", SHAPE, "fp32", "nchw"), [])
    assert [c.name for c in found if c.kind != "peer"] == [f"vt_fast {name}" for name in usable]
    assert [c.kind for c in found][: len(usable)] == ["ours", *["backend"] * (len(usable) - 1)]
    # the yardstick is there, although its times are not shown
    assert [(c.name, c.timed) for c in found if c.kind == "peer"] == [("folded", False)]


def test_cases_are_all_combinations_and_plain_data():
    selected = list(cases.select(cases.SHAPES, cases.STACK_SHAPE))
    assert len(selected) == len(set(selected)) == (6 * 3 + 1) * 2 * 2
    assert [tuple(case) for case in selected] == [
        (op, cases.Shape(*shape), *others) for op, shape, *others in json.loads(json.dumps(selected))
    ]


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts(layout):
    pixels = torch.randn(2, 35, 12)
    laid = operands.lay_out(pixels, SHAPE, layout)
    assert laid.shape == (2, 12, 5, 7)
    form = torch.contiguous_format if layout == "nchw" else torch.channels_last
    assert laid.is_contiguous(memory_format=form)
    assert torch.equal(operands.as_pixels(laid), pixels)


def test_flops_are_those_of_the_ops_formulas():
    unit = 2 * 35 * 12 * 3  # B N C L
    expected = {"tokenize": (4, 14), "project": (4, 14), "project_tokenize": (8, 30)}
    for op, (forward, both) in expected.items():
        case = cases.Case(op, SHAPE, "fp32", "nchw")
        (ours, *_) = contenders(case, [])
        drawn, _ = operands.draw(op, SHAPE, "fp32")
        drawn["x"] = operands.lay_out(drawn["x"], SHAPE, "nchw")
        inputs = {name: drawn[name] for name in ours.operands}
        assert floors.count_flops(ours.function, inputs, cases.FORWARD) == forward * unit
        assert floors.count_flops(ours.function, inputs, cases.BOTH) == both * unit


def test_floor_is_the_larger_term():
    assert floors.floor(1000, 10, bandwidth=100.0, matrix_rate=10.0) == (10.0, "bytes")
    assert floors.floor(1000, 1000, bandwidth=100.0, matrix_rate=10.0) == (100.0, "flops")
    maps = {op: [floors.compulsory_maps(op, which) for which in cases.PASSES] for op in cases.OPS}
    assert maps == {"tokenize": [1, 3], "project": [2, 5], "project_tokenize": [2, 5]}
