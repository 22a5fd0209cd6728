"""Drawings of pictures with each token's attention laid over them."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from demo.clusters import Clusters
from demo.features import CAPTION
from demo.pictures import Picture

_INK = "#222222"
_GREY = "#666666"
_RED = "#b00020"


def digit_sheet(
    path: Path,
    pictures: Tensor,
    labels: Sequence[int],
    guesses: Sequence[int],
    maps: Sequence[Tensor],
    captions: Sequence[str],
) -> None:
    """Draw each token's attention on test digits, as figure 5 of the paper: rows are digits, columns tokens.

    Args:
        path: the PNG to write.
        pictures: (n, 8, 8), ink in [0, 1].
        labels: the true digits.
        guesses: the network's predictions.
        maps: attention of the filter and of the recurrent tokenizer, (n, L, 8, 8) each; every map sums to 1.
        captions: a few lines for each of the two.
    """
    count, tokens = maps[0].shape[:2]
    height, width = 2.6 + 0.78 * count, 1.2 + 0.78 * (2 * tokens + 1.7)
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = figure.add_gridspec(
        count,
        2 * tokens + 3,
        width_ratios=[1, 0.35, *[1] * tokens, 0.35, *[1] * tokens],  # the narrow columns stay empty
        left=0.9 / width,
        right=1 - 0.3 / width,
        top=1 - 1.7 / height,
        bottom=0.85 / height,
        wspace=0.06,
        hspace=0.06,
    )
    # One scale per tokenizer: the wide attention of filters would vanish beside the narrow one of the
    # recurrent tokenizer. The strongest 2 % share the last colour.
    even = 1 / maps[0][0, 0].numel()
    scales = [Normalize(0, max(_quantile(each, 0.98) / even, 1.0), clip=True) for each in maps]
    for row in range(count):
        paper = 1 - pictures[row].numpy()
        axes = figure.add_subplot(grid[row, 0])
        _show(axes, paper, cmap="gray", vmin=0, vmax=1)
        right = labels[row] == guesses[row]
        text = f"{labels[row]}" if right else f"{labels[row]}\n(read\nas {guesses[row]})"
        axes.set_ylabel(
            text,
            rotation=0,
            ha="right",
            va="center",
            fontsize=13 if right else 9,
            color=_INK if right else _RED,
        )
        for side, attention in enumerate(maps):
            for token in range(tokens):
                axes = figure.add_subplot(grid[row, 2 + side * (tokens + 1) + token])
                heat = scales[side](attention[row, token].numpy() / even)
                _show(axes, _on_paper(heat) * (1 - 0.6 * (1 - paper[..., None])))
                if row == 0:
                    axes.set_title(f"token {token + 1}", fontsize=9, color=_GREY, pad=4)
    _title(figure, "What each token looks at on held-out digits", 0.6)
    for side, (caption, scale) in enumerate(zip(captions, scales, strict=True)):
        column = 2 + side * (tokens + 1)
        first, last = (grid[0, column + token].get_position(figure) for token in (0, tokens - 1))
        figure.text(first.x0, 1 - 0.72 / height, caption, fontsize=10.5, color=_INK, va="top")
        box = (first.x0, 0.55 / height, last.x1 - first.x0, 0.13 / height)
        bar = _scale_bar(figure, scale, "attention, times its even share", box, "horizontal")
        top = scale.vmax or 1.0
        inner = [tick for tick in (0, 1, 2, 5, 10, 20) if tick < 0.8 * top]
        bar.set_ticks([*inner, top], labels=[*map(str, inner), f"≥ {top:.1f}"])
    _save(figure, path, 110)


def pixels_looked_at(attention: Tensor) -> float:
    """Effective number of pixels: the exponential of the attention's entropy, averaged over the maps.

    >>> pixels_looked_at(torch.full((1, 1, 8, 8), 1 / 64))
    64.0
    """
    return round(float(torch.special.entr(attention.double()).sum((-2, -1)).exp().mean()), 6)


def places_looked_at(attention: Tensor) -> float:
    """Number of distinct pixels on which the tokens of a picture peak, averaged over the pictures.

    >>> maps = torch.zeros(1, 3, 8, 8)
    >>> maps[0, :2, 1, 1] = maps[0, 2, 4, 4] = 1
    >>> places_looked_at(maps)
    2.0
    """
    peaks = attention.flatten(2).argmax(2).sort(1).values
    return 1 + float((peaks.diff(dim=1) != 0).sum(1).double().mean())


def cluster_sheet(path: Path, picture: Picture, clusters: Clusters) -> None:
    """Draw a picture, its segments by nearest token, and each token's attention.

    Args:
        path: the PNG to write.
        picture: the clustered picture.
        clusters: its tokens, with maps of the picture's size.
    """
    pixels = picture.pixels.permute(1, 2, 0).numpy()
    segments, tokens, columns = clusters.segments.numpy(), len(clusters.attention), 4
    # Cells have the picture's aspect ratio, within limits, and about the same area for all pictures.
    true_form = pixels.shape[1] / pixels.shape[0]
    form = float(np.clip(true_form, 1 / 3, 4))
    aspect = "equal" if form == true_form else "auto"
    cell_width, cell_height = 2.5 * form**0.5, 2.5 / form**0.5
    width = columns * cell_width * 1.03 + 1.5
    caption = (
        f"{CAPTION}. Per cent: pixels nearest to the token. Segments: in the mean colour of their token. "
        "Heat: a scale for each token, whose top is the token's 99th percentile."
    ) + (" The picture is stretched." if aspect == "auto" else "")
    lines = textwrap.wrap(caption, max(30, int((width - 0.4) * 12.5)))
    head = 1.0 + 0.19 * len(lines)
    height = 4 * cell_height + 3 * 0.36 + head + 0.15
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = figure.add_gridspec(
        4,
        columns,
        left=0.2 / width,
        right=1 - 1.3 / width,
        top=1 - head / height,
        bottom=0.15 / height,
        wspace=0.05,
        hspace=0.36 / cell_height,
    )
    # Segments of a small picture would be nothing but borders.
    zoom = -(-160 // max(segments.shape))
    large = segments.repeat(zoom, 0).repeat(zoom, 1)
    axes = figure.add_subplot(grid[:2, :2])
    _show(axes, _segments(large, clusters.colours.numpy()), aspect=aspect)
    _number(axes, large, {token: token + 1 for token in range(tokens)})
    axes.set_title("pixels by nearest token", fontsize=11, color=_INK, loc="left")
    axes = figure.add_subplot(grid[:2, 2:])
    _show(axes, pixels, aspect=aspect)
    axes.set_title("the picture", fontsize=11, color=_INK, loc="left")
    pale = 1 - 0.45 * (1 - np.repeat(pixels.mean(2, keepdims=True), 3, 2))
    counts = np.bincount(segments.flatten(), minlength=tokens)
    for token, attention in enumerate(clusters.attention):
        axes = figure.add_subplot(grid[2 + token // columns, token % columns])
        scale = PowerNorm(0.5, 0, _quantile(attention, 0.99) or float(attention.max()) or 1.0, clip=True)
        heat = np.asarray(scale(attention.numpy()))
        strength = heat[..., None]
        _show(axes, pale * (1 - strength) + _heat(heat) * strength, aspect=aspect)
        share = f"{100 * counts[token] / segments.size:.0f} %" if counts[token] else "no pixel"
        axes.set_title(f"token {token + 1}: {share}", fontsize=11, color=_INK, loc="left")
    name = elided(picture.title or picture.name, max(12, int((width - 0.4) * 7.5) - 31))
    _title(figure, f"What clustering tokens look at: {name}", 0.2)
    text = "\n".join(lines)
    figure.text(0.2 / width, 1 - 0.6 / height, text, fontsize=10, color=_GREY, va="top", linespacing=1.3)
    box = (1 - 1.0 / width, 0.15, 0.16 / width, 0.4)
    bar = _scale_bar(figure, PowerNorm(0.5, 0, 1), "attention, share of the token's own top", box, "vertical")
    bar.set_ticks([0, 0.1, 0.25, 0.5, 1], labels=["0", "0.1", "0.25", "0.5", "top"])
    _save(figure, path, 100)


def scene_sheet(
    path: Path,
    images: Tensor,
    classes: tuple[Tensor, Tensor],
    levels: Sequence[tuple[str, Tensor]],
    caption: str,
) -> None:
    """Draw scenes, their true and predicted classes, and what the tokens of a VT-FPN's levels look at.

    Args:
        path: the PNG to write.
        images: (n, 3, H, W) in [0, 1].
        classes: true and predicted ones, (n, H, W) each; 0 is background, and 1 + i the digit i.
        levels: a name and the attention (n, L, h, w) of each level, the finest first; every map sums to 1.
        caption: a few lines.
    """
    count, tokens, rows = len(images), levels[0][1].shape[1], len(levels)
    width, height = 0.8 + 0.85 * (3 * rows + tokens), 1.5 + count * (0.85 * rows + 0.15)
    figure = Figure(figsize=(width, height), facecolor="white")
    outer = figure.add_gridspec(
        *(count, 4),
        width_ratios=[rows, rows, rows, tokens],
        left=0.2 / width,
        right=1 - 0.2 / width,
        top=1 - 1.35 / height,
        bottom=0.15 / height,
        wspace=0.14,
        hspace=0.06,
    )
    for row in range(count):
        picture = images[row].permute(1, 2, 0).numpy()
        pale = 1 - 0.45 * (1 - np.repeat(picture.mean(2, keepdims=True), 3, 2))
        for column, title in enumerate(("held-out scene", "its digits", "predicted")):
            axes = figure.add_subplot(outer[row, column])
            _show(axes, picture if column == 0 else pale)
            if column > 0:
                _label(axes, classes[column - 1][row].numpy())
            if row == 0:
                axes.set_title(title, fontsize=11, color=_INK, loc="left")
        inner = outer[row, 3].subgridspec(rows, tokens, wspace=0.06, hspace=0.06)
        for level, (name, maps) in enumerate(levels):
            shown = F.interpolate(maps[row : row + 1], images.shape[2:], mode="nearest")[0]
            for token, attention in enumerate(shown):
                axes = figure.add_subplot(inner[level, token])
                heat = attention.numpy() / (float(attention.max()) or 1.0)
                strength = 0.85 * heat[..., None]
                _show(axes, pale * (1 - strength) + strength * _heat(heat))
                if token == 0:
                    axes.set_ylabel(name, fontsize=8, color=_GREY, labelpad=2)
                if row == level == 0:
                    axes.set_title(f"token {token + 1}", fontsize=9, color=_GREY, pad=4)
    _title(figure, "What the tokens of a feature pyramid look at", 0.2)
    figure.text(0.2 / width, 1 - 0.6 / height, caption, fontsize=10.5, color=_INK, va="top")
    _save(figure, path, 110)


def _label(axes: Any, classes: Any) -> None:
    """Colour the pixels of each digit, and write the digit where there is most room for it."""
    colours = colormaps["tab10"]((classes - 1).clip(0))
    colours[..., 3] = 0.75 * (classes > 0)
    _show(axes, colours)
    _number(axes, classes, {1 + digit: digit for digit in range(10)})


def elided(name: str, longest: int) -> str:
    """The name, shortened in the middle if it is too long, with unprintable characters escaped.

    >>> elided("a_rather_long_name.jpg", 12), elided("a\\nb", 12)
    ('a_rat…me.jpg', 'a\\\\nb')
    """
    name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    if len(name) <= longest:
        return name
    tail = (longest + 1) // 2
    return f"{name[: longest - tail - 1]}…{name[-tail:]}"


def _quantile(values: Tensor, share: float) -> float:
    return float(np.quantile(values.numpy(), share))


def _segments(segments: Any, colours: Any) -> Any:
    """Pixels in the colour of their token, with white borders between segments."""
    image = colours[segments]
    border = np.zeros(segments.shape, dtype=bool)
    border[1:] |= segments[1:] != segments[:-1]
    border[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    image[border] = 1
    return np.clip(image, 0, 1)


def _number(axes: Any, segments: Any, numbers: Mapping[int, int]) -> None:
    """Write each segment's number, if it has one, where the segment is widest."""
    for segment in numbers.keys() & set(np.unique(segments).tolist()):
        inside = np.pad(segments == segment, 1)
        depth = distance_transform_edt(inside)[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        edge = [Stroke(linewidth=2, foreground="white"), Normal()]
        text = f"{numbers[segment]}"
        axes.text(column, row, text, ha="center", va="center", fontsize=11, color=_INK, path_effects=edge)


def _show(axes: Any, image: Any, **options: Any) -> None:
    axes.imshow(image, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _heat(values: Any) -> Any:
    """Opaque heat colours, from yellow to dark red."""
    return colormaps["YlOrRd"](0.25 + 0.75 * np.asarray(values))[..., :3]


def _on_paper(heat: Any) -> Any:
    """Heat colours over white, more transparent for weaker heat."""
    strength = np.asarray(heat)[..., None]
    return 1 - strength + _heat(heat) * strength


def _title(figure: Any, text: str, left: float) -> None:
    width, height = figure.get_size_inches()
    # A file may be named a$b$.png, which must not be parsed as a formula.
    figure.text(left / width, 1 - 0.42 / height, text, fontsize=16, color=_INK, parse_math=False)


def _scale_bar(
    figure: Any, scale: Normalize, label: str, box: tuple[float, float, float, float], orientation: str
) -> Any:
    colours = ListedColormap(_on_paper(np.linspace(0, 1, 256)))
    axes = figure.add_axes(box)
    bar = figure.colorbar(ScalarMappable(scale, colours), cax=axes, orientation=orientation)
    bar.ax.minorticks_off()
    bar.set_label(label, color=_GREY)
    bar.outline.set_visible(False)
    return bar


def _save(figure: Any, path: Path, dpi: int) -> None:
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes; the warning would clutter the terminal.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, dpi=dpi)
