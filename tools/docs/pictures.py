"""Draw the pictures of the documentation: ``python -m tools.docs.pictures`` writes ``docs/pictures``.

What they show is computed here: weights and results by the ops, multiply-accumulates by formulas, and moves
of the map by counting the tensors that each operation of PyTorch reads and writes. A test draws them again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vt_fast
from tools.docs import kernel_pictures
from tools.docs.drawing import BLUE, GREEN, GREY, ORANGE, Drawing, hex_colour

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"

# A scene of sky, meadow and sun: a map of 3 channels, so that pixels and tokens can be seen.
SIDE = 10
_SKY, _MEADOW, _SUN = (0.35, 0.62, 0.95), (0.25, 0.62, 0.28), (1.0, 0.82, 0.25)


def scene() -> Tensor:
    """The map (1, SIDE * SIDE, 3)."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    colours = torch.tensor([_SKY, _MEADOW, _SUN], dtype=torch.float64)
    kind = (rows >= 6).long()
    kind[(rows - 2) ** 2 + (columns - 7) ** 2 <= 3] = 2
    shade = 1 + 0.12 * torch.sin(1.7 * rows + 2.3 * columns).double()
    return (colours[kind] * shade[..., None]).reshape(1, -1, 3)


def rows_of_scene() -> tuple[Tensor, Tensor]:
    """Rows (3, 3) and a bias for each: the logits fall with the distance from one of the colours."""
    colours = torch.tensor([_SKY, _MEADOW, _SUN], dtype=torch.float64)
    return 20 * colours, -10 * colours.square().sum(1)


def tokenizing() -> Drawing:
    """What `tokenize` computes."""
    x, (colours, _) = scene(), rows_of_scene()
    queries = 0.5 * (colours - colours.mean(0))
    tokens = vt_fast.tokenize(x, queries, backend="torch")[0]
    weights = torch.softmax(x[0] @ queries.T, 0).T.reshape(3, SIDE, SIDE)
    picture = Drawing(700, 300, "tokenize: each token is a weighted mean of the pixels")
    picture.text(20, 24, "map x: N pixels of C channels")
    picture.map(20, 40, x.reshape(SIDE, SIDE, 3), 16)
    picture.text(20, 222, "C = 3 here, so that", soft=True)
    picture.text(20, 240, "pixels have colours", soft=True)
    picture.text(300, 24, "weights of each token", anchor="middle")
    picture.text(610, 24, "L tokens", anchor="middle")
    for index, (weight, token) in enumerate(zip(weights, tokens, strict=True)):
        y = 40 + 84 * index
        picture.arrow(190, y + 36, 255, y + 36)
        picture.map(264, y, weight / weight.max(), 7)
        picture.text(345, y + 32, "sum over the", soft=True)
        picture.text(345, y + 48, "pixels: 1", soft=True)
        picture.arrow(440, y + 36, 560, y + 36)
        picture.text(498, y + 27, "weighted mean", anchor="middle", soft=True)
        picture.box(574, y + 12, 72, 46, hex_colour(token.tolist()), f"token {index + 1}")
    return picture


def projecting() -> Drawing:
    """What `project` computes."""
    x, (keys, bias) = scene(), rows_of_scene()
    values = torch.tensor([(0.55, 0.4, 0.8), (0.9, 0.55, 0.15), (0.85, 0.25, 0.35)], dtype=torch.float64)
    y = vt_fast.project(x, keys, values, token_bias=bias, backend="torch")
    weights = torch.softmax(x[0] @ keys.T + bias, 1).T.reshape(3, SIDE, SIDE)
    picture = Drawing(700, 300, "project: each pixel becomes a weighted mean of the tokens")
    picture.text(20, 24, "map x")
    picture.map(20, 40, x.reshape(SIDE, SIDE, 3), 16)
    picture.text(300, 24, "weights of each pixel", anchor="middle")
    picture.text(432, 24, "values", anchor="middle")
    picture.text(600, 24, "map y", anchor="middle")
    for index, (weight, value) in enumerate(zip(weights, values, strict=True)):
        at = 40 + 84 * index
        picture.arrow(190, at + 36, 255, at + 36)
        picture.map(264, at, weight, 7)
        picture.box(396, at + 12, 72, 46, hex_colour(value.tolist()), f"token {index + 1}")
        picture.text(366, at + 40, "\u00d7", anchor="middle")
        if index < 2:
            picture.text(366, at + 82, "+", anchor="middle")
    picture.arrow(480, 120, 512, 120)
    picture.map(520, 40, y.reshape(SIDE, SIDE, 3), 16)
    picture.text(520, 222, "at each pixel the weights", soft=True)
    picture.text(520, 240, "of all tokens sum to 1", soft=True)
    return picture


