"""What timm's training and validation scripts do with a model, and the scripts where their path is given."""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests._support import torchvision_stub
from vt_fast import models

NARROW = {"token_channels": 64, "num_tokens": 4}
# A folder with train.py and validate.py of timm's repository, which its package does not contain.
SCRIPTS = os.environ.get("VT_FAST_TIMM_SCRIPTS")


@pytest.fixture
def timm():
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    found = pytest.importorskip("timm")
    for part in ("loss", "optim", "task", "utils"):
        importlib.import_module(f"timm.{part}")
    models.register_with_timm()
    return found


def made(timm, **options):
    """A model from the arguments that train.py passes, most of which are None where no flag is given."""
    arguments = {
        "pretrained": False,
        "in_chans": 3,
        "num_classes": 5,
        "drop_rate": 0.0,
        "drop_path_rate": None,
        "drop_block_rate": None,
        "global_pool": None,
        "bn_momentum": None,
        "bn_eps": None,
        "scriptable": False,
        "checkpoint_path": "",
        **NARROW,
    }
    return timm.create_model("vt_resnet18", **(arguments | options))


def task_for(timm, model):
    criterion = timm.loss.LabelSmoothingCrossEntropy(0.1)
    return timm.task.ClassificationTask(model=model, criterion=criterion, verbose=False)


def optimizer_for(timm, model):
    # Layer decay takes the groups of `group_matcher`.
    return timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)


def step(timm, task, optimizer, images, labels, number):
    optimizer.zero_grad()
    loss = task(images, labels)["loss"]
    loss.backward()
    timm.utils.dispatch_clip_grad(task.get_clip_parameters(exclude_head=True), value=0.1, mode="agc")
    optimizer.step()
    task.update_ema(step=number)
    return float(loss)


def batches():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 6, 3, 32, 32, generator=generator)
    return [(each, torch.randint(5, (6,), generator=generator)) for each in images]


def test_two_epochs_resumed_between_are_those_in_one_go(timm, tmp_path):
    """With EMA, layer decay, checkpoint saver and resuming, as train.py has them."""
    torch.manual_seed(0)
    data = batches()

    def parts():
        task = task_for(timm, made(timm))
        return task, optimizer_for(timm, task.get_trainable_module())

    task, optimizer = parts()
    rates = {group["lr_scale"] for group in optimizer.param_groups}
    assert len(rates) > 5, "each layer has its own rate"
    task.setup_ema(decay=0.9)
    saver = timm.utils.CheckpointSaver(
        model=task.get_trainable_module(), optimizer=optimizer, checkpoint_dir=str(tmp_path), task=task
    )
    for number, batch in enumerate(data[:2], 2):  # the first update is a copy
        step(timm, task, optimizer, *batch, number)
    saver.save_checkpoint(0, metric=1.0)
    straight = [step(timm, task, optimizer, *batch, number) for number, batch in enumerate(data[2:], 4)]

    path = str(tmp_path / "last.pth.tar")
    again, its_optimizer = parts()
    assert timm.task.resume_task_checkpoint(again, path, optimizer=its_optimizer, log_info=False) == 1
    again.setup_ema(decay=0.9)
    timm.task.load_task_ema_checkpoint(again, path)
    resumed = [step(timm, again, its_optimizer, *batch, number) for number, batch in enumerate(data[2:], 4)]
    assert resumed == straight
    for ema in (False, True):
        one, other = (each.get_trainable_module(ema=ema).state_dict() for each in (task, again))
        assert all(torch.equal(value, other[name]) for name, value in one.items())

    averaged, plain = made(timm), made(timm)
    timm.models.load_checkpoint(averaged, path, use_ema=True)
    timm.models.load_checkpoint(plain, path, use_ema=False)
    assert not torch.equal(averaged.fc.weight, plain.fc.weight)
    assert timm.models.resume_checkpoint(made(timm), path, optimizer=its_optimizer, log_info=False) == 1
    assert torch.equal(made(timm, checkpoint_path=path).fc.weight, averaged.fc.weight)


def test_moving_averages(timm):
    model = made(timm)
    averaged = timm.utils.ModelEmaV3(model, decay=0.5)
    before = model.fc.weight.detach().clone()
    with torch.no_grad():
        model.fc.weight.add_(1)
    averaged.update(model)
    torch.testing.assert_close(averaged.module.fc.weight, before + 0.5)
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    averaged.module.load_state_dict(model.state_dict())
    assert torch.equal(averaged.module(images), model(images))


