"""Bad arguments of the ops: the type and the exact message of the exception, one row for each rule.

Each call is a good one with one argument changed, and others where the rule needs them. The message names the
argument, what it must be and what it was.
"""

import gc
import inspect
import weakref

import numpy as np
import pytest
import torch

import vt_fast
from tests._support import problems
from vt_fast import backends, functional

pytestmark = pytest.mark.one_backend

OPS = "tokenize project project_tokenize"
POOLING = "tokenize project_tokenize"
SPREADING = "project project_tokenize"


def t(*shape, **options):
    return torch.ones(shape, **options)


def meta(*shape, **options):
    return t(*shape, device="meta", **options)


def flags(*shape):
    return t(*shape, dtype=torch.bool)


def nested():
    return torch.nested.nested_tensor([t(3, 12), t(4, 12)], layout=torch.jagged)


def good(op):
    """The arguments of a good call: B = 2, C = D = 12, H = 5, W = 7, L = 4, S = 3."""
    if op == "merge":
        return {"tokens": torch.randn(3, 2, 4, 12), "lse": torch.randn(3, 2, 4)}
    arguments = {"x": torch.randn(2, 12, 5, 7, requires_grad=True)}
    if op != "tokenize":
        arguments |= {"keys": torch.randn(2, 4, 12), "values": torch.randn(2, 4, 12)}
    if op != "project":
        arguments["queries"] = torch.randn(4, 12)
    return arguments


# kind of rule -> exception, and how the message describes the argument
KINDS = {
    "type": (TypeError, lambda value: type(value).__name__),
    "layout": (TypeError, lambda value: "a nested tensor" if value.is_nested else f"a {value.layout} tensor"),
    "dtype": (TypeError, lambda value: str(value.dtype)),
    "device": (ValueError, lambda value: str(value.device)),
    "shape": (ValueError, lambda value: str(tuple(value.shape))),
    "number": (ValueError, str),
    "repr": (ValueError, repr),
    "list": (ValueError, lambda value: str(value.tolist())),
    "given": (ValueError, lambda value: "a tensor"),
}

TENSOR, OPTIONAL = "be a torch.Tensor", "be None or a torch.Tensor"
DENSE = "be a dense (torch.strided) tensor"
FLOATS = "be float16, bfloat16, float32 or float64"
DTYPE = "have the dtype of `x` (torch.float32)"
DEVICE = "be on the device of `x` (cpu)"  # or on what the backend's tests run on, see `here`
BANK = "be (L, C) or (B, L, C) with B = 2, C = 12 and L not 0"
HEAD_ROWS = (
    "be (R, W) or (B, R, W) with B = 2, R a multiple of num_heads = 3 and not 0, "
    "and W = C = 12 or C / num_heads = 4"
)
HEAD_BLOCKS = (
    "be (R, W) or (B, R, W) with B = 2, R a multiple of num_heads = 2 and not 0, "
    "and W = C = 12 or C / num_heads = 6"
)
FIVE_HEADS = "be (R, W) or (B, R, W) with B = 2, R a multiple of num_heads = 5 and not 0, and W = C = 12"
VALUES = "be (L, D) or (B, L, D) with B = 2, L"
BIAS = "be (L,) or (B, L) with B = 2, L = 4"
HEAD_BIAS = "be (num_heads * L,) or (B, num_heads * L) with B = 2, num_heads * L = 8"
MASK = "be a bool tensor, True where the pixel takes part (soft or differentiable masks: `pixel_bias`)"
MAP_PIXELS = "be (B, N) or (B, H, W) with B = 2, H = 5, W = 7, N = H W = 35"
PIXELS = "be (B, N) with B = 2, N = 35"
TABLE = "be (N, P) with N = 35 and P at least 1"
LSE = "be (S, B, num_heads * L) with S = 3, B = 2, L = 4 and num_heads a divisor of C = 12"

PIXELS_FOR = 'be "pixels" where `{}` is given'
BAGS = {
    "x": t(9, 12),
    "queries": t(9, 12),
    "keys": t(9, 12),
    "values": t(9, 12),
    "offsets": torch.tensor([0, 4, 9]),
}

BNC, HALF = {"x": t(2, 35, 12)}, torch.bfloat16
WIDE = {"values": t(4, 16), "residual": None}

