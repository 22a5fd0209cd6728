"""The examples of docs/guides/export.md run."""

import pytest

from tests._support import pages

PAGE = pages.DOCS / "guides" / "export.md"

pytestmark = [
    pytest.mark.skipif(not PAGE.exists(), reason="runs in a source tree only"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]


def test_examples_run(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    pages.run(PAGE)
