"""Layers and networks as problems: all sides compute the same, and a wrong one gets no time."""

import sys

import pytest
import torch
from torch import nn

import vt_fast
from benchmarks import layers, networks
from benchmarks.devices import Device
from benchmarks.modules import INFERENCE, TRAINING, ModuleProblem, Side, paper
from benchmarks.results import OK, OURS, UNAVAILABLE, WRONG
from benchmarks.shapes import BOTH
from tests._support.measuring import measured, plans, reported
from tools.torchvision import load_torchvision
from vt_fast.nn import VisualTransformerStack

# A package that the tests do not install.
ABSENT = ("ocr", "original")
SPEC = {"peers": None, "quick": True, "dtype": "fp32", "layout": "channels_last"}


def layer(name, dtype="fp32", peers=None):
    spec = {**SPEC, "layer": name, "dtype": dtype, "passes": layers.PASSES, "peers": peers}
    found = layers.problem(spec, Device())
    if [each.name for each in found.contenders] == ["original"]:
        pytest.skip(f"{name} needs a package that is not installed")
    return found


def tiny(passes=(INFERENCE, TRAINING), judged_apart=True, make=None, replaced=None):
    """A stack of modules against a convolution."""

    def stack():
        return VisualTransformerStack(16, 2, num_tokens=4, last_projector=False)

    ours = Side(make or stack, lambda host, x: host(x)[1])
    convolution = Side(replaced or (lambda: nn.Conv2d(16, 32, 3, padding=1)))
    small = [(2, 16, 4, 4)] if judged_apart else None
    sides = paper(ours, convolution, [(2, 16, 5, 6)], small, frozen=True)
    return ModuleProblem(sides, "models", "tiny", "", {**SPEC, "passes": passes}, Device())


@pytest.mark.parametrize("name", layers.LAYERS)
def test_all_sides_of_a_layer_compute_the_same(name):
    problem = layer(name, "fp64")
    names = [contender.name for contender in problem.contenders]
    assert {"vt_fast"} < set(names) <= {"vt_fast", "vt_fast frozen", *layers.PEERS}
    for which in problem.passes:
        exact = [value.detach() for value in problem.call(problem.contenders[0], which)()]
        largest = max(float(each.norm()) for each in exact)
        for contender in problem.contenders[1:]:
            # The eager probe computes its softmax in float32.
            if contender.name not in ("convolutions", "original eager") and (name, contender.name) != ABSENT:
                values = problem.call(contender, which)()
                for value, expected in zip(values, exact, strict=True):
                    error = (value.detach() - expected).norm()
                    assert error <= 1e-10 * max(largest, 1.0), (contender, which)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["siglip", "ocr", "level"])
def test_layers_pass_their_gate(name, dtype):
    for (contender, _), row in measured(layer(name, dtype)).items():
        assert row.status == OK or (name, contender) == ABSENT, row


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda tokens: 1.001 * tokens, [INFERENCE, BOTH]),
        (lambda tokens: tokens + 0.001 * (tokens - tokens.detach()), [BOTH]),
        (lambda tokens: tokens * float("nan"), [INFERENCE, BOTH]),
    ],
)
def test_a_wrong_layer_gets_no_time(monkeypatch, change, passes):
    real = vt_fast.tokenize
    monkeypatch.setattr(vt_fast, "tokenize", lambda x, queries: change(real(x, queries)))
    found = measured(layer("siglip", peers=["original"]))
    assert [which for name, which in found if found[name, which].status == WRONG] == passes
    assert "allowed" in found["vt_fast", BOTH].reason


def test_a_layer_whose_package_is_missing_says_so(monkeypatch):
    load_torchvision()
    for module in ("transformers", "mmseg"):
        monkeypatch.setitem(sys.modules, module, None)
    spec = {**SPEC, "layer": "siglip", "passes": [INFERENCE]}
    (row,) = measured(layers.problem(spec, Device())).values()
    assert (row.contender, row.status) == ("original", UNAVAILABLE)
    assert "transformers" in row.reason
    found = measured(layers.problem({**spec, "layer": "ocr"}, Device()))
    assert found["original", INFERENCE].status == UNAVAILABLE
    assert found["vt_fast", INFERENCE].status == OK


def test_all_passes_of_a_network_are_measured():
    problem = tiny()
    found = measured(problem)
    assert [name for name, _ in found] == 2 * ["vt_fast", "vt_fast frozen", "reference", "convolutions"]
    assert {row.status for row in found.values()} == {OK}
    assert found["vt_fast", INFERENCE].role == OURS
    assert all(row.extra_bytes > 0 for row in found.values())


def test_a_training_step_changes_no_weight():
    made = []

    def make():
        made.append(nn.Conv2d(16, 32, 3, padding=1))
        return made[-1]

    problem = tiny(replaced=make)
    (convolutions,) = (each for each in problem.contenders if each.name == "convolutions")
    train = problem.call(convolutions, TRAINING)
    before = [parameter.clone() for parameter in made[-1].parameters()]
    first, second = train(), train()
    assert [value.shape for value in first] == [(2, 32, 5, 6), (2, 16, 5, 6), (32, 16, 3, 3), (32,)]
    for parameter, old in zip(made[-1].parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("judged_apart", [True, False])
def test_a_wrong_network_gets_no_time(judged_apart):
    def make():
        made = VisualTransformerStack(16, 2, num_tokens=4, last_projector=False)
        made.register_forward_hook(lambda module, given, result: (result[0], wrong(module) * result[1]))
        return made

    def wrong(module):
        backends = {part.backend for part in module.modules() if hasattr(part, "backend")}
        return 1.0 if "reference" in backends else 1.001

    found = measured(tiny([INFERENCE], judged_apart, make))
    assert found["vt_fast", INFERENCE].status == WRONG
    assert "is off by 0.001" in found["vt_fast", INFERENCE].reason
    assert found["reference", INFERENCE].status == OK


def test_what_is_not_comparable_must_be_finite():
    def make():
        made = nn.Conv2d(16, 32, 3)
        nn.init.constant_(made.weight, float("inf"))
        return made

    assert measured(tiny([INFERENCE], replaced=make))["convolutions", INFERENCE].status == WRONG


@pytest.mark.parametrize("quick", [False, True])
def test_networks_are_those_of_the_paper(quick):
    found = list(networks.cases(quick))
    assert {case["network"] for case in found} == set(networks.KINDS)
    assert len({(networks.comparison(*case.values())[0], *case["image"]) for case in found}) == len(found)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("models --kind neck --pass inference --quick --threads 1", 5),
        ("layers --layer level --pass inference --quick --threads 1 --peers", 1),
    ],
)
def test_modes_in_a_child_process(words, count):
    (plan,) = plans(words)
    rows = reported(plan)
    assert len(rows) == count
    expected = (words.split()[0], OK, 1, None)
    assert {(row.mode, row.status, row.threads, row.floor) for row in rows} == {expected}