# kind, ops, argument, what it must be or do, bad values, other arguments
RULES = [
    ("type", OPS, "x", TENSOR, [[[1.0]], None, np.ones((2, 35, 12), np.float32)], {}),
    ("layout", OPS, "x", DENSE, [t(2, 35, 12).to_sparse()], {}),
    ("layout", "project_tokenize", "x", DENSE, [nested()], {}),
    (
        "dtype",
        OPS,
        "x",
        FLOATS,
        [t(2, 35, 12).long(), t(2, 35, 12, dtype=torch.complex64), flags(2, 35, 12)],
        {},
    ),
    ("shape", OPS, "x", "be (B, N, C) or (B, C, H, W)", [t(35, 12), t(1, 2, 12, 5, 7), t()], {}),
    (
        "shape",
        OPS,
        "x",
        "have no size of 0 except B (leave an empty shard out)",
        [t(2, 0, 12), t(0, 0, 12), t(2, 12, 0, 7), t(2, 0, 5, 7)],
        {},
    ),
    ("type", OPS, "num_heads", "be an int", [True, 2.0, "2", None, torch.tensor(2)], {}),
    ("number", OPS, "num_heads", "be at least 1", [0, -2], {}),
    (
        "number",
        "tokenize",
        "num_heads",
        "divide the channels of `x`, C = 12",
        [5, 24],
        {"queries": t(120, 3)},
    ),
    ("number", SPREADING, "num_heads", "divide the channels of `x`, C = 12", [5], {"keys": t(120, 3)}),
    ("shape", "tokenize", "queries", FIVE_HEADS, [t(4, 12)], {"num_heads": 5}),
    (
        "number",
        SPREADING,
        "num_heads",
        "divide the channels of `values`, D = 13",
        [2],
        {"keys": t(2, 8, 12), "values": t(4, 13), "residual": None},
    ),
    (
        "number",
        "tokenize",
        "num_heads",
        "be 1 where `extra_values` is given",
        [2],
        {"queries": t(8, 6), "extra_values": t(35, 3)},
    ),
    ("type", POOLING, "queries", TENSOR, [np.ones((4, 12), np.float32), "keys"], {}),
    ("type", "project_tokenize", "queries", TENSOR, [None], {}),  # of the others, scores may be given
    ("type", "project_tokenize", "keys", TENSOR, [None], {}),
    ("layout", POOLING, "queries", DENSE, [nested()], {}),
    ("dtype", POOLING, "queries", DTYPE, [t(4, 12).double(), t(4, 12).to(HALF), t(4, 12).int()], {}),
    ("dtype", "tokenize", "queries", DTYPE, [t(4, 12).int(), flags(4, 12)], {"scale": 0.5}),
    ("dtype", SPREADING, "keys", DTYPE, [t(4, 12).int(), flags(4, 12)], {"scale": 0.5}),
    ("device", POOLING, "queries", DEVICE, [meta(4, 12)], {}),
    (
        "shape",
        "tokenize",
        "queries",
        BANK,
        [t(12), t(4, 13), t(1, 4, 12), t(3, 4, 12), t(1, 2, 4, 12), t(0, 12)],
        {},
    ),
    ("shape", "tokenize", "queries", HEAD_BLOCKS, [t(3, 12), t(3, 8, 6), t(5, 6)], {"num_heads": 2}),
    (
        "shape",
        "project_tokenize",
        "queries",
        "be (Lq, D) or (B, Lq, D) with B = 2, D = 16, the channels of `values`, and Lq not 0",
        [t(3, 12), t(2, 0, 16)],
        WIDE,
    ),
    ("type", SPREADING, "keys", TENSOR, [torch.nn.Linear(12, 4)], {}),
    ("layout", SPREADING, "keys", DENSE, [t(4, 12).to_sparse()], {}),
    ("dtype", SPREADING, "keys", DTYPE, [t(4, 12).half(), t(4, 12).long()], {}),
    ("device", SPREADING, "keys", DEVICE, [meta(4, 12)], {}),
    ("shape", SPREADING, "keys", BANK, [t(2, 4, 13), t(3, 4, 12), t(12), t(0, 12)], {}),
    ("shape", SPREADING, "keys", HEAD_ROWS, [t(2, 4, 12), t(0, 12)], {"num_heads": 3}),
    ("type", SPREADING, "values", TENSOR, [(t(4, 12),), None], {}),
    ("dtype", SPREADING, "values", DTYPE, [t(4, 12, dtype=torch.complex64), t(4, 12).double()], {}),
    ("device", SPREADING, "values", DEVICE, [meta(4, 12)], {}),
    (
        "shape",
        SPREADING,
        "values",
        f"{VALUES} = 4 (`keys` has 4 rows, `num_heads` is 1) and D not 0",
        [t(2, 5, 12), t(1, 4, 12), t(4), t(4, 0)],
        {},
    ),
    (
        "shape",
        SPREADING,
        "values",
        f"{VALUES} = 2 or, to sum the heads, 4 (`keys` has 4 rows, `num_heads` is 2) and D not 0",
        [t(2, 3, 12)],
        {"num_heads": 2},
    ),
    (
        "shape",
        "project",
        "values",
        f"{VALUES} = 3 (`scores` has 3 rows, `num_heads` is 1) and D not 0",
        [t(2, 4, 12)],
        {"keys": None, "scores": t(2, 3, 35)},
    ),
    ("type", "tokenize", "values", OPTIONAL, [0.5], {}),
    ("layout", "tokenize", "values", DENSE, [nested()], {}),
    ("dtype", "tokenize", "values", DTYPE, [t(2, 12, 5, 7).double()], {}),
    ("device", "tokenize", "values", DEVICE, [meta(2, 12, 5, 7)], {}),
    (
        "shape",
        "tokenize",
        "values",
        "be (B, D, H, W) with the pixels of `x` (2, 12, 5, 7) and D not 0",
        [t(2, 35, 12), t(1, 12, 5, 7), t(2, 0, 5, 7), t(2, 12, 7, 5), t(4, 12)],
        {},
    ),
    (
        "number",
        "tokenize",
        "num_heads",
        "divide the channels of `values`, D = 13",
        [2],
        {"queries": t(4, 6), "values": t(2, 13, 5, 7)},
    ),
    ("type", "tokenize project", "scores", OPTIONAL, [0.5, [0.0] * 4], {}),
    ("dtype", "tokenize project", "scores", DTYPE, [t(2, 4, 35).double(), t(2, 4, 35).long()], {}),
    ("device", "tokenize project", "scores", DEVICE, [meta(2, 4, 35)], {}),
    (
        "shape",
        "tokenize project",
        "scores",
        "be (B, R, N) or (B, R, H, W) with H = 5, W = 7, B = 2, R = 4, N = 35",
        [t(4, 35), t(2, 3, 35), t(2, 4, 7, 5), t(1, 4, 35), t(2, 4, 35, 1), t(2, 35, 4), t()],
        {},
    ),
    (
        "shape",
        "tokenize",
        "scores",
        "be (B, R, N) with B = 2, R a multiple of num_heads = 3 and not 0, N = 35",
        [t(2, 4, 35), t(2, 0, 35), t(2, 3, 5, 7)],
        BNC | {"queries": None, "num_heads": 3, "normalize": "tokens"},
    ),
    (
        "shape",
        "tokenize project",
        "scores",
        "be (R, total) with R = 9, total = 9",
        [t(2, 9, 9), t(9, 8)],
        BAGS,
    ),
    ("type", "tokenize", "token_bias", OPTIONAL, [0.5, [0.0] * 4], {}),
    ("dtype", "tokenize", "token_bias", DTYPE, [flags(4), t(4).double()], {}),
    ("device", "tokenize", "token_bias", DEVICE, [meta(4)], {}),
    ("shape", "tokenize", "token_bias", BIAS, [t(5), t(1, 4), t(2, 1, 4), t()], {}),
    ("shape", "tokenize", "token_bias", HEAD_BIAS, [t(4)], {"num_heads": 2, "queries": t(8, 6)}),
    ("repr", "tokenize", "normalize", 'be one of "pixels", "tokens" or None', ["exp", "Pixels", 1], {}),
    ("repr", "project", "normalize", 'be one of "tokens", "exp" or None', ["pixels", "", True], {}),
    ("type", "tokenize project", "offsets", OPTIONAL, [[0, 9]], BAGS),
    ("layout", "tokenize project", "offsets", DENSE, [t(3).long().to_sparse()], BAGS),
    ("dtype", "tokenize project", "offsets", "be int32 or int64", [t(3), flags(3)], BAGS),
    ("shape", "tokenize project", "offsets", "be (B + 1,)", [t(2, 3).long(), t(0).int(), t().long()], BAGS),
    ("device", "tokenize project", "offsets", DEVICE, [meta(3).long()], BAGS),
    (
        "list",
        "tokenize project",
        "offsets",
        "start at 0, not fall, and end at the number of pixels 9",
        [torch.tensor(bad) for bad in ([1, 5, 9], [0, 5, 8], [0, 9, 5], [0, 10, 9], [0])],
        BAGS,
    ),
    (
        "shape",
        "tokenize project",
        "x",
        "be (total, C) with C not 0 where `offsets` is given",
        [t(2, 12, 5, 7), t(2, 35, 12), t(9, 0)],
        {"offsets": torch.tensor([0, 9])},
    ),
    ("shape", "tokenize", "mask", "be (total,) with total = 9", [flags(1, 9), flags(8)], BAGS),
    ("shape", "project", "residual", "be (total, D) = (9, 12)", [t(1, 9, 12), t(8, 12)], BAGS),
    (
        "given",
        "tokenize",
        "extra_values",
        "be None where `offsets` is given",
        [t(9, 3)],
        BAGS,
    ),
    ("type", "tokenize", "layer_norm_eps", "be a float", ["1", True, torch.tensor(0.5)], {}),
    ("number", "tokenize", "layer_norm_eps", "be finite", [float("nan"), float("inf")], {}),
    ("number", "tokenize", "layer_norm_eps", "be above 0", [0.0, -1e-5], {}),
    (
        "repr",
        "tokenize",
        "normalize",
        PIXELS_FOR.format("layer_norm_eps"),
        ["tokens"],
        {"layer_norm_eps": 1e-5},
    ),
    ("repr", "tokenize", "normalize", PIXELS_FOR.format("extra_values"), [None], {"extra_values": t(35, 3)}),
    ("type", SPREADING, "token_bias", OPTIONAL, [0.5, [0.0] * 4], {}),
    ("dtype", SPREADING, "token_bias", DTYPE, [flags(4), t(4).double()], {}),
    ("device", SPREADING, "token_bias", DEVICE, [meta(4)], {}),
    ("shape", SPREADING, "token_bias", BIAS, [t(5), t(1, 4), t(2, 1, 4), t()], {}),
    ("shape", SPREADING, "token_bias", HEAD_BIAS, [t(4)], {"num_heads": 2, "keys": t(8, 12)}),
    ("type", SPREADING, "residual", OPTIONAL, ["input", False, [t(2, 12, 5, 7)]], {}),
    ("layout", SPREADING, "residual", DENSE, [t(2, 12, 5, 7).to_sparse()], {}),
    ("dtype", SPREADING, "residual", DTYPE, [t(2, 12, 5, 7).double()], {}),
    ("device", SPREADING, "residual", DEVICE, [meta(2, 12, 5, 7)], {}),
    (
        "shape",
        SPREADING,
        "residual",
        "be (B, D, H, W) = (2, 12, 5, 7)",
        [t(2, 35, 12), t(1, 12, 5, 7), t(2, 12, 7, 5)],
        {},
    ),
    (
        "shape",
        SPREADING,
        "residual",
        "be (B, N, D) = (2, 35, 16)",
        [t(2, 35, 12)],
        {"x": t(2, 35, 12), "values": t(4, 16)},
    ),
    ("type", POOLING, "mask", OPTIONAL, [[True], True], {}),
    (
        "dtype",
        POOLING,
        "mask",
        MASK,
        [t(2, 35), t(2, 5, 7, requires_grad=True), t(2, 35).long(), t(2, 35).byte()],
        {},
    ),
    ("device", POOLING, "mask", DEVICE, [meta(2, 35, dtype=torch.bool)], {}),
    (
        "shape",
        POOLING,
        "mask",
        MAP_PIXELS,
        [flags(35), flags(2, 34), flags(1, 35), flags(2, 7, 5), flags(2, 1, 5, 7)],
        {},
    ),
    ("shape", POOLING, "mask", PIXELS, [flags(2, 5, 7), flags(2, 35, 1)], BNC),
    ("type", POOLING, "pixel_bias", OPTIONAL, [0.5], {}),
    ("dtype", POOLING, "pixel_bias", DTYPE, [t(2, 35).double(), flags(2, 35)], {}),
    ("device", POOLING, "pixel_bias", DEVICE, [meta(2, 35)], {}),
    ("shape", POOLING, "pixel_bias", MAP_PIXELS, [t(35), t(2, 4, 35)], {}),
    ("shape", POOLING, "pixel_bias", PIXELS, [t(2, 5, 7)], BNC),
    ("type", POOLING, "extra_values", OPTIONAL, ["linear"], {}),
    ("dtype", POOLING, "extra_values", DTYPE, [t(35, 3).half()], {}),
    ("device", POOLING, "extra_values", DEVICE, [meta(35, 3)], {}),
    ("shape", POOLING, "extra_values", TABLE, [t(34, 3), t(2, 35, 3), t(5, 7, 3), t(35, 0)], {}),
    ("type", POOLING, "return_stats", "be a bool", ["no", 1, None], {}),
    ("type", OPS, "scale", "be a float", ["1", None, True, torch.tensor(0.5)], {}),
    ("number", OPS, "scale", "be finite", [float("nan"), float("-inf")], {}),
    ("type", "project_tokenize", "query_scale", "be a float", ["1", None], {}),
    ("number", "project_tokenize", "query_scale", "be finite", [float("inf")], {}),
    ("type", "project_tokenize", "return_map", "be a bool", ["no", 0, torch.tensor(True)], {}),
    ("type", OPS, "backend", "be None or a string", [3, True, torch.device("cpu")], {}),
    ("type", "merge", "tokens", TENSOR, [[t(2, 4, 12)] * 3, None], {}),
    ("layout", "merge", "tokens", DENSE, [nested()], {}),
    ("dtype", "merge", "tokens", FLOATS, [t(3, 2, 4, 12).long()], {}),
    (
        "shape",
        "merge",
        "tokens",
        "be (S, B, L, C), none of S, L and C 0",
        [t(3, 2, 4), t(0, 2, 4, 12), t(3, 2, 0, 12)],
        {},
    ),
    ("type", "merge", "lse", TENSOR, [[t(2, 4)] * 3], {}),
    ("layout", "merge", "lse", DENSE, [t(3, 2, 4).to_sparse()], {}),
    (
        "dtype",
        "merge",
        "lse",
        "be torch.float32 for torch.float32 tokens",
        [t(3, 2, 4).double(), t(3, 2, 4).long()],
        {},
    ),
    (
        "dtype",
        "merge",
        "lse",
        "be torch.float32 for torch.bfloat16 tokens",
        [t(3, 2, 4).to(HALF)],
        {"tokens": t(3, 2, 4, 12).to(HALF)},
    ),
    (
        "dtype",
        "merge",
        "lse",
        "be torch.float64 for torch.float64 tokens",
        [t(3, 2, 4)],
        {"tokens": t(3, 2, 4, 12).double()},
    ),
    ("device", "merge", "lse", "be on the device of `tokens` (cpu)", [meta(3, 2, 4)], {}),
    ("shape", "merge", "lse", LSE, [t(3, 2), t(2, 2, 4), t(3, 2, 6), t(3, 2, 20), t(3, 2, 0)], {}),
]


