"""What the README shows is true: its example runs and its commands exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="runs in a source tree only")


def test_example_runs_and_its_comment_is_right():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    scope = {}
    exec(code, scope)
    comment = code.rpartition("#")[2]
    shapes = [tuple(map(int, shape.split(","))) for shape in re.findall(r"\(([\d, ]+)\)", comment)]
    assert [tuple(scope["feature_map"].shape), tuple(scope["tokens"].shape)] == shapes


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    found = re.findall(r"^make (\w+)|`make (\w+)", README.read_text(), flags=re.MULTILINE)
    named = {first or second for first, second in found} | {"lint", "clean", "help"}
    assert {"demo", "test"} <= named <= targets


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (ROOT / target).exists(), target


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


def test_the_excerpt_of_the_papers_tables_is_right():
    pytest.importorskip("torch")
    from tools.paper import counting
    from tools.paper.rows import ROWS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting.importlib.util, "find_spec", lambda _: None)  # fvcore takes long, and agrees
        rows = re.findall(
            r"^\| ((?:VT-|R)[^|]*?)(?: \\\*)? \| (\S+) \| (\S+) \| (\S+) \|$", README.read_text(), re.M
        )
        assert len(rows) == 7
        for name, paper, written, executed in rows:
            found = counting.counted(ROWS[name])
            assert paper == found.row.printed_macs
            digits = len(written.partition(".")[2])
            assert (written, executed) == (f"{found.written:.{digits}f}", f"{found.executed:.{digits}f}")
