"""Whole runs in this process: flags, data, and errors."""

import importlib
import json
import re
import shlex
import sys

import numpy as np
import pytest
import torch

from recipe import loop
from recipe.requirements import need
from tests.examples.conftest import ROOT

pytestmark = [
    pytest.mark.usefixtures("libraries"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*optimizer.step:UserWarning"),
]
SMALL = ("--image-size", "8", "--workers", "0")
CLASSIFY = (
    *shlex.split("--data digits --model tests._support.tiny_nets:classifier --batch-size 449"),
    *SMALL,
)


def classify(output, *flags, epochs=1, data=CLASSIFY):
    import train_classification

    return train_classification.main([*data, "--epochs", str(epochs), "--output", str(output), *flags])


def segment(output, *flags, epochs=1):
    import train_segmentation

    common = ("--model", "tests._support.tiny_nets:segmenter", "--workers", "0", "--output", str(output))
    return train_segmentation.main([*common, *flags, "--epochs", str(epochs)])


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_says_what_it_did(tmp_path, capsys):
    run = classify(tmp_path, "--batch-size", "64", "--lr", "0.2", "--log-steps", "10", epochs=3)
    found = [record for record in records(tmp_path) if record["kind"] == "epoch"]
    assert [record["epoch"] for record in found] == [1, 2, 3]
    assert found[-1]["train_loss"] < found[0]["train_loss"]
    assert found[-1]["top1"] > 0.4  # chance: 0.1
    assert [record["step"] for record in records(tmp_path) if record["kind"] == "step"] == [10, 20] * 3
    weights = torch.load(tmp_path / "weights.pt")
    assert all(torch.equal(value, weights[name]) for name, value in run.net.state_dict().items())
    printed = capsys.readouterr().out
    assert "lr 0.2" in printed
    assert "64 images = 1 processes x 1 passes x 64; an epoch: 21 steps" in printed


def test_a_teacher_teaches(tmp_path, capsys):
    classify(tmp_path / "teacher", "--batch-size", "64", "--lr", "0.2", epochs=2)
    teacher = (
        "--teacher",
        "tests._support.tiny_nets:classifier",
        "--teacher-checkpoint",
        str(tmp_path / "teacher" / "last.pt"),
    )
    run = classify(tmp_path / "student", *teacher, "--distillation", "0.8", "--lr", "0.2")
    # With the teacher's own weights, only 0.2 cross-entropy remains.
    run.net.load_state_dict(torch.load(tmp_path / "teacher" / "weights.pt"))
    images, labels = next(iter(run.loaders.val))
    run.net.eval()
    expected = 0.2 * torch.nn.functional.cross_entropy(run.net(images), labels)
    torch.testing.assert_close(run.loss(run.net, images, labels), expected)


@pytest.mark.parametrize(
    "flags", [["--amp", "bf16"], ["--amp", "fp16"], ["--compile", "eager"], ["--channels-last"]]
)
def test_ways_to_run_do_not_change_what_is_learned_by_much(flags, tmp_path):
    common = ("--lr", "0.05", "--deterministic")
    plain = classify(tmp_path / "plain", *common)
    other = classify(tmp_path / "other", *common, *flags)
    assert plain.net.state_dict().keys() == other.net.state_dict().keys()
    for name, value in plain.net.state_dict().items():
        assert other.net.state_dict()[name].dtype == value.dtype
        torch.testing.assert_close(other.net.state_dict()[name], value, rtol=0.05, atol=5e-3)
    if "--amp" in flags:  # the narrow dtype was used
        assert any(
            not torch.equal(other.net.state_dict()[name], value)
            for name, value in plain.net.state_dict().items()
        )
    if "fp16" in flags:
        assert "scale" in torch.load(tmp_path / "other" / "last.pt")["scaler"]
    if "--channels-last" in flags:
        assert other.net[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_resumed_with_another_number_of_passes(tmp_path, monkeypatch, capsys):
    data = ("--data", "digits", "--model", "tests._support.tiny_nets:exact", "--batch-size", "448", *SMALL)
    flags = ("--checkpoint-steps", "1", "--log-steps", "1")
    whole = classify(tmp_path / "whole", *flags, data=data, epochs=2)

    class Stopped(Exception):
        pass

    def stop(run, loss, bar):
        if (run.epoch, run.step) == (1, 2):
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_log_step", stop)
        with pytest.raises(Stopped):
            classify(tmp_path / "parts", *flags, data=data, epochs=2)
    parts = classify(tmp_path / "parts", *flags, "--micro-batch", "112", data=data, epochs=2)
    printed = capsys.readouterr().out
    assert "1 epochs and 1 steps, not bit for bit" in printed
    for name, value in whole.net.state_dict().items():
        torch.testing.assert_close(parts.net.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    losses = [next(each for each in reversed(records(tmp_path / name))) for name in ("whole", "parts")]
    assert losses[0]["train_loss"] == pytest.approx(losses[1]["train_loss"], rel=1e-6)


def test_a_folder_of_images(tmp_path):
    image = need("PIL.Image")
    generator = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("dark", "bright")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(128 * label, 128 * label + 128, (20, 30, 3), dtype=np.uint8)
                image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    model = shlex.split("--model tests._support.tiny_nets:classifier --batch-size 4")
    data = ("--data", str(tmp_path), *model, *SMALL)
    run = classify(tmp_path / "output", "--lr", "0.02", data=data, epochs=8)
    assert run.net[-1].out_features == 2
    assert records(tmp_path / "output")[-1]["top1"] == 1
    (tmp_path / "val" / "dark").rename(tmp_path / "val" / "grey")
    with pytest.raises(SystemExit, match=r"same classes, but differ in \['dark', 'grey'\]"):
        classify(tmp_path / "output", data=data)


def test_segmentation_of_digits(tmp_path):
    flags = ("--data", "digits", "--image-size", "32", "--batch-size", "32", "--no-sync-bn", "--ema", "0.5")
    segment(tmp_path, *flags, epochs=2)
    found = records(tmp_path)
    assert found[-1]["train_loss"] < found[0]["train_loss"]
    # Predicting only background would give at most 1/11.
    assert found[-1]["pixel_accuracy"] > 0.5
    assert 0 < found[-1]["ema_mean_iou"] < 1


def test_a_folder_of_masks_of_several_sizes(tmp_path):
    image = need("PIL.Image")
    for part, count in (("train", 4), ("val", 2)):
        for name in ("images", "masks"):
            (tmp_path / part / name).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((24 + 2 * number, 40), np.uint8)
            mask[:, :20] = 1
            mask[0] = 255
            pixels = np.where(mask == 1, 250, 5).astype(np.uint8)
            image.fromarray(mask).save(tmp_path / part / "masks" / f"{number}.png")
            image.fromarray(pixels).convert("RGB").save(tmp_path / part / "images" / f"{number}.png")
    sizes = shlex.split("--image-size 16 --batch-size 4 --num-classes 2 --no-sync-bn")
    flags = ("--data", str(tmp_path), *sizes)
    segment(tmp_path / "output", *flags, "--decay", "step", "--lr", "0.1", epochs=30)
    assert records(tmp_path / "output")[-1]["mean_iou"] > 0.8
    (tmp_path / "val" / "masks" / "1.png").unlink()
    with pytest.raises(SystemExit, match=r"masks/1.png is missing"):
        segment(tmp_path / "output", *flags)


def test_training_stops_where_numbers_are_no_longer_finite(tmp_path):
    with pytest.raises(SystemExit, match=r"error: the loss is (nan|inf) in epoch 1; a smaller --lr may help"):
        classify(tmp_path, "--lr", "1e30")
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "2048"], "`batch` must be at most the 1347 training images, got 2048"),
        (["--micro-batch", "100"], r"multiple of micro_batch \* processes = 100 \* 1, got 449"),
        (
            ["--recipe", "advanced", "--warmup-epochs", "0"],
            "`distillation` must be 0 without a --teacher, got 0.8",
        ),
        (["--teacher", "resnet18", "--distillation", "0.8"], "the teacher has no trained weights"),
        (["--teacher-checkpoint", "x.pt"], "need a --teacher"),
        (["--model", "unet"], "unknown model unet"),
        (["--model-option", "wings=2"], "unexpected keyword argument 'wings'"),
        (["--data", "nowhere"], "`data` must be digits or a folder with train and val in it, got nowhere"),
    ],
)
def test_errors(flags, message, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        classify(tmp_path, *flags)


def test_a_folder_with_another_run_is_not_resumed(tmp_path):
    classify(tmp_path)
    with pytest.raises(SystemExit, match=r"lr = 0.1, now 0.2: choose another --output, or --restart"):
        classify(tmp_path, "--lr", "0.2")
    with pytest.raises(SystemExit, match="seed = '0', now '1'"):
        classify(tmp_path, "--seed", "1")
    assert classify(tmp_path, "--seed", "1", "--restart").epoch == 1
    assert len(records(tmp_path)) == 1
    # Already finished.
    assert classify(tmp_path, "--seed", "1").epoch == 1
    assert len(records(tmp_path)) == 1


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(SystemExit, match=r"error: the examples need timm: pip install 'vt_fast\[examples\]'"):
        classify(tmp_path)


def test_commands_of_the_readme_are_understood():
    text = (ROOT / "examples" / "README.md").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if re.match(r"(python|torchrun) ", line)]
    assert len(lines) >= 5
    for line in lines:
        before, _, flags = line.partition(".py ")
        script = importlib.import_module(before.rpartition("/")[2])
        script._parser().parse_args(shlex.split(flags))
