"""The sheets: pictures with what each token looks at laid over them."""

from __future__ import annotations

from collections.abc import Sequence
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

from vt_fast.demo.clusters import Clusters
from vt_fast.demo.features import CAPTION
from vt_fast.demo.pictures import Picture

_INK = "#222222"
_GREY = "#666666"
_RED = "#b00020"


def digit_sheet(
    path: Path, pictures: Tensor, labels: Sequence[int], guesses: Sequence[int], maps: Sequence[Tensor]
) -> None:
    """What each token looks at on test digits, as figure 5 of the paper: rows are digits, columns tokens.

    Args:
        path: the PNG to write.
        pictures: (n, 8, 8), ink in [0, 1].
        labels: what was written.
        guesses: what the net says it is.
        maps: attention of the filter and of the recurrent tokenizer, each (n, L, 8, 8), each map of sum 1.
    """
    count, tokens = maps[0].shape[:2]
    even = 1 / maps[0][0, 0].numel()
    # One scale for both, or they could not be compared; cut at 20 and under a square root, or a filter's wide
    # attention would vanish beside the narrow one of a recurrent tokenizer.
    scale = PowerNorm(0.5, 0, 20, clip=True)
    height, width = 1.75 + 0.78 * count, 2.6 + 0.78 * (2 * tokens + 1)
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = figure.add_gridspec(
        count,
        2 * tokens + 3,
        width_ratios=[1, 0.35, *[1] * tokens, 0.35, *[1] * tokens],  # the narrow columns stay empty
        left=0.6 / width,
        right=1 - 1.15 / width,
        top=1 - 1.25 / height,
        bottom=0.25 / height,
        wspace=0.06,
        hspace=0.06,
    )
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
                _overlay(axes, np.repeat(paper[..., None], 3, 2), scale(attention[row, token].numpy() / even))
                if row == 0:
                    axes.set_title(f"token {token + 1}", fontsize=9, color=_GREY, pad=4)
    _title(figure, "What each token looks at on held-out digits", 0.6)
    kinds = (
        "filter tokenizer, same filters for all",
        "recurrent tokenizer, filters from the digit's own tokens",
    )
    for side, (kind, attention) in enumerate(zip(kinds, maps, strict=True)):
        corner = grid[0, 2 + side * (tokens + 1)].get_position(figure)
        text = f"{kind}: {pixels_looked_at(attention):.0f} of {round(1 / even)} pixels looked at"
        figure.text(corner.x0, 1 - 0.85 / height, text, fontsize=11, color=_INK)
    _scale_bar(figure, scale, "attention, times its even share (20 or more)")
    figure.savefig(path, dpi=110)


def pixels_looked_at(attention: Tensor) -> float:
    """Over how many pixels the attention is spread: the exponential of its entropy, averaged over the maps.

    >>> pixels_looked_at(torch.full((1, 1, 8, 8), 1 / 64))
    64.0
    """
    return round(float(torch.special.entr(attention.double()).sum((-2, -1)).exp().mean()), 6)


