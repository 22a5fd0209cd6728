"""The numbers in docs/scaling.md that need no machine are those of `tools.sharding`."""

from pathlib import Path

from tools import sharding

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text()


def test_the_model_is_in_the_page():
    assert "\n".join(sharding.model(1_000_000)) in PAGE
    assert "This is a model. Nothing in this table has been measured." in PAGE


def test_bytes_are_those_of_tokens():
    size, others = 4 * sharding.B * sharding.L * sharding.C, 3
    forward = size + 4 * sharding.B * sharding.L + 4
    for op, way, sent in (
        ("tokenize", "forward", forward),
        ("tokenize", "backward", size + 4),
        ("project", "backward", 2 * size + 4),
        ("project_tokenize", "forward", forward),
        ("project_tokenize", "backward", 3 * size + 4),
    ):
        assert f"| `{op}` | {way} | 1 | {sent:,} B | {others * sent:,} B | {sent / size:.3f} |" in PAGE


def test_a_group_of_one_takes_no_time():
    assert sharding.gather(1000, 1, sharding.INSIDE) == 0
    assert sharding.gather(1000, 8, sharding.Link(1.0, 1e3)) == 3 + 7
