"""ONNX export by all ways that PyTorch has, judged in onnxruntime at other sizes than those exported."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from torch.export import Dim

import vt_fast
from tests._support import model_cases, nn_cases, segmentation_cases
from tests._support.problems import OPTIONS, make
from vt_fast import models, nn
from vt_fast.backends.contract import Project
from vt_fast.testing import assert_as_accurate

ort = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:Constant folding:UserWarning",
    "ignore:No names were found:UserWarning",
)

WAYS = ("model", "program", "trace")


class Flat(torch.nn.Module):
    """A function or module with any number of inputs and results, as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, *inputs):
        found = self.function(*inputs)
        return (
            (found,) if isinstance(found, torch.Tensor) else tuple(each for each in found if each is not None)
        )


def exported(model, inputs, dims, way):
    """A session of onnxruntime; ``dims``: the dimensions of each input that are left open."""
    if way == "trace":
        names = [f"input_{index}" for index in range(len(inputs))]
        axes = {name: list(each) for name, each in zip(names, dims, strict=True)}
        file = io.BytesIO()
        torch.onnx.export(model, inputs, file, dynamo=False, input_names=names, dynamic_axes=axes)
        return ort.InferenceSession(file.getvalue())
    shapes = (tuple(dict.fromkeys(each, Dim.DYNAMIC) for each in dims),)
    if way == "model":
        made = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
        table = vt_fast.onnx.translation_table()
        made = torch.onnx.export(program, custom_translation_table=table, verbose=False)
    return ort.InferenceSession(made.model_proto.SerializeToString())


def run(session, inputs):
    values = {each.name: value.numpy() for each, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, values)]


