"""Shapes and their models, forced and found peers, and what a contender is predicted to need."""

import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import attention, cases, gate, listing, memory, operands, origins, packages, peers, truth
from benchmarks.contenders import Contender, contenders
from benchmarks.device import Device
from benchmarks.measuring import measure, refuse
from benchmarks.peers import operand_names
from benchmarks.records import PEER, SKIPPED
from benchmarks.trial import who
from vt_fast.testing import peak_bytes

SHAPE = cases.Shape(2, 16, 20, 64, 16)
LARGER = cases.Shape(2, 40, 40, 128, 16)


def test_every_shape_that_is_measured_says_what_it_is_of():
    for shape in origins.REGISTRY:
        assert origins.origin(shape), shape
    models = " ".join(each.model for each in origins.ORIGINS)
    for name in (
        "VT-ResNet-50",
        "level P5",
        "OCRNet",
        "EMANet",
        "NetVLAD",
        "ABMIL",
        "Perceiver",
        "SigLIP",
        "SAM",
    ):
        assert name in models
    assert origins.origin(cases.Shape(1, 1, 1, 1, 1)) is None


def test_maps_are_as_large_as_their_models_say():
    # bytes of x in bf16, in megabytes
    sizes = {
        "VT-FPN, level P2 at 800 x 1216": (31, 249),
        "OCRNet, gather, ADE20K": (277,),
        "Perceiver": (411,),
        "CLIP": (103,),
        "V-JEPA": (208,),
        "SAM": (134,),
        "SigLIP": (430,),
    }
    for name, expected in sizes.items():
        shapes = [each.shape for each in origins.ORIGINS if each.model.startswith(name)]
        found = [round(2 * s.batch * s.pixels * s.channels / 1e6) for s in shapes]
        assert found == list(expected), name


def test_labels_choose_shapes():
    labels = [shape.label for shape in cases.SHAPES]
    assert origins.by_label(labels) == cases.SHAPES
    assert len({shape.label for shape in origins.REGISTRY}) == len(
        origins.by_label([shape.label for shape in origins.REGISTRY])
    )


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("op", cases.OPS)
@pytest.mark.parametrize("name", attention.SDPA_BACKENDS)
def test_forced_attention_is_the_one_that_runs(op, layout, name):
    drawn, _ = operands.draw(op, SHAPE, "fp32")
    function = attention.forced_ops(name)[op]
    inputs = [drawn[each] for each in operand_names(function)]
    inputs[0] = operands.lay_out(inputs[0], SHAPE, layout)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        results = function(*inputs)
    ran = {event.key for event in profile.key_averages()}
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in ran) == (name == "flash")
    assert ("aten::_scaled_dot_product_attention_math" in ran) == (name == "math")
    expected = truth.solve(op, drawn, operands.draw(op, SHAPE, "fp32")[1])
    found = zip(truth.RESULTS[op], results, strict=True)
    assert max(gate.errors(found, expected).values()) < 1e-4


def test_packages_are_found_where_they_are_installed(monkeypatch):
    def flash_attn_func(q, k, v, softmax_scale):
        assert q.shape[2] == k.shape[2] == 1
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)

    def broken(name):
        raise OSError("undefined symbol: _ZN3c10\nand more")

    stand_in = SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    real = packages.importlib.import_module
    monkeypatch.setattr(
        packages.importlib, "import_module", lambda name: broken(name) if name == "ffpa_attn" else real(name)
    )
    packages.found.cache_clear()
    try:
        found = packages.found(True)
    finally:
        packages.found.cache_clear()
    assert "flash-attn" in found.present
    assert found.absent["ffpa"] == "OSError: undefined symbol: _ZN3c10"
    assert found.absent.keys() | found.present.keys() == {each.name for each in packages.PACKAGES}
    drawn, cotangents = operands.draw("tokenize", SHAPE, "fp32")
    tokens = attention.by_attention(found.present["flash-attn"])["tokenize"](
        operands.lay_out(drawn["x"], SHAPE, "nchw"), drawn["queries"]
    )
    expected = truth.solve("tokenize", drawn, cotangents)
    assert gate.errors(zip(["tokens"], tokens, strict=True), expected)["tokens"] < 1e-5


@pytest.mark.parametrize("package", packages.PACKAGES, ids=lambda package: package.name)
def test_packages_get_one_head_where_they_want_it(package):
    axis = 1 if package.name == "ffpa" else 2
    meta = SimpleNamespace(fallback=lambda: True)

    def attention(*num_heads, **scale):
        assert scale == {"softmax_scale" if package.name == "flash-attn" else "scale": 1.0}
        assert {each.shape[axis] for each in num_heads} == {1}
        assert package.name in ("flash-attn", "xformers") or all(each.is_contiguous() for each in num_heads)
        assert meta.fallback() == (package.name != "ffpa")
        num_heads = (each.movedim(axis, 1) for each in num_heads)
        return torch.nn.functional.scaled_dot_product_attention(*num_heads, scale=1.0).movedim(1, axis)

    names = ("flash_attn_func", "memory_efficient_attention", "attention", "ffpa_attn_func")
    module = SimpleNamespace(**dict.fromkeys(names, attention), functional=SimpleNamespace(FFPAAttnMeta=meta))
    queries, keys, values = torch.randn(2, 3, 8), torch.randn(2, 8, 5).mT, torch.randn(2, 8, 5).mT
    found = package.attend(module)(queries, keys, values)
    torch.testing.assert_close(found, torch.softmax(queries @ keys.mT, -1) @ values)
    assert meta.fallback()