def cluster_sheet(path: Path, picture: Picture, clusters: Clusters) -> None:
    """A picture, the segments that its clustering tokens cut, and what each token looks at.

    Args:
        path: the PNG to write.
        picture: what was clustered.
        clusters: its tokens, with maps of the picture's size.
    """
    pixels = picture.pixels.permute(1, 2, 0).numpy()
    tokens, rows, columns = len(clusters.attention), 2, 5
    # Cells have the picture's form, within reason, and about the same area for all pictures.
    form = float(np.clip(pixels.shape[1] / pixels.shape[0], 0.4, 2.5))
    cell_width, cell_height = 2.7 * form**0.5, 2.7 / form**0.5
    width, height = columns * cell_width * 1.03 + 1.4, rows * cell_height + 0.36 + 1.2
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.2 / width,
        right=1 - 1.2 / width,
        top=1 - 1.05 / height,
        bottom=0.12 / height,
        wspace=0.05,
        hspace=0.36 / cell_height,
    )
    even = 1 / clusters.segments.numel()
    strongest = float(np.quantile(clusters.attention.numpy(), 0.999)) / even
    scale = PowerNorm(0.5, 0, max(strongest, 1.0), clip=True)
    panels = [("the picture", pixels), ("pixels by nearest token", _segments(clusters))]
    for row, (title, image) in enumerate(panels):
        axes = figure.add_subplot(grid[row, 0])
        _show(axes, image)
        axes.set_title(title, fontsize=11, color=_INK, loc="left")
    _number(axes, clusters.segments.numpy())
    grey = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
    shares = np.bincount(clusters.segments.flatten().numpy(), minlength=tokens) * even
    for token in range(tokens):
        axes = figure.add_subplot(grid[divmod(token, columns - 1)[0], 1 + token % (columns - 1)])
        _overlay(axes, grey, scale(clusters.attention[token].numpy() / even))
        axes.set_title(f"token {token + 1}: {100 * shares[token]:.0f} %", fontsize=11, color=_INK, loc="left")
    _title(figure, f"What clustering tokens look at: {picture.name}", 0.2)
    caption = (
        f"{CAPTION}. Per cent: pixels nearest to the token. Segments: in the mean colour their token pools"
    )
    figure.text(0.2 / width, 1 - 0.68 / height, caption, fontsize=10, color=_GREY)
    _scale_bar(figure, scale, "attention, times its even share")
    figure.savefig(path, dpi=100)


def _segments(clusters: Clusters) -> Any:
    """Each pixel in its token's colour, with white borders between segments."""
    segments = clusters.segments.numpy()
    image = clusters.colours.numpy()[segments]
    border = np.zeros(segments.shape, dtype=bool)
    border[1:] |= segments[1:] != segments[:-1]
    border[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    image[border] = 1
    return np.clip(image, 0, 1)


def _number(axes: Any, segments: Any) -> None:
    """Write each token's number where its segment is widest."""
    for token in np.unique(segments):
        inside = np.pad(segments == token, 1)
        depth = distance_transform_edt(inside)[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        edge = [Stroke(linewidth=2, foreground="white"), Normal()]
        axes.text(
            column, row, f"{token + 1}", ha="center", va="center", fontsize=10, color=_INK, path_effects=edge
        )


def _show(axes: Any, image: Any, **options: Any) -> None:
    axes.imshow(image, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _overlay(axes: Any, picture: Any, heat: Any) -> None:
    """Heat over a pale picture: the weaker the heat, the more of the picture shows through."""
    strength = np.asarray(heat)[..., None]
    pale = 1 - 0.4 * (1 - picture)
    _show(axes, pale * (1 - strength) + _heat(heat) * strength)


def _heat(values: Any) -> Any:
    """Opaque heat colours, from yellow to dark red."""
    return colormaps["YlOrRd"](0.25 + 0.75 * np.asarray(values))[..., :3]


def _title(figure: Any, text: str, left: float) -> None:
    width, height = figure.get_size_inches()
    # A file may be called a$b$.png, which is no formula.
    figure.text(left / width, 1 - 0.42 / height, text, fontsize=16, color=_INK, parse_math=False)


def _scale_bar(figure: Any, scale: Normalize, label: str) -> None:
    """The colours of `_overlay` on white paper."""
    strength = np.linspace(0, 1, 256)[:, None]
    on_paper = ListedColormap(1 - strength + _heat(strength[:, 0]) * strength)
    width = figure.get_figwidth()
    axes = figure.add_axes((1 - 0.95 / width, 0.25, 0.16 / width, 0.5))
    bar = figure.colorbar(ScalarMappable(scale, on_paper), cax=axes)
    bar.set_ticks([tick for tick in (0, 1, 2, 5, 10, 20, 50) if tick <= (scale.vmax or 0)])
    bar.ax.minorticks_off()
    bar.set_label(label, color=_GREY)
    bar.outline.set_visible(False)