def problems(op, batch, height, width):
    """One for each set of options, with NaN in all pixels and tokens that are not used."""
    layouts = ("bnc", "nchw")
    sizes = {"batch": batch, "height": height, "width": width, "tokens": 4}
    found = [make(op, options, layouts[index % 2], **sizes) for index, options in enumerate(OPTIONS[op])]
    for problem in found:
        problem.round_operands(torch.float32)
        mask, pixel_bias, token_bias, x = map(problem.operands.get, ("mask", "pixel_bias", "token_bias", "x"))
        pixels = x if x.dim() == 3 else x.flatten(2).transpose(1, 2)
        if mask is not None:
            mask[0] = False  # the whole sample
            pixels[1][~mask[1]] = torch.nan
        if pixel_bias is not None:
            pixel_bias[1, :4] = -torch.inf
            pixels[1, :4] = torch.nan
        if token_bias is not None:  # which removes the first token of the first head everywhere
            keys, values = problem.operands["keys"], problem.operands["values"]
            keys[..., 0, :] = torch.nan
            values[..., 0, : values.shape[-1] // problem.options.get("num_heads", 1)] = torch.nan
            if token_bias.dim() == 2:
                token_bias[1] = -torch.inf
    return found


def solve(problems, inputs, plain):
    """The results of all problems from the operands of all of them."""
    left, results = list(inputs), []
    for problem in problems:
        operands = {name: left.pop(0) for name in problem.operands}
        results += problem.call(operands, plain)
    return results


def operands(problems, dtype):
    return [
        value.detach()
        for problem in problems
        for value in problem.leaves(torch.float32 if dtype is None else dtype).values()
    ]


def open_dims(problem):
    """The dimensions of its operands that depend on the batch and the size of the map."""
    batch, sizes = problem.operands["x"].shape[0], {5, 7, 35}
    return [
        [dim for dim, size in enumerate(value.shape) if (dim == 0 and size == batch) or size in sizes]
        for value in problem.operands.values()
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("op", OPTIONS)
def test_ops(op, way):
    made = problems(op, 2, 5, 7)
    model = Flat(lambda *inputs: solve(made, inputs, plain=False))
    dims = [each for problem in made for each in open_dims(problem)]
    session = exported(model, tuple(operands(made, torch.float32)), dims, way)
    for batch, height, width in ((2, 5, 7), (3, 4, 6)):
        others = problems(op, batch, height, width)
        inputs = operands(others, torch.float32)
        plain = solve(others, inputs, plain=True)
        exact = solve(
            others, [value.double() if value.is_floating_point() else value for value in inputs], True
        )
        for index, found in enumerate(run(session, inputs)):
            terms = height * width
            assert_as_accurate(found, exact[index], plain[index], f"result {index}", lse=8, terms=terms)


def judged(model, exact_model, session, inputs, terms):
    """Raise unless onnxruntime is as accurate as the paper's equations in float32."""
    with torch.no_grad():
        plain = model(*inputs)
        exact = exact_model(*(value.double() for value in inputs))
    for index, found in enumerate(run(session, inputs)):
        assert_as_accurate(found, exact[index], plain[index], f"result {index}", lse=8, terms=terms)


def reference(model, dtype):
    twin = copy.deepcopy(model).to(dtype)
    nn.set_backend(twin, "reference")
    return twin


GROUPS = {
    "tokenizers": (
        "tokenizer: filter value",
        "tokenizer: filter conv position",
        "tokenizer: recurrent groups",
        "tokenizer: static position",
        "tokenizer: clustering",
        "tokenizer: pooling value",
        "tokenizer: dynamic 8 heads, key 4, value 2",
    ),
    "others": (
        "relation: transformer heads",
        "relation: graph norm",
        "projector: shortcut",
        "projector: overlapping",
        "module: v1",
        "stack: position and heads",
        "stack: tokens only",
    ),
}


class Several(torch.nn.Module):
    """Several modules on the same map, and on tokens where they take any."""

    def __init__(self, names):
        super().__init__()
        self.members = torch.nn.ModuleList(
            nn_cases.made(nn_cases.CASES[name], dtype=torch.float32) for name in names
        )

    def forward(self, x, tokens):
        return [result for member in self.members for result in nn_cases.run(member, x, tokens)]


@pytest.mark.parametrize("way", ["model", "trace"])
@pytest.mark.parametrize("group", GROUPS)
def test_modules(group, way):
    model = Flat(Several(GROUPS[group]))
    x = nn_cases.feature_map("contiguous", dtype=torch.float32).detach()
    tokens = torch.randn(nn_cases.B, nn_cases.L, nn_cases.CT)
    session = exported(model, (x, tokens), ((0, 2, 3), (0,)), way)
    plain, exact = reference(model, torch.float32), reference(model, torch.float64)
    for batch, height, width in ((2, 7, 9), (3, 5, 12)):
        x = torch.randn(batch, nn_cases.C, height, width)
        tokens = torch.randn(batch, nn_cases.L, nn_cases.CT)
        judged(plain, exact, session, (x, tokens), height * width + nn_cases.C)


NETS = {
    "vt_resnet18": lambda: models.vt_resnet18(5, num_tokens=4, token_channels=64, width=256),
    "VT-FPN": segmentation_cases.NETS["VT-FPN"],
}


@pytest.mark.parametrize("way", ["model", "trace"])
@pytest.mark.parametrize("name", NETS)
def test_networks(name, way):
    model = Flat(model_cases.made(NETS[name], torch.float32))
    session = exported(model, (torch.randn(2, 3, 48, 64),), ((0, 2, 3),), way)
    plain, exact = reference(model, torch.float32), reference(model, torch.float64)
    for size in ((2, 3, 48, 64), (1, 3, 56, 40)):
        judged(plain, exact, session, (torch.randn(size),), 1000)


def test_a_saved_program():
    stack = nn.VisualTransformerStack(16, 2, num_tokens=4).eval()
    x, file = torch.randn(2, 16, 6, 5), io.BytesIO()
    torch.export.save(torch.export.export(stack, (x,), dynamic_shapes=({0: Dim.DYNAMIC},)), file)
    file.seek(0)
    table = vt_fast.onnx.translation_table()
    made = torch.onnx.export(torch.export.load(file), custom_translation_table=table, verbose=False)
    session = ort.InferenceSession(made.model_proto.SerializeToString())
    judged(stack, reference(stack, torch.float64), session, (torch.randn(3, 16, 6, 5),), 100)


@pytest.mark.parametrize("what", ["program", "raw op"])
def test_a_program_without_the_table(what, monkeypatch):
    from vt_fast.ops import library

    monkeypatch.setattr(library, "onnx_table_exists", False)
    x, queries = torch.randn(2, 16, 8), torch.randn(4, 8)
    model = Flat(vt_fast.tokenize)
    if what == "program":
        model = torch.export.export(model, (x, queries))
    else:
        raw = torch.ops.vt_fast.tokenize
        model = Flat(lambda x, queries: raw(x, queries, None, None, None, 1, False, backend="torch")[0])
    with pytest.raises(RuntimeError, match=r"custom_translation_table=vt_fast\.onnx\.translation_table\(\)"):
        torch.onnx.export(model, (x, queries), dynamo=True, verbose=False)


def test_translations_refuse_what_they_do_not_know():
    """Arguments that the op has and the translation has not must not be ignored."""
    from vt_fast.onnx import translations

    names = [*Project._fields, "later"]
    arguments = [
        SimpleNamespace(name=name, default_value=None, has_default_value=lambda name=name: name == "later")
        for name in names
    ]
    overload = SimpleNamespace(_schema=SimpleNamespace(arguments=arguments))
    translation = translations._translation(overload, Project, lambda call: (call,))
    call = Project(*range(7))
    assert translation(*call) == call
    assert translation(*call, None) == call
    with pytest.raises(NotImplementedError, match=r"`later` of .* has no translation to ONNX"):
        translation(*call, 3)


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_switches_of_the_op_family_are_refused_by_name(how, monkeypatch):
    # Other tests may have made the table, with which an exporter goes on to other ways.
    monkeypatch.setattr("vt_fast.ops.library.onnx_table_exists", False)
    x, queries = torch.randn(2, 9, 8), torch.randn(4, 8)
    calls = {
        "normalize": lambda x, q: vt_fast.tokenize(x, q, normalize="tokens"),
        "layer_norm_eps": lambda x, q: vt_fast.tokenize(x, q, layer_norm_eps=1e-5),
        "summed|several heads|channel blocks": lambda x, q: vt_fast.project(x, q[:, :4], q, num_heads=2),
    }
    for name, call in calls.items():
        model = Flat(call)
        options = {}
        if how == "exported":
            model = torch.export.export(model, (x, queries))
            options = {"custom_translation_table": vt_fast.onnx.translation_table()}
        with pytest.raises(Exception, match=name) as refused:
            torch.onnx.export(model, (x, queries), dynamo=True, verbose=False, **options)
        assert "no translation to ONNX" in str(refused.value) + str(refused.value.__cause__)