def cases():
    for kind, ops, argument, must, values, others in RULES:
        error, describe = KINDS[kind]
        for op in ops.split():
            # a row for several ops may give arguments that only some of them have
            known = inspect.signature(getattr(functional, op)).parameters
            rest = {name: other for name, other in others.items() if name in known}
            for value in values:
                words = must if must[0] == "`" else f"`{argument}` must {must}"
                got = describe(value)
                yield pytest.param(
                    op, rest | {argument: value}, error, f"{words}, got {got}", id=f"{op} {argument} {got}"
                )


CASES = list(cases())
by_op = pytest.mark.parametrize("op", [*OPS.split(), "merge"])


def of(op):
    return [case.values[1:] for case in CASES if case.values[0] == op]


def moved(changes):
    """The arguments on the device of the backend's tests. They are made on import, before it is known."""
    return {
        name: value.to(problems.device())
        if isinstance(value, torch.Tensor) and value.device.type == "cpu"
        else value
        for name, value in changes.items()
    }


def here(words):
    """The message on this device."""
    return words.replace("(cpu)", f"({torch.empty(0).device})")


def call(op, changes):
    return getattr(functional, op)(**(good(op) | moved(changes)))


@by_op
def test_a_good_call_runs(op):
    call(op, {})


@pytest.mark.parametrize(("op", "changes", "error", "words"), CASES)
def test_message(op, changes, error, words):
    with pytest.raises(error) as caught:
        call(op, changes)
    assert type(caught.value) is error
    assert str(caught.value) == here(words)


