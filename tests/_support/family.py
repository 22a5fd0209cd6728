"""Problems with the switches of the op family: heads by shape, second maps, scores, biases, bags."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests._support import devices, problems
from tests._support.pairs import pairs
from vt_fast import functional
from vt_fast.backends.contract import Project, Tokenize, sees_block, switches
from vt_fast.layout import channel_count
from vt_fast.ops import TOKENIZE

# What each backend takes, by the names of `switches`.
TAKEN = {
    "torch": {
        "`values`",
        "`scores`",
        "`token_bias`",
        "`offsets`",
        "`layer_norm_eps`",
        '`normalize="tokens"`',
        '`normalize="exp"`',
        "`normalize=None`",
        "several heads of full width",
        "keys for channel blocks",
        "values that are summed over the heads",
    },
}
TAKEN["cpu"] = TAKEN["torch"]
TAKEN["triton"] = TAKEN["torch"]
# And `token_bias`, where the weights need no sum over pixels.
TAKEN["cuda"] = TAKEN["torch"] - {"`values`", "`scores`", "`token_bias`", "`offsets`", "`layer_norm_eps`"}


def taken(name: str) -> None:
    """Skip a test where the backend does not take this switch."""
    if name not in TAKEN[devices.backend()]:
        pytest.skip(f"{devices.backend()} does not take {name}")


B, HEIGHT, WIDTH, L, HEADS = 3, 3, 5, 3, 2
N = HEIGHT * WIDTH
BAGS = [0, 4, 4, 11]  # the second one is empty

FORMS = ["bnc, sliced", "nchw", "channels_last", "bags"]
ROWS = ["rows", "shared rows", "scores", "both"]
BIASES = ["", "token_bias", "shared token_bias"]

LAYER_NORM = "pixels, layer_norm"

# normalize, heads, the map, where logits come from, what is pooled, the rows' bias, the pixels that take part
_TOKENIZE = pairs(
    ["pixels", LAYER_NORM, "tokens", None],
    ["one", "blocks", "full"],
    FORMS,
    ROWS,
    ["", "values"],
    BIASES,
    ["", "mask", "pixel_bias"],
)
# normalize, heads, values, the map, where logits come from, residual, the rows' bias
_PROJECT = pairs(
    ["tokens", "exp", None],
    ["one", "blocks", "full"],
    ["values", "summed", "shared summed"],
    FORMS,
    ROWS,
    ["", "residual", "x"],
    BIASES,
)
CASES = [("tokenize", options) for options in _TOKENIZE] + [("project", options) for options in _PROJECT]


class Problem(problems.Problem):
    """A call that a backend must take, or refuse by the name of a switch."""

    def _own(self, operands: dict[str, torch.Tensor]) -> object:
        backend = devices.backend()
        others = set(self.switches()) - TAKEN[backend]
        if backend == "cuda" and self.options["normalize"] != "pixels":
            others -= {"`token_bias`"}
        function, arguments = getattr(functional, self.op), self.arguments(operands)
        if not others:
            return function(**arguments, backend=backend)
        with pytest.raises(ValueError, match="it does not take") as refused:
            function(**arguments, backend=backend)
        assert any(f"it does not take {name}" in str(refused.value) for name in others)
        pytest.skip(str(refused.value))

    def switches(self) -> list[str]:
        """By name, as the op gets them: heads that see all channels are one where no softmax joins them."""
        given: dict[str, Any] = {**self.operands, **self.options}
        for name in ("scale", "return_stats"):
            given.pop(name, None)
        if self.op == "project":
            given["residual"] = None
            return switches(Project(**{"token_bias": None, "residual_is_input": False, "keys": None} | given))
        others = dict.fromkeys(("queries", "mask", "pixel_bias", "extra_values"))
        call = Tokenize(**others | {"keep_exact": False} | given)
        if call.normalize != "tokens" and not sees_block(call.queries, channel_count(call.x), HEADS):
            call = call._replace(num_heads=1)
        return switches(call)


def make(op: str, options: tuple[Any, ...]) -> Problem:
    """A problem of a case. What does not go together is left out."""
    torch.manual_seed(hash_of(op, options))
    with torch.device(problems.device()):
        made = _tokenize(*options) if op == "tokenize" else _project(*options)
    for name, value in made.operands.items():
        if value.is_floating_point():
            made.operands[name] = value.double()
    made.options["scale"] = 0.75
    made.unused = True
    return made


def hash_of(*values: object) -> int:
    """A seed, the same in each run."""
    return sum(place * ord(letter) for place, letter in enumerate(str(values), 1))


def cover() -> list[tuple[str, tuple[Any, ...]]]:
    """Some of the cases, with every switch and every option of each op."""
    news = {
        (op, options): {(op, each) for each in (*make(op, options).switches(), *enumerate(options))}
        for op, options in CASES
    }
    chosen: list[tuple[str, tuple[Any, ...]]] = []
    while any(news.values()):
        best = max(news, key=lambda case: len(news[case]))
        chosen.append(best)
        news = {case: new - news[best] for case, new in news.items()}
    return chosen


def assert_sums_are_not_read(normalize: str | None, dtype: torch.dtype) -> None:
    """The backward op of sums over pixels does not read the tokens and the mass."""
    torch.manual_seed(0)
    x, rows, bias = torch.randn(2, 9, 32), torch.randn(4, 32), torch.tensor([0.0, 1, -torch.inf, 2])
    grads = torch.randn(2, 4, 32), torch.randn(2, 4)
    x, rows, bias, *grads = (each.to(dtype) for each in (x, rows, bias, *grads))
    needs = [True, True, False, False, False, False, True]
    solutions = [
        TOKENIZE.raw_backward(
            *grads,
            x,
            rows,
            *(None, None, None),
            *(torch.full_like(grad, value) for grad in grads),
            1,
            needs,
            token_bias=bias,
            normalize=normalize,
        )
        for value in (0.5, torch.nan, torch.inf, -torch.inf)
    ]
    for found in solutions[1:]:
        for part, expected in zip(found, solutions[0], strict=True):
            assert (part is None) == (expected is None)
            assert part is None or torch.equal(part, expected)
            assert part is None or part.isfinite().all()


def _widths() -> tuple[int, int]:
    """C and D. The backend "cuda" takes blocks of 16 bytes, in any dtype."""
    return (16, 32) if devices.backend() == "cuda" else (8, 6)


def _map(form: str, channels: int) -> torch.Tensor:
    if form == "bags":
        return torch.randn(BAGS[-1], channels)
    return problems.LAYOUTS[form](B, channels, HEIGHT, WIDTH)


def _per_pixel(form: str, rows: int | None = None) -> tuple[int, ...]:
    """The shape of one number a pixel, or of so many."""
    lead = () if rows is None else (rows,)
    if form == "bags":
        return (*lead, BAGS[-1])
    return (B, *lead, N) if form.startswith("bnc") else (B, *lead, HEIGHT, WIDTH)


def _common(name: str, heads: str, form: str, source: str, bias: str) -> dict[str, torch.Tensor]:
    rows = L if heads == "one" else HEADS * L
    if source == "scores" and heads == "blocks":
        source = "both"
    channels = _widths()[0]
    width = channels // HEADS if heads == "blocks" else channels
    operands = {"x": _map(form, channels)}
    if form == "bags":
        operands["offsets"] = torch.tensor(BAGS, dtype=torch.int32 if source == "both" else torch.int64)
    if source != "scores":
        operands[name] = torch.randn(*([] if source == "shared rows" else [B]), rows, width)
    if source in ("scores", "both"):
        operands["scores"] = torch.randn(_per_pixel(form, rows))
    if bias:
        operands["token_bias"] = torch.randn(*([] if "shared" in bias else [B]), rows)
        operands["token_bias"][..., 1] = -torch.inf
    return operands


def _tokenize(
    normalize: str | None, heads: str, form: str, source: str, pooled: str, bias: str, part: str
) -> Problem:
    operands = _common("queries", heads, form, source, bias)
    x = operands["x"]
    options = {"num_heads": 1 if heads == "one" else HEADS, "normalize": normalize, "return_stats": True}
    if normalize == LAYER_NORM:
        options |= {"normalize": "pixels", "layer_norm_eps": 1e-3}
    elif pooled:
        operands["values"] = _map(form, _widths()[1])
    if part:
        used = torch.rand(_per_pixel(form)) < 0.7
        if form == "bags":
            used[: BAGS[1]] = False  # a bag of masked pixels
        else:
            used[0] = False
        if part == "mask":
            operands["mask"] = used
        else:
            operands["pixel_bias"] = torch.where(used, torch.randn(_per_pixel(form)), -torch.inf)
        # What is beneath a mask must not matter.
        for beneath in (x, operands.get("values")):
            if beneath is not None:
                beneath.masked_fill_(~used[:, None] if beneath.dim() == 4 else ~used[..., None], torch.nan)
    return Problem("tokenize", operands, options)


def _project(
    normalize: str | None, heads: str, kind: str, form: str, source: str, residual: str, bias: str
) -> Problem:
    operands = _common("keys", heads, form, source, bias)
    rows = L if heads == "one" else HEADS * L
    count, width = rows if "summed" in kind else L, _widths()[0 if residual == "x" else 1]
    operands["values"] = torch.randn(*([] if "shared" in kind else [B]), count, width)
    if bias and count == rows:
        # Nor what a removed token holds.
        operands["values"][..., 1, :] = torch.nan
    if residual == "residual":
        operands["residual"] = _map(form, _widths()[1])
    options = {"num_heads": 1 if heads == "one" else HEADS, "normalize": normalize}
    if "keys" not in operands:
        options["keys"] = None
    if residual == "x":
        options["residual"] = "input"
    return Problem("project", operands, options)
