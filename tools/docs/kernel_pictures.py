"""The pictures of the kernels, which :mod:`tools.docs.pictures` draws with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tools.docs.drawing import BLUE, GREEN, GREY, ORANGE, Drawing


def walking() -> Drawing:
    """How one pass over a map pools it."""
    picture = Drawing(700, 250, "One pass: tiles of the map update sums that stay on chip")
    picture.text(20, 22, "map x, in tiles of pixels")
    for index in range(8):
        colour = BLUE if index == 3 else GREY
        picture.box(20 + 52 * index, 36, 48, 60, colour, "tile" if index == 3 else "", soft=index > 3)
    picture.text(20, 118, "read", soft=True)
    picture.text(176 + 24, 118, "in cache or", anchor="middle", soft=True)
    picture.text(176 + 24, 134, "shared memory", anchor="middle", soft=True)
    picture.text(280, 118, "not read yet", soft=True)
    picture.text(470, 22, "what is kept, for each token")
    for index, (words, meaning) in enumerate(
        [
            ("m", "largest logit so far"),
            ("s", "sum of exp(logit - m)"),
            ("t", "sum of exp(logit - m) · pixel"),
        ]
    ):
        picture.box(470, 36 + 32 * index, 34, 26, ORANGE, words)
        picture.text(514, 54 + 32 * index, meaning, soft=True)
    picture.text(20, 176, "for each tile:")
    steps: Iterable[str] = (
        "1. logits = tile · queries",
        "2. if a logit exceeds m: raise m, scale s and t down",
        "3. add exp(logits - m) to s, and exp(logits - m) · tile to t",
    )
    for index, words in enumerate(steps):
        picture.text(130, 176 + 20 * index, words)
    picture.text(130, 240, "at the end: token = t / s, lse = m + log s", soft=True)
    return picture


def orientations() -> Drawing:
    """How the CPU kernels take tiles of both layouts."""
    picture = Drawing(700, 270, "A tile of either layout is read as it lies")
    for x, title, lines, inner in (
        (
            20,
            "channels_last: channels lie side by side",
            ("a tile is some pixels,", "with all channels"),
            "C",
        ),
        (370, "NCHW: pixels lie side by side", ("a tile is all channels,", "of some pixels"), "pixels"),
    ):
        picture.text(x, 22, title)
        across = inner == "C"
        for row in range(6):
            for column in range(8):
                inside = row in (2, 3) if across else column in (2, 3, 4)
                picture.box(x + 22 * column, 46 + 20 * row, 20, 18, BLUE if inside else GREY, soft=not inside)
        picture.text(x, 40, "memory runs along a row", soft=True, size=11)
        for index, words in enumerate(lines):
            picture.text(x + 190, 88 + 18 * index, words, soft=True)
        picture.text(
            x,
            188,
            "rows: pixels, columns: channels" if across else "rows: channels, columns: pixels",
            soft=True,
        )
    picture.text(20, 222, "logits of a tile, in either case:")
    picture.box(250, 206, 120, 22, ORANGE, "token 1: pixels")
    picture.box(380, 206, 120, 22, ORANGE, "token 2: pixels")
    picture.text(510, 222, "... a row for each token,", soft=True)
    picture.text(250, 250, "so the softmax is written once for both layouts", soft=True)
    return picture


def warps() -> Drawing:
    """How the warps of a block of the CUDA kernels share a tile."""
    picture = Drawing(700, 262, "A warp owns channels; only logits cross warps")
    picture.text(20, 22, "a tile in shared memory: pixels x channels")
    for index in range(4):
        x = 20 + 104 * index
        for row in range(4):
            picture.box(x, 34 + 16 * row, 100, 14, (BLUE, GREEN, GREY, ORANGE)[index])
        picture.text(x + 50, 116, f"warp {index + 1}", anchor="middle")
        picture.arrow(x + 50, 122, x + 50, 142)
        picture.box(x + 10, 146, 80, 22, (BLUE, GREEN, GREY, ORANGE)[index], "its logits")
    picture.text(436, 60, "each warp copies, multiplies,", soft=True)
    picture.text(436, 78, "pools and stores its own channels:", soft=True)
    picture.text(436, 96, "no barrier for the data of a tile", soft=True)
    picture.text(436, 160, "parts of logits, by channels", soft=True)
    picture.arrow(222, 172, 222, 194)
    picture.text(236, 188, "one barrier, then added in a fixed order", soft=True)
    picture.box(20, 198, 412, 24, BLUE, "logits of all tokens and pixels of the tile", soft=True)
    picture.text(436, 215, "softmax; each warp pools its part", soft=True)
    picture.text(20, 250, "meanwhile, two to four more tiles are on their way (cp.async)", soft=True)
    return picture


def walks() -> Drawing:
    """The two walks of the Triton kernels over the channels of a tile."""
    picture = Drawing(700, 190, "Two walks over the channels of a tile")
    picture.text(20, 22, "first walk: add up logits, chunk by chunk")
    picture.text(400, 22, "second walk: pool, or write results")
    for x, colour in ((20, BLUE), (400, GREEN)):
        for index in range(4):
            picture.box(x + 68 * index, 34, 62, 44, colour, f"chunk {index + 1}", soft=index > 1)
    picture.arrow(20, 92, 286, 92)
    picture.arrow(400, 92, 666, 92)
    picture.box(150, 112, 90, 28, ORANGE, "logits")
    picture.arrow(244, 126, 296, 126)
    picture.box(300, 112, 90, 28, ORANGE, "weights")
    picture.arrow(394, 126, 446, 126)
    picture.box(450, 112, 150, 28, ORANGE, "sums of chunks")
    picture.text(
        20,
        174,
        "keep: chunks stay in registers between the walks; stream, whole: they are read again",
        soft=True,
    )
    return picture


PICTURES: dict[str, Callable[[], Drawing]] = {
    "walk": walking,
    "orientations": orientations,
    "warps": warps,
    "walks": walks,
}