def test_the_registry_can_be_printed():
    text = listing.render()
    for words in ("VT-FPN, level P2", "sdpa flash", "compile flex", "natten"):
        assert words in text


@pytest.mark.usefixtures("one_thread")  # flash attention on a CPU takes buffers for each thread
@pytest.mark.parametrize("which", cases.PASSES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("op", cases.OPS)
def test_prediction_is_what_the_allocator_says(op, layout, which):
    case = cases.Case(op, LARGER, "fp32", layout)
    drawn, arriving = operands.draw(op, LARGER, "fp32")
    arriving = [
        operands.lay_out(value, LARGER, layout) if name == "map" else value
        for name, value in zip(truth.RESULTS[op], arriving, strict=True)
    ]
    plain = [peer.name for peer in peers.PEERS[op] if not peer.compiled]
    for contender in contenders(case, plain):
        inputs = {name: drawn[name] for name in contender.operands}
        inputs["x"] = operands.lay_out(inputs["x"], LARGER, layout)
        leaves = [value.detach().requires_grad_(which != cases.FORWARD) for value in inputs.values()]

        def call(contender=contender, leaves=leaves):
            results = contender.function(*leaves)
            if which == cases.FORWARD:
                return results
            return *results, *torch.autograd.grad(results, leaves, arriving)

        call()
        predicted, measured = memory.call_bytes(case, contender, which), peak_bytes(call)
        about = (contender.name, predicted, measured)
        if contender.kind == PEER:
            # buffers of the CPU's flash attention aside, which are the size of its threads' tiles
            assert predicted == pytest.approx(measured, rel=0.01, abs=100_000), about
        else:
            # what our kernels take for themselves is not seen
            assert 0 < predicted <= measured, about


def test_a_function_that_cannot_be_predicted_is_let_through():
    def fails(x, queries):
        raise TypeError("no such tensor")

    case = cases.Case("tokenize", SHAPE, "fp32", "nchw")
    found = memory.needs(case, Contender("odd", "peer", fails, ("x", "queries")), cases.FORWARD)
    assert found is None
    assert memory.complaint(found, 1) is None


def test_a_case_that_does_not_fit_is_kept_with_what_it_needs():
    case = cases.Case("project", cases.Shape(1, 2048, 2048, 256, 16), "fp32", "channels_last")
    cells = refuse(case, cases.PASSES, ["folded"], Device(), 1 << 30)
    assert [cell.which for cell in cells] == list(cases.PASSES)
    for cell in cells:
        assert {entry.status for entry in cell.entries} == {SKIPPED}
        assert len(cell.entries) == len(who(case, ["folded"], Device()))
        for entry in cell.entries:
            assert entry.needs_bytes > 8 * case.shape.pixels * 256
            assert entry.reason.startswith("needs about")
    assert refuse(case, cases.PASSES, ["folded"], Device(), 1 << 50) == []


def test_a_single_token_has_keys_without_a_gradient_and_everybody_passes():
    from benchmarks.ceilings import Ceilings
    from benchmarks.timing import QUICK
    from benchmarks.trial import Trial, pose

    case = cases.Case("project", SHAPE._replace(tokens=1), "fp32", "channels_last")
    wanted = [peer.name for peer in peers.PEERS["project"] if not peer.compiled]
    problem = pose(case)
    assert problem.truth.values["dkeys"].abs().max() < 1e-12
    (cell,) = measure(Trial(case, problem, wanted), [cases.BOTH], Ceilings("fp32", quick=True), QUICK)
    for entry in cell.entries:
        assert entry.status == "ok", (entry.name, entry.reason)
        name = "dkeys" if "dkeys" in entry.allowed else "dtoken_keys"
        assert 0 < entry.allowed[name] < 1e-2


def test_where_the_yardstick_does_not_fit_ours_is_still_judged():
    from benchmarks.ceilings import Ceilings
    from benchmarks.timing import QUICK
    from benchmarks.trial import Trial, pose

    case = cases.Case("tokenize", cases.Shape(1, 64, 64, 8, 64), "fp32", "channels_last")
    need = {
        contender.name: memory.needs(case, contender, cases.FORWARD)
        for contender in who(case, ["eager"], Device())
    }
    ours = next(iter(need))
    assert need[ours] < need["eager"]
    most = (need[ours] + need["eager"]) // 2
    trial = Trial(case, pose(case), ["eager"])
    tops = Ceilings("fp32", quick=True)
    (cell,) = measure(trial, [cases.FORWARD], tops, QUICK, most_bytes=most)
    entries = {entry.name: entry for entry in cell.entries}
    assert entries["eager"].status == SKIPPED
    assert entries["eager"].needs_bytes == need["eager"]
    assert entries[ours].timed
    wrong = Contender(
        "wrong", "ours", lambda x, queries: (trial.truth.values["tokens"].float() * 1.01,), ("x", "queries")
    )
    trial.contenders.append(wrong)
    (cell,) = measure(trial, [cases.FORWARD], tops, QUICK, most_bytes=most)
    assert cell.entries[-1].status == "wrong"
