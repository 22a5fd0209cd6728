"""The claims benchmark: splits, choices before tests, repeatable trainings, resuming, intervals."""

import gzip
import os
import pickle
from concurrent.futures import Future

import msgspec
import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import cli
from benchmarks.claims import command, data, nets, plan, report, training
from benchmarks.claims.data import PARTS, TASKS, TEST, VALIDATION
from benchmarks.claims.training import Job, Row
from benchmarks.processes import UsageError


@pytest.fixture(autouse=True)
def packages(tmp_path, monkeypatch):
    """Random images in place of the packages' files."""
    random = np.random.default_rng(0)
    files = {"data": random.integers(0, 256, (400, 28, 28), dtype=np.uint8), "label": np.arange(400) % 10}
    files["data"][300:] = files["data"][:100]
    folder = tmp_path / "data/animal_mnist/data/Animal_MNIST"
    folder.mkdir(parents=True)
    for name, array in files.items():
        with gzip.open(folder / f"animal_{name}_version_3.gz", "wb") as file:
            pickle.dump(array, file)
    monkeypatch.setattr(data, "FOLDER", tmp_path / "data")
    caches = (data._animals, data._small_animals)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def job(net="backbone", part=VALIDATION, seed=0, lr=1e-3, steps=2, task="animals"):
    return Job(task=task, net=net, part=part, lr=lr, seed=seed, steps=steps)


def row(score, hits="", **fields):
    values = {"loss": 1.0, "macs": 1, "executed": 1, "parameters": 1, "seconds": 1.0, "validation": "1 2"}
    known = msgspec.structs.asdict(job(**fields))
    return Row(**known, status="ok", score=score, images=4, hits=hits, **values)


def choosing(score=lambda job: 60.0 if job.lr == 3e-3 else 50.0):
    found = []
    for _ in range(2):
        for each in plan.choosing(found):
            if each.key not in {row.key for row in found}:
                found.append(row(score(each), **msgspec.structs.asdict(each)))
    return found


def test_parts_are_disjoint_and_equal_images_stay_together():
    parts = {part: {image.numpy().tobytes() for image in data._animals(part)[0]} for part in PARTS}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 300
    assert [sum(len(data._animals(part)[0]) for part in PARTS)] == [300]
    assert all(len(found) > 20 for found in parts.values())
    columns = [column for part in PARTS for column in data._COLUMNS[part]]
    assert sorted(set(columns)) == columns


def test_training_draws_from_its_own_part_alone(monkeypatch):
    asked = []
    original = data._animals
    monkeypatch.setattr(data, "_animals", lambda part: asked.append(part) or original(part))
    for task in ("animals", "pairs"):
        TASKS[task].draw(8, np.random.default_rng(0))
    assert asked
    assert set(asked) == {data.TRAINING}


def test_pairs_say_whether_the_animals_are_of_one_kind(monkeypatch):
    levels = [torch.full((3, data._ANIMAL, data._ANIMAL), (kind + 1) / 10) for kind in range(10)]
    monkeypatch.setattr(data, "_small_animals", lambda part: levels)
    pairs = data._pairs(data.TRAINING, 64, np.random.default_rng(0))
    for ink, same in zip(pairs.objects, pairs.labels, strict=True):
        assert (len(ink.unique()) == 2) == bool(same)
        assert (ink > 0).sum() == 2 * data._ANIMAL**2
    assert 16 < pairs.labels.sum() < 48


class Trick:
    def __reduce__(self):
        return os.mkdir, ("tricked",)


@pytest.mark.parametrize("made", [Trick(), np.array([Trick()], dtype=object), np.float64(1)])
def test_pickles_of_anything_but_arrays_are_refused(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "array.pickle"
    path.write_bytes(pickle.dumps(made))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="must hold a numpy array"):
        data.ArraysOnly(file).load()
    assert not (tmp_path / "tricked").exists()


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FOLDER", tmp_path / "none")
    with pytest.raises(UsageError, match="make claims-data"):
        data.load("animals", VALIDATION)


def test_the_test_part_waits_for_every_choice():
    rows = choosing(lambda job: job.lr)
    assert len(data.load("animals", TEST, rows=rows).labels) == len(data._animals(TEST)[0])
    for fewer in ((), rows[1:], rows[:-1]):  # the last is at an edge
        with pytest.raises(UsageError, match="out of reach"):
            data.load("animals", TEST, rows=fewer)
        with pytest.raises(UsageError, match="out of reach"):
            training.run(job(part=TEST), fewer)
    with pytest.raises(UsageError, match="part"):
        data.load("animals", data.TRAINING, rows=rows)


