"""The pages of the documentation, and their examples."""

import contextlib
import doctest
import io
import re
from pathlib import Path

from tests._support import hosts

ROOT = Path(__file__).resolve().parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
FOLDERS = ("benchmarks", "csrc", "docs", "examples", "tools")
# In a source tree only.
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(page for each in FOLDERS for page in sorted((ROOT / each).rglob("*.md"))),
]
# A block of Python, and what it prints.
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SHAPE = re.compile(r"^(\w[\w, ]*) = .*#(.*\(\d.*)$", re.MULTILINE)
CLAIM = re.compile(r"^[^#\n]* = .*#.*\(\d[\d, ]+\)", re.MULTILINE)  # what the line above must not pass over
# Packages that examples import and that need not be installed.
OPTIONAL = ("onnxruntime", "timm", "torchvision", "transformers")


def name(page):
    """Its path in the repository."""
    return page.relative_to(ROOT).as_posix()


def with_examples():
    """The pages that have any."""
    return [page for page in PAGES if BLOCK.search(page.read_text())]


def run(page):
    """Run the examples of a page, which share their names.

    What they print is compared with the block of text after them, and results with shapes in comments.
    """
    text = page.read_text()
    for package in OPTIONAL:
        if re.search(rf"^(?:import|from) {package}\b", text, re.MULTILINE):
            hosts.need(package)
    scope, checked = {"__name__": "__main__"}, 0
    for language, code, expected in BLOCK.findall(text):
        if language == "pycon":
            run_session(code, scope, name(page))
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, name(page), "exec"), scope)
        if expected:
            assert doctest.OutputChecker().check_output(expected, printed.getvalue(), FLAGS), (
                printed.getvalue()
            )
        for names, comment in SHAPE.findall(code):
            shapes = [tuple(map(int, each.split(","))) for each in re.findall(r"\((\d[\d, ]+)\)", comment)]
            found = [tuple(scope[each].shape) for each in names.split(", ") if each != "_"]
            assert found == shapes, comment
            checked += 1
    assert checked == sum(len(CLAIM.findall(code)) for _, code, _ in BLOCK.findall(text))


def run_session(code, scope, page):
    """Run what looks like an interactive session, as doctest does."""
    test = doctest.DocTestParser().get_doctest(code, scope, page, page, 0)
    said = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)
    scope |= test.globs