@by_op
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_message_without_gradients(op, mode):
    for changes, error, words in of(op):
        with mode(), pytest.raises(error) as caught:
            call(op, changes)
        assert str(caught.value) == here(words)


def state(value):
    """Everything about an argument that a call could change."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    plain = value.layout == torch.strided and not value.is_nested and value.device.type != "meta"
    content = (value.shape, value.stride(), value.tolist()) if plain else None
    return value._version, value.requires_grad, value.grad_fn, value.grad, content


@by_op
def test_a_call_that_raises_leaves_its_arguments_alone(op):
    for changes, error, _ in of(op):
        arguments = good(op) | moved(changes)
        before = {name: state(value) for name, value in arguments.items()}
        with pytest.raises(error):
            call(op, arguments)
        assert {name: state(value) for name, value in arguments.items()} == before


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("tokenize", "scale"),
        ("tokenize", "layer_norm_eps"),
        ("project", "scale"),
        ("project_tokenize", "scale"),
        ("project_tokenize", "query_scale"),
    ],
)
def test_ints_out_of_range(op, name, sign):
    """Of a float; those that do not fit into 64 bits are taken."""
    with pytest.raises(ValueError, match="range of a float") as caught:
        call(op, {name: sign * 10**400})
    assert str(caught.value) == f"`{name}` must be in the range of a float, got an int of 1329 bits"
    if name != "layer_norm_eps":
        call(op, {name: sign * 10**30})


@by_op
def test_every_argument_has_a_row(op):
    tested = {argument for _, ops, argument, *_ in RULES if op in ops.split()}
    assert set(inspect.signature(getattr(functional, op)).parameters) == tested


@pytest.mark.parametrize("op", OPS.split())
@pytest.mark.parametrize("name", ["Torch", "reference", ""])
def test_the_error_for_an_unknown_backend_names_the_known_ones(op, name):
    known = ", ".join(f'"{name}"' for name in backends.NAMES)
    with pytest.raises(ValueError, match="backend") as caught:
        call(op, {"backend": name})
    assert str(caught.value) == f'`backend` must be None or one of {known}, got "{name}"'


@pytest.mark.parametrize("op", OPS.split())
def test_the_error_for_an_unavailable_backend_gives_the_reason(op, monkeypatch):
    monkeypatch.setitem(backends._REASONS, "torch", "the library is missing")
    with pytest.raises(RuntimeError) as caught:
        call(op, {"backend": "torch"})
    assert str(caught.value) == '`backend="torch"` is not available here: the library is missing'


def test_the_message_under_autocast_names_the_dtypes_of_the_arguments():
    x, queries = torch.ones(2, 5, 8), torch.ones(3, 8)
    for first, second in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        with torch.autocast(problems.device(), dtype=torch.bfloat16), pytest.raises(TypeError) as caught:
            functional.tokenize(x.to(first), queries.to(second))
        assert str(caught.value) == f"`queries` must have the dtype of `x` ({first}), got {second}"


RAW = {"tokenize": (1, False), "project": (False, 1), "project_tokenize": (False, 1, True, False)}


def raw_arguments(op):
    """The arguments of the raw op for a good call."""
    raw = getattr(torch.ops.vt_fast, op)
    given, options = good(op), iter(RAW[op])
    arguments = raw.default._schema.arguments[: -1 - len(_family(raw))]
    return raw, [given.get(each.name) if "Tensor" in str(each.type) else next(options) for each in arguments]


def _family(raw):
    return [each for each in raw.default._schema.arguments if each.has_default_value()][:-1]


@pytest.mark.parametrize("op", OPS.split())
@pytest.mark.parametrize("name", ["", "backward", "tokenize", "tokenize_cpu", "tokenize_torch", "x" * 3000])
def test_a_backend_whose_name_completes_that_of_another_op(op, name):
    """And one that does not; nothing is leaked, since tensors that are not freed are a fault too."""
    raw, arguments = raw_arguments(op)
    x = arguments[0]
    before = x._use_count()
    for _ in range(3):
        with pytest.raises((RuntimeError, ValueError), match="`backend` must be None or one of"):
            raw(*arguments, backend=name)
        with pytest.raises(ValueError, match="`backend` must be None or one of"):
            getattr(vt_fast, op)(**good(op) | {"x": x}, backend=name)
    assert x._use_count() == before


def test_a_long_message_is_cut_between_characters():
    raw, arguments = raw_arguments("tokenize")
    with pytest.raises((RuntimeError, ValueError), match="`backend` must be None or one of"):
        raw(*arguments, backend="\N{SNOWMAN}" * 2000)


@by_op
def test_a_refused_call_keeps_nothing_alive(op):
    arguments = good(op)
    alive = [weakref.ref(value) for value in arguments.values()]
    arguments[next(name for name in ("queries", "keys", "lse") if name in arguments)] = t(3, 5, 7, 11, 13)
    gc.disable()
    try:
        with pytest.raises((TypeError, ValueError)):
            getattr(vt_fast, op)(**arguments)
        arguments.clear()
        assert not [each for each in alive if each() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("op", ["tokenize", "project"])
def test_sizes_that_do_not_fit_into_64_bits(op):
    rows = {"tokenize": ("queries",), "project": ("keys", "values")}[op]
    function = getattr(vt_fast, op)
    with pytest.raises((RuntimeError, ValueError)):
        function(t(0, 1, 1, 1).expand(0, 1, 2**32, 2**32), *[t(2, 1) for _ in rows])
    with pytest.raises((RuntimeError, ValueError)):
        function(t(1, 1, 1), *[t(1, 1).expand(2**62, 1) for _ in rows])


def test_a_map_whose_memory_was_freed():
    """As FSDP frees parameters."""
    x = t(2, 5, 8)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        vt_fast.tokenize(x, t(4, 8))


@pytest.mark.parametrize("backend", [None, "torch"])
def test_raw_ops_check_what_the_functions_never_pass(backend):
    ops, x, rows = torch.ops.vt_fast, t(2, 5, 8), t(4, 8)
    with pytest.raises((RuntimeError, ValueError), match="residual"):
        ops.project(x, rows, rows, None, x, True, 1, backend=backend)
    with pytest.raises((RuntimeError, ValueError), match="`needs` must have"):
        ops.project_backward(x, x, rows, rows, None, False, 1, [True, True], backend=backend)


def test_undefined_tensors_in_the_place_of_others():
    ops, x, rows, lse = torch.ops.vt_fast, t(2, 5, 8), t(4, 8), t(2, 4)
    with pytest.raises((RuntimeError, TypeError)):
        ops.project_backward(None, x, rows, rows, None, False, 1, [True] * 5)
    with pytest.raises((RuntimeError, ValueError)):
        ops.project_tokenize(x, rows, rows, t(), *[None] * 5, False, 1, True, False)
    for tokens, its_lse in ((t(2, 4, 8, dtype=torch.int64), lse), (t(2, 4, 8), lse > 0)):
        arguments = (t(2, 4, 8), None, x, rows, None, None, None, tokens, its_lse, 1, [True] * 7)
        if "cpu" in backends.NATIVE:
            with pytest.raises(RuntimeError, match="must have the dtype of"):
                ops.tokenize_backward(*arguments)


@pytest.mark.parametrize("op", OPS.split())
def test_a_backends_own_op_refuses_to_lose_gradients(op):
    _, arguments = raw_arguments(op)
    with pytest.raises(RuntimeError, match=f"vt_fast::{op}_torch has no derivative: call vt_fast::{op} with"):
        getattr(torch.ops.vt_fast, f"{op}_torch")(*arguments)
