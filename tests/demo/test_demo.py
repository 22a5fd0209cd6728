"""A quick run of the whole demo, and its tables."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")

from demo import backends, comparison, digits, nets, story  # noqa: E402
from demo.clusters import cluster  # noqa: E402
from demo.pictures import Picture, load_all  # noqa: E402
from demo.sheets import cluster_sheet  # noqa: E402
from demo.timing import interleaved_medians, one_thread  # noqa: E402
from vt_fast import backends as all_backends  # noqa: E402
from vt_fast.__main__ import main  # noqa: E402


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One quick run on two pictures of the same name."""
    folder = tmp_path_factory.mktemp("demo")
    paths = []
    for name, size in (("a", (70, 50)), ("b", (30, 90))):
        (folder / name).mkdir()
        paths.append(folder / name / "mi$n_{e$.png")  # must not be parsed as a formula
        noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(paths[-1])
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    output = folder / "deep" / "out"
    status = main(["demo", *map(str, paths), "--quick", "--output", str(output)])
    assert status == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    return output


def test_all_files_are_there(demo):
    names = {path.name for path in demo.iterdir()}
    assert names == {
        "digits_attention.png",
        "scenes_attention.png",
        "clusters_mi_n__e_.png",
        "clusters_mi_n__e__2.png",
        "report.txt",
        "report.json",
    }


@pytest.mark.parametrize("name", ["digits_attention.png", "scenes_attention.png", "clusters_mi_n__e_.png"])
def test_sheets_are_pictures_with_something_on_them(demo, name):
    with Image.open(demo / name) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert min(pixels.shape[:2]) > 400
    inked = (pixels.min(2) < 200).mean()
    assert 0.01 < inked < 0.9


def test_report_has_both_nets_and_every_backend(demo):
    report = json.loads((demo / "report.json").read_text())
    assert report["quick"] is True
    assert set(report["digits"]) == {"VT", "convolution"}
    for result in report["digits"].values():
        assert result["held_out"] == 450
        assert result["accuracy"] == result["correct"][0] / 450
        assert result["macs"] > 0
        assert result["step"] > 0
    assert 0 <= report["scenes"]["mean_iou"] <= 1
    assert 0 < report["scenes"]["mean_iou_by_colour"] < 1
    codes = {line["code"] for line in report["backends"]}
    assert codes == {"eager", *(name for name, reason in all_backends.report() if reason is None)}
    ops = [line["op"] for line in report["backends"]]
    assert {"tokenize", "project", "project_tokenize", "stack of two"} == set(ops)
    assert report["machine"]["versions"]["torch"].startswith(torch.__version__.partition("+")[0])


def test_report_text_is_what_was_printed(demo):
    text = (demo / "report.txt").read_text()
    for part in ("held-out accuracy", "better", "digits_attention.png", "project_tokenize", "maps"):
        assert part in text


def test_lines_are_right_about_errors_and_memory():
    lines = backends.measure(quick=True)
    rounding = torch.finfo(torch.float32).eps
    for line in lines:
        # Sums over at most 16 channels and 12 pixels, a few of them in a row.
        assert 0 < line.error < 100 * rounding, line
        assert 0 < line.gradient_error < 100 * rounding, line
        assert 0 < line.forward_peak <= line.both_peak, line
    projected = [line for line in lines if line.op == "project"]
    assert all(line.forward_peak >= 1 for line in projected)  # the map it returns


def test_a_wrong_result_shows_as_an_error():
    right, wrong = (torch.ones(3), torch.full((2,), 10.0)), (torch.ones(3), torch.full((2,), 11.0))
    assert backends._error(right, right) == 0
    assert backends._error(wrong, right) == pytest.approx(0.1)


def test_convolution_has_the_macs_of_the_paper():
    token_net, convolution = nets.TokenNet(), nets.ConvolutionNet()
    as_written = nets.macs(token_net, backend="reference")
    assert nets.macs(convolution) == pytest.approx(as_written, rel=0.01)
    assert nets.macs(token_net) <= as_written


