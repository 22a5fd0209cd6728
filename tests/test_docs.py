"""What the README and the pages in docs show is true: examples run, commands and files exist."""

import re

import pytest

from tests._support import pages
from tests._support.pages import DOCS, PAGES, README, ROOT

FAMILY = DOCS / "family.md"
# It compiles, which takes long: tests/test_docs_export.py.
EXPORT = DOCS / "guides" / "export.md"
# Headings in docs/troubleshooting.md whose message is not ours, or that are none.
OF_PYTORCH = (
    "It runs, but slowly",
    "The loss is NaN",
    "We failed to resolve torch.ops.vt_fast…",
    "Compiled functions can't take variable number of arguments",
)

pytestmark = pytest.mark.skipif(not PAGES, reason="runs in a source tree only")


@pytest.mark.parametrize("page", [page for page in pages.with_examples() if page != EXPORT], ids=pages.name)
@pytest.mark.filterwarnings("ignore")
def test_examples_run_and_show_what_is_true(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.run(page)


def test_the_runner_of_examples_notices_what_is_wrong():
    scope = {}
    pages.run_session(">>> a = 1\n>>> a + 1\n2\n", scope, "page")
    assert scope["a"] == 1
    with pytest.raises(AssertionError, match="Expected"):
        pages.run_session(">>> a + 1\n3\n", scope, "page")


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_no_python_is_left_untested(page):
    """Every fence of Python is one that the test above runs: none is indented or named otherwise."""
    fences = re.findall(r"```\s*(?:python|pycon|py)\b", page.read_text())
    assert len(fences) == len(pages.BLOCK.findall(page.read_text()))


def test_troubleshooting_names_messages_that_exist():
    """Messages that no example shows are in the source, but for what stands in place of "…"."""
    paths = [path for folder in ("vt_fast", "native_build") for path in (ROOT / folder).rglob("*.py")]
    source = "".join(path.read_text() for path in [*paths, *(ROOT / "csrc" / "torch").glob("*.h")])
    # A message may go over several lines, and hold quotation marks.
    source = re.sub(r"""(['"])\s*\n\s*f?['"]""", "", source).replace("\\", "").replace("`", "")
    text = (DOCS / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| (?!message |---)(.*?) \|", text, re.MULTILINE)
    for section in re.split(r"^##+ ", text, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        shown = "Traceback" in body and "+SKIP" not in body
        if "### " + heading in text and not shown and heading not in OF_PYTORCH:
            messages.append(heading)
    assert messages
    for message in messages:
        for part in re.split("…|(?<=built): ", message.replace("`", "")):  # a reason follows "not built: "
            assert part.strip(' ":,') in source, message


def test_the_table_of_switches_is_what_backends_take():
    pytest.importorskip("torch")
    from tests._support.family import TAKEN

    (section,) = re.findall(r"## What each(.*?)\n## ", FAMILY.read_text(), flags=re.DOTALL)
    head, *rows = re.findall(r"^\| (.*) \|$", section, flags=re.MULTILINE)
    names = head.replace("`", "").split(" | ")[1:]
    found = {name: set() for name in names}
    for switch, *cells in (row.split(" | ") for row in rows):
        for name, cell in zip(names, cells, strict=True):
            assert cell in ("yes", "no") or (name, switch) == ("cuda", "`token_bias`")
            if cell == "yes":
                found[name].add(switch)
    assert found == TAKEN


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    found = [
        first or second
        for page in PAGES
        for first, second in re.findall(
            r"^make ([\w-]+)|`make ([\w-]+)", page.read_text(), flags=re.MULTILINE
        )
    ]
    named = {*found, "lint", "clean", "help"}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_pictures_are_what_the_code_draws():
    pytest.importorskip("torch")
    from tools.docs import pictures

    drawn = {f"{each}.svg" for each in pictures.PICTURES}
    assert drawn == {path.name for path in pictures.FOLDER.iterdir()}
    for each, draw in pictures.PICTURES.items():
        assert (pictures.FOLDER / f"{each}.svg").read_text() == draw().svg(), "python -m tools.docs.pictures"


def test_numbers_in_the_pictures_page():
    """The counts that docs/concepts.md states are those that are computed."""
    pytest.importorskip("torch")
    from tools.docs import pictures

    forward = {
        way: sum(count for _, count in steps["forward"]) for way, steps in pictures.moves_of_a_block().items()
    }
    assert forward == {"plain": 9, "fused": 3}
    assert "One pass instead of nine moves" in (DOCS / "concepts.md").read_text()


def test_second_derivatives_work_on_the_ways_out():
    torch = pytest.importorskip("torch")
    import vt_fast.reference.ops as ops
    from vt_fast.nn import FilterTokenizer

    assert "vt_fast.reference.ops" in README.read_text()
    x, queries = torch.randn(1, 6, 4, requires_grad=True), torch.randn(2, 4)
    results = ops.tokenize(x, queries), FilterTokenizer(4, 2, backend="reference")(x)
    for result in results:
        pooled = result[0] if isinstance(result, tuple) else result
        (first,) = torch.autograd.grad(pooled.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        assert second.abs().sum() > 0
