"""Hooks of MkDocs: pages from other folders, links between files of the repository, pictures in the page.

Pages are written so that they also read well as files: links are relative paths between files of the
repository. Here such a link becomes one to the page of that file, or to a page that shows the file. A link
to a file that does not exist is left alone, and MkDocs refuses it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]

#: Pages of the site that are files of other folders.
ELSEWHERE = {
    "overview.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples.md": "examples/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "kernels/sources.md": "csrc/README.md",
    "kernels/cpu.md": "csrc/cpu/README.md",
    "kernels/cuda.md": "csrc/cuda/README.md",
    "kernels/triton_tools.md": "tools/triton/README.md",
    "kernels/cuda_tools.md": "tools/cuda/README.md",
    "kernels/counters.md": "tools/counters/README.md",
}
#: Pages that the search puts before others, which have the same words less to the point.
FIRST = ("troubleshooting.md", "numerics.md", "compatibility.md")

_FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
_INCLUDE = re.compile(r"^<!-- include: (\S+)#(\S+) -->$", re.MULTILINE)
_PICTURE = re.compile(r"^!\[[^\]]*\]\((\S+\.svg)\)$", re.MULTILINE)

# The last cell of a row: names of tests.
_TESTS = re.compile(r"\| ((?:`tests/[^`]+`(?:, )?)+) \|$", re.MULTILINE)

_LANGUAGES = {".py": "python", ".cpp": "cpp", ".cu": "cuda", ".h": "cpp", ".csv": "text", ".txt": "text"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of other folders, and one for each other file that a page links to."""
    for uri, path in ELSEWHERE.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text()))
    linked: set[str] = set()
    for file in files.documentation_pages():
        origin = _origin(file.src_uri)
        for part, is_code in _parts(_included((ROOT / origin).read_text(), origin)):
            if not is_code:
                linked |= {_target(origin, path) for path, _ in _LINK.findall(part)}
    for path in sorted(linked):
        if (ROOT / path).is_file() and _page_of(path) == f"source/{path}.md":
            files.append(File.generated(config, _page_of(path), content=_listing(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Include sections of other pages and pictures, and turn links to files into links to pages."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        page.meta["search"] = {"exclude": True}
        return markdown
    if uri in FIRST:
        page.meta["search"] = {"boost": 3}
    origin = _origin(uri)
    made = []
    for part, is_code in _parts(_included(markdown, origin)):
        if not is_code:
            # In the page itself, a picture has the colours of the scheme that the reader has chosen.
            part = _PICTURE.sub(lambda match: _drawn(origin, match[1]), part)
            part = _TESTS.sub(lambda match: f"| {_details(match[1].split(', '))} |", part)
            part = _LINK.sub(lambda match: _relinked(uri, origin, match[1]) + (match[2] or ""), part)
        made.append(part)
    return "".join(made)


def _origin(uri: str) -> str:
    """The file of a page, from the root of the repository."""
    return ELSEWHERE.get(uri, f"docs/{uri}")


def _page_of(path: str) -> str:
    """The page or the asset of a file of the repository."""
    for uri, source in ELSEWHERE.items():
        if path == source:
            return uri
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def _target(origin: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))


def _relinked(uri: str, origin: str, path: str) -> str:
    target = _target(origin, path)
    if not (ROOT / target).is_file():
        return path
    return posixpath.relpath(_page_of(target), posixpath.dirname(uri) or ".")


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """The text of a page in parts, each with whether it is a block of code."""
    end = 0
    for block in _FENCED.finditer(markdown):
        yield markdown[end : block.start()], False
        yield block[0], True
        end = block.end()
    yield markdown[end:], False


def _included(markdown: str, origin: str) -> str:
    """The text with each ``<!-- include: FILE#SECTION -->`` replaced by that section, without its heading."""

    def section(match: re.Match[str]) -> str:
        path = _target(origin, match[1])
        text = (ROOT / path).read_text()
        for heading in re.finditer(r"^(#+) (.+)$", text, re.MULTILINE):
            if heading[2].lower().replace(" ", "-") == match[2]:
                body = text[heading.end() :]
                following = re.search(rf"^#{{1,{len(heading[1])}}} ", body, re.MULTILINE)
                body = body[: following.start()] if following else body
                return _moved(body.strip(), path, origin)
        raise ValueError(f"{origin}: {path} has no section #{match[2]}")

    return _INCLUDE.sub(section, markdown)


def _moved(markdown: str, path: str, origin: str) -> str:
    """Text of one file in another one: its links lead to the same files."""
    back = posixpath.relpath(posixpath.dirname(path) or ".", posixpath.dirname(origin) or ".")
    return _LINK.sub(lambda link: posixpath.join(back, link[1]) + (link[2] or ""), markdown)


def _drawn(origin: str, path: str) -> str:
    svg = (ROOT / _target(origin, path)).read_text().strip()
    return f'<figure class="drawing" markdown="0">{svg}</figure>'


def _details(tests: list[str]) -> str:
    """Long names that few readers want to see."""
    count = "1 test" if len(tests) == 1 else f"{len(tests)} tests"
    return f"<details><summary>{count}</summary>{'<br>'.join(tests)}</details>"


def _listing(path: str) -> str:
    text = (ROOT / path).read_text()
    language = _LANGUAGES.get(Path(path).suffix, "text")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", text))])
    return f"# {path}\n\n{fence}{language}\n{text}{fence}\n"