class Sizes(NamedTuple):
    """Of the last stage of a VT-ResNet-50: N pixels, C channels, L tokens."""

    pixels: int = 196
    channels: int = 1024
    tokens: int = 16


def macs(sizes: Sizes) -> dict[str, int]:
    """Multiply-accumulates of attention pooling: key and value projections, and the two products."""
    n, c, count = sizes
    return {
        "projections of pixels": 2 * n * c * c,
        "projections of tokens": 2 * count * c * c,
        "attention": 2 * n * c * count,
    }


def folding() -> Drawing:
    """What folding saves."""
    sizes = Sizes()
    counts = macs(sizes)
    attention = counts["attention"]
    plain, folded = counts["projections of pixels"], counts["projections of tokens"]
    picture = Drawing(700, 318, "Folding moves the projections from the pixels to the tokens")
    rows: list[tuple[int, str, list[tuple[str, str, int]], list[tuple[str, int]]]] = [
        (
            20,
            "as written: project all N pixels, then attend",
            [("x", GREY, 50), ("x W_K, x W_V", ORANGE, 130), ("softmax(q k^T) v", BLUE, 150)],
            [(ORANGE, plain), (BLUE, attention)],
        ),
        (
            172,
            "folded: attend to the map itself, then project L tokens",
            [("q W_K^T", ORANGE, 90), ("tokenize(x, ·)", BLUE, 130), ("· W_V", ORANGE, 70)],
            [(ORANGE, folded), (BLUE, attention)],
        ),
    ]
    for y, title, steps, bars in rows:
        picture.text(20, y + 12, title)
        at = 20.0
        for index, (words, colour, width) in enumerate(steps):
            picture.box(at, y + 24, width, 34, colour, words)
            at += width
            if index < len(steps) - 1:
                picture.arrow(at + 3, y + 41, at + 27, y + 41)
                at += 30
        at = 20.0
        for colour, count in bars:
            share = 420 * count / (plain + attention)
            picture.add(f'<rect x="{at:.4g}" y="{y + 74}" width="{share:.4g}" height="20" fill="{colour}"/>')
            at += share
        total = sum(count for _, count in bars)
        picture.text(at + 10, y + 89, f"{total / 1e6:.0f} million multiply-accumulates")
    picture.text(
        20, 300, f"one image, N = {sizes.pixels}, C = {sizes.channels}, L = {sizes.tokens}", soft=True
    )
    picture.box(300, 288, 14, 14, ORANGE)
    picture.text(320, 300, "projections", soft=True)
    picture.box(410, 288, 14, 14, BLUE)
    picture.text(430, 300, "attention", soft=True)
    return picture