def test_macs_of_the_convolution_by_hand():
    stem = 64 * (9 * 1 * 32 + 9 * 32 * 64)
    block = 16 * (9 * 64 * 52 + 9 * 52 * 52 + 64 * 52)
    assert nets.macs(nets.ConvolutionNet()) == stem + block + 52 * 10


def test_counting_leaves_the_net_as_it_was():
    net = nets.TokenNet().train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    nets.macs(net, backend="reference")
    assert net.training
    assert net.stage.backend is None
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_split_is_fixed_stratified_and_disjoint():
    first, second = digits.load(), digits.load()
    assert torch.equal(first.test, second.test)
    assert len(first.train) + len(first.test) == 1797
    shares = torch.bincount(first.test_labels) / torch.bincount(
        torch.cat([first.train_labels, first.test_labels])
    )
    assert (shares - 0.25).abs().max() < 0.01
    ink = digits.ink(first.test)
    assert ink.min() == 0
    torch.testing.assert_close(ink.max(), torch.tensor(1.0))


def test_training_learns_and_comparison_names_the_winners(capfd):
    torch.manual_seed(0)
    data, net = digits.load(), nets.TokenNet()
    before = comparison.correct(net, data)
    comparison.train(net, data, "VT", epochs=4)
    assert "training VT" in capfd.readouterr().err
    assert comparison.correct(net, data) > max(before, 300)  # chance is 45
    results = {
        "VT": comparison.Result((440, 443), 450, 10, 12, 5, 0.2),
        "convolution": comparison.Result((445, 442), 450, 20, 20, 4, 0.1),
    }
    text = comparison.report(results)
    (better,) = (line for line in text.splitlines() if line.startswith("better"))
    assert better.split() == ["better", "convolution", "VT", "VT", "convolution", "convolution"]
    words = " ".join(text.split())
    assert "450 images are held out; seeds: 2." in words
    assert "convolution classifies 2.0 more of the 450 digits correctly than VT (by seed: +5, -1)." in words
    assert "Which of the two is better depends on the seed." in words
    assert "A step of convolution is 2.0 times as fast as one of VT, with 2.00 times the MACs." in words


@pytest.mark.parametrize(
    ("ours", "theirs", "said", "depends"),
    [
        ((3, 4), (3, 4), "Both classify as many of the 9 digits correctly (by seed: +0, +0).", False),
        ((3, 5), (4, 4), "Both classify as many of the 9 digits correctly (by seed: -1, +1).", True),
        ((3, 4), (4, 6), "b classifies 1.5 more of the 9 digits correctly than a (by seed: +1, +2).", False),
        ((3, 4), (6, 4), "b classifies 1.5 more of the 9 digits correctly than a (by seed: +3, +0).", False),
        ((5,), (4,), "a classifies 1.0 more of the 9 digits correctly than b (one seed).", False),
    ],
)
def test_verdict_on_seeds(ours, theirs, said, depends):
    nets = ("a", comparison.Result(ours, 9, 1, 1, 1, 1.0)), ("b", comparison.Result(theirs, 9, 1, 1, 1, 1.0))
    text = comparison._verdict(*nets)
    assert text.startswith(said)
    assert ("depends on the seed" in text) == depends


def test_verdict_on_backends_is_computed():
    def line(op, code, both, peak):
        return backends.Line(op, (2, 12, 16, 4), code, 0, 0, 1, both, 1, peak)

    lines = [line("project", "eager", 2, 4), line("project", "torch", 3, 2)]
    lines += [line("stack of two", "eager", 4, 4), line("stack of two", "torch", 1, 1)]
    text = backends.report(lines)
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    assert "groups of 16 channels" in words
    assert "on single ops 1.50 to 1.50 times the time and 0.50 to 0.50 times the memory of eager" in words
    assert "on the stack 0.25 to 0.25 times" in words


def test_attention_maps_of_both_tokenizers():
    maps = nets.TokenNet().eval().attention_maps(torch.rand(3, 1, 8, 8))
    assert [tuple(each.shape) for each in maps] == [(3, 8, 8, 8)] * 2
    for each in maps:
        torch.testing.assert_close(each.sum((2, 3)), torch.ones(3, 8))


