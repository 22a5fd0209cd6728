"""Plans of the modes ``scaling`` and ``overhead``, and what their processes report; no time is asserted."""

import pytest

from benchmarks import overhead, scaling, shapes
from benchmarks.processes import Message, UsageError
from benchmarks.results import FAILED, OK, OURS, SKIPPED
from benchmarks.shapes import OPS, Case
from tests._support.measuring import plans, reported


def test_huge_cases_have_a_process_of_their_own():
    points = shapes.points("cpu", "fp32", "nchw", 2, only=["N", "threads"])
    (alone, first), (many, second), *huge = scaling.processes(points)
    assert (first, second) == (1, 2)
    assert [case.op for case in alone] == list(OPS)
    assert [(len(cases), threads) for cases, threads in huge] == [(1, 2)] * 3
    assert {cases[0].shape.sizes[1] for cases, _ in huge} == {2048**2}
    everything = [*alone, *many, *(case for cases, _ in huge for case in cases)]
    assert sorted(everything) == sorted(point.case for point in points)
    on_gpu = shapes.points("cuda", "bf16", "nchw", None, only=["N", "threads"])
    assert {threads for _, threads in scaling.processes(on_gpu)} == {None}


def test_every_point_is_planned_with_its_series():
    points = shapes.points("cpu", "fp32", "channels_last", 1, quick=True)
    found = plans("scaling --quick --threads 1")
    series = {Case.of(spec): spec["fields"] for plan in found for spec in plan.problems}
    assert series == {case: {"mode": "scaling", "series": text} for (case, _), text in points.items()}
    assert {plan.memory_bytes > 1e9 for plan in found} == {True}
    on_gpu = plans("scaling --device cuda:1")
    assert {(plan.device, plan.memory_bytes) for plan in on_gpu} == {("cuda:1", None)}
    assert {spec["case"][2] for plan in on_gpu for spec in plan.problems} == {"bf16"}


def test_what_does_not_fit_is_kept():
    words = "scaling --quick --threads 1 --op tokenize --only N --pass forward"
    (plan,) = plans(f"{words} --memory 0.0001 --peers eager")
    found = {(row.series, row.contender): row for row in reported(plan)}
    assert {row.mode for row in found.values()} == {"scaling"}
    for (series, _), row in found.items():
        assert row.status == (SKIPPED if series == "N=256" else OK)
        assert (row.needs_bytes or 0) > (100_000 if series == "N=256" else -1)
    assert "needs about" in found["N=256", "eager"].reason


@pytest.mark.parametrize("words", ["--threads 0", "--peers unheard-of", "--memory 0"])
def test_bad_arguments_are_refused(words):
    with pytest.raises(UsageError, match=words.split()[0]):
        plans(f"scaling {words}")


def test_calls_at_tiny_shapes():
    (plan,) = plans("overhead --quick --op tokenize stack --peers eager --no-first-call")
    found = reported(plan)
    assert {(row.mode, row.status, row.floor, row.threads) for row in found} == {("overhead", OK, None, 1)}
    assert {(row.case, row.which) for row in found} == {
        (case, which) for case in ("tokenize", "stack of 1") for which in shapes.PASSES
    }
    assert {"vt_fast torch", "eager"} <= {row.contender for row in found}
    assert {row.median < 1 for row in found} == {True}


def test_first_calls_of_fresh_processes(monkeypatch):
    calls, first = plans("overhead --quick")
    assert calls.repeat == overhead.QUICK_REPEAT
    assert [spec["contender"] for spec in first.problems] == ["vt_fast", "vt_fast torch", "eager", "sdpa"]
    first.problems = first.problems[:1]
    rows = {row.which: row for row in reported(first)}
    assert list(rows) == ["import torch", "import vt_fast", "first call", "second call"]
    assert {(row.role, row.status, row.rounds) for row in rows.values()} == {(OURS, OK, 1)}
    assert rows["import torch"].median > rows["second call"].median > 0
    monkeypatch.setitem(overhead._FIRST, "vt_fast nothing", "backend")
    first.problems[0]["contender"] = "vt_fast nothing"
    (row,) = [row for message in overhead.work(first) for row in message.rows]
    assert (row.status, row.reason) == (FAILED, "its process ended with status 1")


def test_compilers_begin_with_empty_caches(monkeypatch):
    folders = []

    def fresh(plan):
        folders.append(overhead.os.environ["TRITON_CACHE_DIR"])
        yield Message(facts={"seconds": {"first call": 1.0}})

    monkeypatch.setattr(overhead, "messages", fresh)
    (_, plan) = plans("overhead")
    rows = [row for message in overhead.work(plan) for row in message.rows]
    assert [row.contender for row in rows[:-2]] == ["vt_fast", "vt_fast torch", "eager", "sdpa"]
    assert [(row.contender, row.case, row.rounds) for row in rows[-2:]] == [
        ("compile eager", "first call of tokenize, empty caches", 1),
        ("compile eager", "first call of tokenize", overhead._PROCESSES),
    ]
    assert len(set(folders)) == len(plan.problems)
    assert len(set(folders[-1 - overhead._PROCESSES :])) == 1