class Moves(TorchDispatchMode):
    """Counts how often a map is read or written: operands and results of at least ``size`` elements."""

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self.steps = size, list[tuple[str, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if not func.is_view and name not in ("_unsafe_view", "detach"):
            leaves = tree_leaves((args, kwargs, result))
            count = sum(isinstance(each, Tensor) and each.numel() >= self.size for each in leaves)
            if count:
                self.steps.append((name, count))
        return result


def moves_of_a_block() -> dict[str, dict[str, list[tuple[str, int]]]]:
    """Moves of the map by a tokenizer and a projector, written plainly and by the ops, forward and backward.

    The module's token side never touches the map, so keys and values stand for it.
    """

    def plain(x: Tensor, queries: Tensor, w_q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.softmax(x @ queries.T, 1).transpose(1, 2) @ x
        weights = torch.softmax((x @ w_q) @ keys.transpose(1, 2), 2)
        return x + weights @ values, tokens

    def fused(x: Tensor, queries: Tensor, w_q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return vt_fast.project(x, keys @ w_q.T, values, residual=x), vt_fast.tokenize(x, queries)

    found: dict[str, dict[str, list[tuple[str, int]]]] = {}
    block: Callable[..., tuple[Tensor, Tensor]]
    for name, block in (("plain", plain), ("fused", fused)):
        x = torch.zeros(2, 256, 64, requires_grad=True)
        queries, w_q = torch.zeros(8, 64, requires_grad=True), torch.zeros(64, 64, requires_grad=True)
        keys, values = (torch.zeros(2, 8, 64, requires_grad=True) for _ in range(2))
        with Moves(x.numel()) as forward:
            y, tokens = block(x, queries, w_q, keys, values)
        gradients = torch.zeros_like(y), torch.zeros_like(tokens)
        with Moves(x.numel()) as backward:
            torch.autograd.backward((y, tokens), gradients)
        found[name] = {"forward": forward.steps, "backward": backward.steps}
    return found


def passes() -> Drawing:
    """How often plain PyTorch and the ops move the map."""
    found = moves_of_a_block()
    picture = Drawing(700, 262, "How often the map is read or written")
    labels = {"plain": "plain PyTorch", "fused": "tokenize and project"}
    y = 20
    for name, label in labels.items():
        picture.text(20, y + 12, label)
        for direction in ("forward", "backward"):
            steps = found[name][direction]
            total = sum(count for _, count in steps)
            picture.text(20, y + 39, direction, soft=True)
            at = 90
            for index, (_, count) in enumerate(steps):
                for _ in range(count):
                    picture.box(at, y + 24, 18, 20, BLUE, soft=bool(index % 2))
                    at += 20
            picture.text(at + 8, y + 39, f"{total} moves")
            y += 30
        y += 50
    picture.text(20, 250, "a square is one read or write of the map; a shade is one operation", soft=True)
    return picture


def stacking() -> Drawing:
    """The passes of a stack of three blocks."""
    stack = vt_fast.nn.VisualTransformerStack(8, 3, num_tokens=2)
    picture = Drawing(700, 288, "A stack of n blocks reads the map n + 1 times")
    picture.text(20, 22, "three blocks, one by one: each has a tokenizer and a projector")
    at = 20
    for _ in range(3):
        for words, colour in (("tokenize", BLUE), ("project", GREEN)):
            picture.box(at, 34, 88, 34, colour, words)
            picture.arrow(at + 90, 51, at + 108, 51)
            at += 110
    picture.text(20, 92, "6 reads and 3 writes of the map", soft=True)
    picture.text(20, 138, "the same blocks in a stack: a projector shares its pass with the next tokenizer")
    at, names = 20, ["tokenize", "project_tokenize", "project_tokenize", "project"]
    if stack.passes != len(names):
        raise RuntimeError(f"the stack has {stack.passes} passes, and {len(names)} are drawn")
    for index, words in enumerate(names):
        width = 150 if "_" in words else 88
        if "_" in words:
            picture.box(at, 150, 75, 34, GREEN, "project_")
            picture.box(at + 75, 150, 75, 34, BLUE, "tokenize")
        else:
            picture.box(at, 150, width, 34, GREEN if index else BLUE, words)
        picture.arrow(at + width + 2, 167, at + width + 24, 167)
        if index < 3:
            picture.box(at + width - 34, 214, 92, 28, ORANGE, "transformer")
            picture.arrow(at + width - 12, 186, at + width - 12, 212)
            picture.arrow(at + width + 36, 212, at + width + 36, 186)
        at += width + 26
    words = f"{stack.passes} reads and 3 writes; between passes, the transformer sees tokens alone"
    picture.text(20, 272, words, soft=True)
    return picture


PICTURES: dict[str, Callable[[], Drawing]] = {
    "tokenize": tokenizing,
    "project": projecting,
    "folding": folding,
    "passes": passes,
    "stack": stacking,
    **kernel_pictures.PICTURES,
}


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg())


if __name__ == "__main__":
    main()
