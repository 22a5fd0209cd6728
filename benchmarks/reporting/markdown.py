"""A report as Markdown; its pictures are files beside it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.reporting.blocks import (
    Block,
    Heading,
    Marks,
    Paragraph,
    Picture,
    Table,
    Tiles,
    text_of,
)


def render(title: str, blocks: Sequence[Block]) -> str:
    """The text. Tables that a page folds away are folded here too, as far as a viewer knows how."""
    return "\n\n".join([f"# {title}", *map(_block, blocks)]) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Tiles):
        return "\n".join(f"- **{value}** {text}" for value, text in block.tiles)
    if isinstance(block, Marks):
        return "\n".join(f"- **{mark.word}**: {mark.text} ({mark.detail})" for mark in block.marks)
    if isinstance(block, Picture):
        return f"![{block.alternative}]({block.name}.png)\n\n{block.caption}"
    return _table(block)


def _table(block: Table) -> str:
    lines = [
        _line(block.head),
        "|" + "|".join("---:" if each else "---" for each in block.numeric) + "|",
        *(_line([text_of(item) for item in row]) for row in block.rows),
    ]
    body = "\n".join(lines)
    if block.folded:
        return f"<details><summary>{block.title}</summary>\n\n{body}\n\n</details>"
    return f"**{block.title}**\n\n{body}" if block.title else body


def _line(texts: Sequence[str]) -> str:
    # A bar would end the cell.
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |"