def test_choices_take_the_best_rate_of_each_network():
    best = {("animals", "vt"): 1e-2, ("pairs", "vt"): 3e-3, ("scenes", "fpn"): 3e-4, ("nuclei", "fpn"): 3e-2}

    def score(job):
        # rises towards the best rate; without one, all are equal
        return 90 - 10 * abs(
            plan.RATES.index(job.lr) - plan.RATES.index(best.get((job.task, job.net), job.lr))
        )

    rows = choosing(score)
    found = plan.choices(rows)
    assert {key: found[key] for key in best} == best
    assert found["animals", "conv"] == min(plan.RATES)
    tried = {key: {row.lr for row in rows if (row.task, row.net) == key} for key in best}
    assert tried["pairs", "vt"] == set(plan.RATES[1:-1])
    assert tried["animals", "vt"] == tried["nuclei", "fpn"] == set(plan.RATES[1:])
    assert tried["scenes", "fpn"] == set(plan.RATES[:-1])
    jobs = plan.tests(rows)
    assert len({each.key for each in jobs}) == sum(sum(nets.values()) for nets in plan.NETS.values())
    assert all(each.part == TEST and each.lr == found[each.task, each.net] for each in jobs)
    assert plan.CHOOSING not in {each.seed for each in jobs}


def test_every_claim_is_about_networks_that_are_trained():
    for claim in plan.CLAIMS:
        assert {claim.net, claim.than} <= set(plan.NETS[claim.task])
        assert claim.experiment in plan.EXPERIMENTS


@pytest.mark.parametrize(("stride", "side"), [(2, 28), (4, 56)])
def test_equal_means_the_macs_of_the_vt_stage(stride, side):
    image = torch.empty(1, side, side)
    counts = {name: nets.macs(name, 10, stride, image)[0] for name in ("vt", "conv-equal", "conv")}
    assert counts["conv-equal"] == pytest.approx(counts["vt"], rel=0.02)
    assert counts["conv"] > 1.1 * counts["vt"]


def test_trainings_repeat_and_seeds_differ():
    def known(row):
        return {**msgspec.structs.asdict(row), "seconds": 0}

    rows = choosing()
    first = training.run(job("vt", TEST, seed=1), rows)
    assert known(training.run(job("vt", TEST, seed=1), rows)) == known(first)
    assert known(training.run(job("vt", TEST, seed=2), rows))["loss"] != first.loss
    assert training.unpacked(first.hits, first.images).mean() * 100 == pytest.approx(first.score)
    assert 0 < first.entropy <= 1
    assert 0 < first.share < 1


def test_a_training_that_diverges_has_no_score():
    found = training.run(job("conv", lr=1e30, steps=6))
    assert (found.status, found.score) == ("diverged", 0.0)