@pytest.mark.parametrize("kind", ["logit", "feature"])
@pytest.mark.parametrize("student", ["vt_resnet18", "test_resnet"])
def test_distillation(timm, kind, student):
    """As a student, which reports its images' channels, and as a teacher."""
    options = {"student_model": made(timm), "teacher_model": timm.create_model("test_resnet", num_classes=5)}
    if student != "vt_resnet18":
        options = {"student_model": options["teacher_model"], "teacher_model": options["student_model"]}
    kinds = {"logit": timm.task.LogitDistillationTask, "feature": timm.task.FeatureDistillationTask}
    task = kinds[kind](criterion=torch.nn.CrossEntropyLoss(), verbose=False, **options)
    loss = task(torch.randn(2, 3, 32, 32), torch.tensor([0, 3]))["loss"]
    loss.backward()
    assert options["student_model"].get_classifier().weight.grad is not None
    assert all(value.grad is None for value in options["teacher_model"].parameters())
    assert made(timm, in_chans=2).in_chans == 2


def test_pretrained_parameters_from_a_file(timm, tmp_path):
    """`--pretrained --pretrained-path` of train.py, which adapts the first convolution and the classifier."""
    trained = made(timm)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    overlay = {"file": str(tmp_path / "weights.pt"), "num_classes": 5}
    same = made(timm, pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in trained.state_dict().items())
    adapted = made(timm, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=7)
    torch.testing.assert_close(
        adapted.backbone.conv1.weight, trained.backbone.conv1.weight.sum(1, keepdim=True)
    )
    assert torch.equal(adapted.stage[0].tokenizer.filters, trained.stage[0].tokenizer.filters)
    assert adapted.num_classes == adapted.fc.out_features == 7
    maps = timm.create_model(
        "vt_resnet18", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **NARROW
    )
    assert torch.equal(maps.backbone.conv1.weight, trained.backbone.conv1.weight)


def test_a_local_folder(timm, tmp_path):
    """A model saved for the Hugging Face Hub, loaded from its folder."""
    model = made(timm)
    timm.models.save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.eval()(images), model.eval()(images))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pretrained": True}, ValueError, "there are no pretrained VT-ResNets"),
        ({"scriptable": True}, ValueError, "cannot be scripted; use torch.jit.trace or torch.export"),
        ({"global_pool": "max"}, ValueError, '`global_pool` must be one of "avg", ""'),
        ({"drop_block_rate": 0.1}, TypeError, "unexpected keyword argument 'drop_block_rate'"),
        ({"bn_momentum": 0.1}, TypeError, "unexpected keyword argument 'bn_momentum'"),
        ({"output_stride": 8}, ValueError, "`output_stride` must be 16"),
    ],
)
def test_refused(timm, options, error, message):
    with pytest.raises(error, match=message):
        made(timm, **options)


def test_split_batch_norm(timm):
    """It splits norms of maps, so the tokens need another."""
    images = torch.randn(4, 3, 32, 32)
    model = timm.layers.convert_splitbn_model(made(timm, token_norm="layer"), 2)
    assert model(images).shape == (4, 5)
    with pytest.raises(ValueError, match="expected 4D input"):
        timm.layers.convert_splitbn_model(made(timm), 2)(images)


@pytest.fixture
def pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    numbers = np.random.default_rng(0)
    for split in ("train", "validation"):
        for label in "abc":
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = numbers.integers(0, 255, (40, 48, 3), dtype=np.uint8)
                image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


@pytest.mark.skipif(SCRIPTS is None, reason="VT_FAST_TIMM_SCRIPTS names no folder with timm's scripts")
def test_timms_scripts(timm, pictures, tmp_path):
    """Two steps of train.py, two more after a resume, and validate.py."""
    common = ["--data-dir", str(pictures), "--model", "vt_resnet18", "--num-classes", "5", "--img-size", "32"]
    common += ["--batch-size", "6", "--workers", "0", "--device", "cpu"]
    narrow = ["--model-kwargs", "token_channels=64", "num_tokens=4"]
    training = ["--warmup-epochs", "0", "--cooldown-epochs", "0", "--opt", "adamw", "--layer-decay", "0.7"]
    training += ["--model-ema", "--drop-path", "0.1", "--output", str(tmp_path), "--experiment", "run"]
    script("train.py", *common, *training, "--epochs", "1", *narrow)
    checkpoint = str(tmp_path / "run" / "last.pth.tar")
    said = script("train.py", *common, *training, "--epochs", "2", "--resume", checkpoint, *narrow)
    assert "Train: 1 [   1/2 (100%)]" in said
    for flags in ([], ["--use-ema"], ["--channels-last", "--amp", "--amp-dtype", "bfloat16"]):
        assert '"top1"' in script("validate.py", *common, "--checkpoint", checkpoint, *flags, *narrow)


def script(name, *arguments):
    """What a script prints, in a process in which the models are registered."""
    here = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, __file__, str(Path(SCRIPTS) / name), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


if __name__ == "__main__":
    torchvision_stub.importable()
    models.register_with_timm()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
