"""What the README and docs/family.md show is true: examples run, commands and files exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README, FAMILY = ROOT / "README.md", ROOT / "docs" / "family.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="runs in a source tree only")


@pytest.mark.parametrize(("page", "count"), [(README, 3), (FAMILY, 3)])
def test_examples_run_and_their_comments_are_right(page, count):
    pytest.importorskip("torch")
    scope, checked = {}, 0
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(code, scope)
        for names, comment in re.findall(r"^([\w, ]+) = .*#(.*\(\d.*)$", code, flags=re.MULTILINE):
            shapes = [tuple(map(int, each.split(","))) for each in re.findall(r"\((\d[\d, ]+)\)", comment)]
            assert [tuple(scope[name].shape) for name in names.split(", ")] == shapes, comment
            checked += 1
    assert checked == count


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


def test_the_example_of_patches_runs():
    pytest.importorskip("torch")
    from tests._support import hosts

    hosts.need("transformers")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "patches.md").read_text(), flags=re.DOTALL)
    exec(code, {})


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    found = re.findall(r"^make (\w+)|`make (\w+)", README.read_text(), flags=re.MULTILINE)
    named = {first or second for first, second in found} | {"lint", "clean", "help"}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", [README, FAMILY])
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert targets
    for target in targets:
        assert (page.parent / target).exists(), target


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
