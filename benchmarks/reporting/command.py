"""``python -m benchmarks report``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from benchmarks.networks.records import NetworkRun
from benchmarks.reporting.blocks import Block, Picture
from benchmarks.reporting.sources import Source, read_all

TITLE = "vt_fast benchmarks"
PAGE, TEXT = "report.html", "report.md"


def add_arguments(parser: argparse.ArgumentParser, folder: Path) -> None:
    """The command's options; ``folder``: where the report goes unless told."""
    parser.add_argument("files", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--output", type=Path, default=folder, metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--pictures", nargs="+", metavar="NAME", help="only these PNGs and no page, such as cpu-speedup"
    )


def main(options: argparse.Namespace) -> int:
    """Write the report; 2 where a file cannot be read, a picture is not known, or matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        print("error: the report needs matplotlib, which the extra demo brings", file=sys.stderr)
        return 2
    try:
        sources = read_all(options.files)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    made = [block for source in sources for block in blocks(source)]
    names = [block.name for block in made if isinstance(block, Picture)]
    unknown = [name for name in options.pictures or () if name not in names]
    if unknown:
        print(
            f"error: --pictures must be of {', '.join(names)}, got {', '.join(unknown)}",
            file=sys.stderr,
        )
        return 2
    written = write(made, options.output, options.pictures)
    print("\n".join(f"written to {path}" for path in written))
    return 0


def write(made: Sequence[Block], folder: Path, pictures: Collection[str] | None = None) -> list[Path]:
    """Write page, text and PNGs, or only the PNGs of these names; returns the paths."""
    from benchmarks.reporting import markdown, page, style

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if pictures is None:
        for file, text in ((PAGE, page.render(TITLE, made)), (TEXT, markdown.render(TITLE, made))):
            (folder / file).write_text(text)
            written.append(folder / file)
    for block in made:
        if isinstance(block, Picture) and (pictures is None or block.name in pictures):
            written.append(style.png(block.figure, folder / f"{block.name}.png"))
    return written


def blocks(source: Source) -> Iterator[Block]:
    """What one file amounts to."""
    from benchmarks.reporting import networks, ops, overhead, scaling

    if isinstance(source.run, NetworkRun):
        return networks.blocks(source.name, source.run)
    if scaling.is_series(source.run):
        return scaling.blocks(source.name, source.run)
    if overhead.is_overhead(source.run):
        return overhead.blocks(source.name, source.run)
    return ops.blocks(source.name, source.run)
