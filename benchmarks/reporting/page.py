"""A report as one HTML page that needs nothing else: drawings inside, light and dark, no need of scripts.

It is also XML, so that any parser of that can check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from benchmarks.reporting import style
from benchmarks.reporting.blocks import (
    Block,
    Heading,
    Item,
    Marks,
    Number,
    Paragraph,
    Picture,
    Table,
    Tiles,
)

_HERE = Path(__file__).resolve().parent
_SIGNS = {True: "✓", False: "✗", None: "?"}
_NUMBER, _LONG = ' class="number"', ' class="long"'
# Letters in a cell that may go into several lines.
_MUCH = 60
_CLASSES = {True: "met", False: "missed", None: "open"}


def render(title: str, blocks: Sequence[Block]) -> str:
    """The page."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>{escape(title)}</title>",
        f"<style>\n{(_HERE / 'page.css').read_text()}</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
        *_contents(blocks),
        *(_block(block, index) for index, block in enumerate(blocks)),
        f"<script>\n{(_HERE / 'page.js').read_text()}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _contents(blocks: Sequence[Block]) -> Iterable[str]:
    """Links to all sections, a line for each file."""
    lines: list[list[str]] = []
    for index, block in enumerate(blocks):
        if isinstance(block, Heading):
            link = f'<a href="#part-{index}">{escape(block.text)}</a>'
            if block.level == 2 or not lines:
                lines.append([])
            lines[-1].append(f"<strong>{link}</strong>" if block.level == 2 else link)
    return ["<nav>", *(f"<p>{' · '.join(line)}</p>" for line in lines), "</nav>"]


def _block(block: Block, index: int) -> str:
    if isinstance(block, Heading):
        return f'<h{block.level} id="part-{index}">{escape(block.text)}</h{block.level}>'
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Tiles):
        return _tiles(block)
    if isinstance(block, Marks):
        return _marks(block)
    if isinstance(block, Picture):
        return _picture(block)
    return _table(block)


def _tiles(block: Tiles) -> str:
    tiles = (f"<div><b>{escape(value)}</b><span>{escape(text)}</span></div>" for value, text in block.tiles)
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _marks(block: Marks) -> str:
    items = (
        f'<li class="{_CLASSES[mark.met]}"><b>{_SIGNS[mark.met]} {mark.word}</b> '
        f"{escape(mark.text)} <span>{escape(mark.detail)}</span></li>"
        for mark in block.marks
    )
    return f'<ul class="marks">\n{chr(10).join(items)}\n</ul>'


def _picture(block: Picture) -> str:
    drawing = style.svg(block.figure, block.name, block.alternative)
    return f"<figure>\n{drawing}\n<figcaption>{escape(block.caption)}</figcaption>\n</figure>"


def _table(block: Table) -> str:
    head = "".join(
        f'<th scope="col"{_NUMBER if numeric else ""}>{escape(title)}</th>'
        for title, numeric in zip(block.head, block.numeric, strict=True)
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in block.rows)
    body = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    body = f'<div class="wide">{body}</div>'
    if block.folded:
        return f"<details><summary>{escape(block.title)}</summary>{body}</details>"
    title = f'<p class="title">{escape(block.title)}</p>\n' if block.title else ""
    return title + body


def _cell(item: Item) -> str:
    if not isinstance(item, Number):
        return f"<td{_LONG if len(item) > _MUCH else ''}>{escape(item)}</td>"
    key = "" if item.value is None else f' data-value="{item.value!r}"'
    return f"<td{_NUMBER}{key}>{escape(item.text)}</td>"