def test_the_rate_warms_up_and_ends_at_zero():
    rates = [training.rate(step, 100) for step in range(101)]
    assert rates[0] < 0.1
    assert max(rates) == rates[14] == 1.0
    assert rates[:15] == sorted(rates[:15])
    assert rates[14:] == sorted(rates[14:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    jobs, ran = [job(seed=seed) for seed in range(4)], []

    class Inline:
        def __init__(self, *arguments):
            pass

        def submit(self, function, job, known):
            ran.append(job)
            if len(ran) == 3:
                raise KeyboardInterrupt
            future = Future()
            future.set_result(row(50.0 + job.seed, seed=job.seed))
            return future

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(command, "ProcessPoolExecutor", Inline)
    path, facts = tmp_path / "claims.csv", {"plan": "x", "complete": False}
    command.run(path, facts, [], jobs[:2], 1)
    facts, rows = command.load(path)
    assert facts == {"plan": "x", "complete": False}
    assert sorted(each.seed for each in rows) == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        command.run(path, facts, rows, jobs, 1)
    ran.clear()
    command.run(path, facts, rows, jobs[:3], 1)
    assert [each.seed for each in ran] == [2]
    assert sorted(each.score for each in command.load(path)[1]) == [50.0, 51.0, 52.0]


def test_results_of_another_plan_are_not_continued(tmp_path, capsys):
    path = tmp_path / "claims.csv"
    command.results.write(path, {"plan": "another"}, command._COLUMNS, [])
    assert cli.main(["claims", "run", "--file", str(path)]) == 2
    assert "another" in capsys.readouterr().err


def test_an_uncommitted_plan_sees_no_test_data(monkeypatch):
    for changes in (None, " M benchmarks/claims/plan.py"):
        monkeypatch.setattr(command.machine, "output", lambda *words, found=changes: found)
        with pytest.raises(UsageError, match="committed"):
            command.check_committed()
    monkeypatch.setattr(command.machine, "output", lambda *words: "")
    command.check_committed()


def test_intervals_without_common_images_are_students():
    gaps = [1.0, 3.0, 2.0, 2.5]
    found = report.interval(gaps)
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    assert report.interval([1.0, 1.0])[:3] == (1, 1, 1)


def test_intervals_cover_seeds_and_images():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        seeds, images = random.normal(0, 1, (5, 1)), random.normal(0, 10, (1, 100))
        gaps = 2 + seeds + images + random.normal(0, 5, (5, 100))
        found = report.interval(gaps.mean(1), gaps.mean(0))
        covered += found.low < 2 < found.high
    assert 0.93 * 400 < covered < 400


def test_differences_are_paired_by_seed():
    hits = {
        net: training.packed(torch.tensor(bits))
        for net, bits in (("vt", [True] * 4), ("conv", [True, False] * 2))
    }
    ours = [row(100.0, hits["vt"], net="vt", part=TEST, seed=seed) for seed in (0, 1)]
    theirs = [row(50.0, hits["conv"], net="conv", part=TEST, seed=seed) for seed in (1, 0)]
    found = report.difference(ours, theirs)
    assert (found.mean, found.seeds) == (50.0, 2)
    assert found.high - found.mean == pytest.approx(
        stats.t.ppf(0.975, 3) * np.std([0, 100, 0, 100], ddof=1) / 2
    )
    with pytest.raises(ValueError, match="same seeds"):
        report.difference(ours, theirs[:1])


@pytest.mark.parametrize(
    ("low", "high", "better", "as_good"),
    [
        (0.1, 0.2, report.REPEATS, report.REPEATS),
        (-0.1, 0.2, report.FAILS, report.REPEATS),
        (-0.1, 0.9, report.UNKNOWN, report.REPEATS),
        (-0.9, 0.9, report.UNKNOWN, report.UNKNOWN),
        (-0.9, -0.1, report.FAILS, report.UNKNOWN),
        (-0.9, -0.6, report.FAILS, report.FAILS),
    ],
)
def test_verdicts(low, high, better, as_good):
    found = report.Difference((low + high) / 2, low, high, 5)
    assert report.verdict(found, plan.BETTER, 0.5) == better
    assert report.verdict(found, plan.AS_GOOD, 0.5) == as_good


def test_a_report_of_what_there_is(tmp_path):
    pytest.importorskip("matplotlib")
    rows = choosing()
    for seed in range(5):
        rows += [row(90.0 + seed % 2, net="vt", part=TEST, seed=seed, task="pairs")]
        rows += [row(80.0, net="conv", part=TEST, seed=seed, task="pairs")]
        rows += [row(95.0, net="vt-none", part=TEST, seed=seed, task="pairs")]
    page, picture = report.write({"complete": False}, rows, tmp_path)
    text = page.read_text()
    assert "On pairs, `vt` is better than `conv`, with 1.00 times the MACs: **repeats**" in text
    assert "times the MACs: **does not repeat**; the interval lies below 0." in text
    assert "On digits, `vt` is better than `conv`: not run." in text
    assert "not complete" in text
    assert picture.stat().st_size > 10_000


def written(path, facts, rows):
    command.results.write(path, facts, command._COLUMNS, map(command._written, rows))
    return path


FACTS = {"plan": plan.digest(), "complete": False}


def test_a_training_that_diverges_at_once_is_read_again(tmp_path):
    rows = [msgspec.structs.replace(row(10.0), validation="", status="diverged")]
    assert command.load(written(tmp_path / "rows.csv", FACTS, rows))[1] == rows


@pytest.mark.parametrize(
    ("facts", "rows", "error"),
    [
        ({"plan": "x"}, [], "result file of claims, got none with complete"),
        (FACTS, [row(1.0), row(2.0)], "have a training once, got backbone on animals twice"),
        (FACTS, [row(1.0, net="other")], "have networks of the plan, got other on animals"),
    ],
)
def test_result_files_that_are_refused(tmp_path, facts, rows, error):
    with pytest.raises(ValueError, match=error):
        command.load(written(tmp_path / "rows.csv", facts, rows))


def test_no_report_of_another_plan(tmp_path, capsys):
    path = written(tmp_path / "rows.csv", FACTS | {"plan": "x"}, [row(1.0)])
    assert cli.main(["claims", "report", "--file", str(path), "--docs", str(tmp_path)]) == 2
    assert "must have results of this plan" in capsys.readouterr().err
    assert not (tmp_path / "claims.md").exists()