def test_threads_are_restored_after_an_error():
    torch.set_num_threads(2)  # the autouse fixture restores the number

    def fail():
        with one_thread():
            assert torch.get_num_threads() == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.get_num_threads() == 2


def test_sheets_of_any_names_do_not_overwrite_each_other(tmp_path):
    names = ["same", "same", "1_same", "same_2", "Same", "a/b", "\udcff", "é" * 120, "é" * 121]
    pictures = [Picture(name, torch.zeros(3, 1, 1)) for name in names]
    paths = story._sheet_paths(pictures, tmp_path)
    assert len({path.name.lower() for path in paths}) == len(paths)
    for path in paths:
        assert path.parent == tmp_path
        path.write_text("")


def test_titles_of_the_same_name_show_the_folder(demo):
    paths = [demo.parent.parent / name / "mi$n_{e$.png" for name in "ab"]
    assert [picture.title for picture in load_all(paths)] == [str(path) for path in paths]
    assert [picture.title for picture in load_all(paths[:1])] == [""]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 4), (16, 9), (9, 300)])
def test_sheet_of_any_form_and_name(tmp_path, size):
    picture = Picture("x" * 250, torch.rand(3, *size), "\udcff\n" * 100)
    cluster_sheet(tmp_path / "a.png", picture, cluster(picture.pixels))
    with Image.open(tmp_path / "a.png") as sheet:
        assert 400 < min(sheet.size) < max(sheet.size) < 2500


def test_digits_tokens_peak_on_distinct_places(demo):
    attention = json.loads((demo / "report.json").read_text())["attention"]
    for figures in attention.values():
        assert 1 <= figures["distinct_places"] <= figures["tokens"] == 8
        assert 1 <= figures["effective_pixels"] <= 64


def test_folded_and_reference_filters_agree():
    torch.manual_seed(0)
    net, pictures = nets.TokenNet().double().eval(), torch.rand(3, 1, 8, 8).double()
    fast = net(pictures)
    nets.set_backend(net, "reference")
    torch.testing.assert_close(net(pictures), fast, atol=1e-10, rtol=1e-10)


def test_winner_and_tie():
    assert comparison._winner({"a": 1, "b": 2}, more_is_better=True) == "b"
    assert comparison._winner({"a": 1, "b": 1, "c": 2}) == "tie"


def test_medians_are_taken_in_turn():
    order = []
    seconds = interleaved_medians(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=5, warmup=2
    )
    assert order == ["a", "b"] * 7
    assert set(seconds) == {"a", "b"}


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("torch", "torch"),
        ("matplotlib", "matplotlib"),
        ("sklearn", "scikit-learn"),
        ("tabulate", "tabulate"),
        ("tqdm", "tqdm"),
        ("PIL", "Pillow"),
    ],
)
def test_missing_extra_is_one_line_and_status_2(name, package):
    code = f"""
import sys
class Hide:
    def find_spec(self, module, path=None, target=None):
        if module.partition(".")[0] == "{name}":
            raise ModuleNotFoundError(f"No module named {{module!r}}", name=module)
sys.meta_path.insert(0, Hide())
from vt_fast.__main__ import main
sys.exit(main(["demo"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"the demo needs {package}:" in done.stderr
    assert 'pip install ".[demo]"' in done.stderr


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (OSError(28, "No space"), 2)])
def test_interruptions_and_full_disks_end_without_a_traceback(tmp_path, monkeypatch, capsys, error, status):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("demo.story.tell", fail)
    assert main(["demo", "--output", str(tmp_path)]) == status
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_folder_that_takes_no_files_is_refused_before_training(monkeypatch, capsys):
    monkeypatch.setattr("demo.story.tell", lambda *arguments, **options: pytest.fail("trained"))
    if not Path("/proc").is_dir():
        pytest.skip("needs a folder that is never writable")
    assert main(["demo", "--output", "/proc"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write to the folder /proc")


def test_a_broken_pipe_ends_quietly():
    command = [sys.executable, "-m", "vt_fast", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
