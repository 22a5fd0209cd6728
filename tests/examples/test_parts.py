"""The parts of a run: image order, random numbers, losses, averages, checkpoints, logs and models."""

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recipe import checkpoint, log, losses, models, optim, randomness
from recipe.randomness import Seeded
from recipe.recipes import Recipe
from recipe.sampler import Shard, StepSampler


@pytest.mark.parametrize(("passes", "size"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_a_step_has_the_same_images_however_they_are_shared(passes, size):
    whole = [set(batch) for batch in StepSampler(21, batch=8, seed=3)]
    parts = [
        list(StepSampler(21, batch=8, passes=passes, rank=rank, size=size, seed=3)) for rank in range(size)
    ]
    assert all(len(batch) == 8 // (passes * size) for part in parts for batch in part)
    for step, expected in enumerate(whole):
        mine = [part[step * passes + number] for part in parts for number in range(passes)]
        assert set().union(*mine) == expected
        assert sum(map(len, mine)) == len(expected) == 8


def test_each_epoch_has_its_own_order_and_can_start_anywhere():
    sampler = StepSampler(21, batch=4, passes=2, seed=1)
    first = list(sampler)
    sampler.start(2, 0)
    whole = list(sampler)
    assert len(sampler) == len(whole) == 10
    assert [index for batch in whole for _, index in batch] != [
        index for batch in first for _, index in batch
    ]
    assert {epoch for batch in whole for epoch, _ in batch} == {2}
    assert len({index for batch in whole for _, index in batch}) == 20
    sampler.start(2, 3)
    assert list(sampler) == whole[6:]
    assert len(sampler) == 4


def test_batches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="`batch` must be at most the 7 training images, got 8"):
        StepSampler(7, batch=8)
    with pytest.raises(ValueError, match=r"multiple of passes \* processes = 2 \* 3, got 8"):
        StepSampler(70, batch=8, passes=2, size=3)


def test_shards_cover_each_image_once():
    shards = [list(Shard(11, rank=rank, size=3)) for rank in range(3)]
    assert sorted(index for shard in shards for _, index in shard) == list(range(11))


class Noise:
    def __len__(self):
        return 9

    def __getitem__(self, index):
        return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_samples_have_their_own_random_numbers_and_do_not_affect_others():
    data = Seeded(Noise(), 5)
    before = randomness.states(torch.device("cpu"))
    samples = {(epoch, index): data[epoch, index] for epoch in range(3) for index in range(9)}
    after = randomness.states(torch.device("cpu"))
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    assert before == after
    assert len({each for sample in samples.values() for each in sample}) == 3 * len(samples)
    torch.rand(7)
    random.random()
    assert data[2, 4] == samples[2, 4] != Seeded(Noise(), 6)[2, 4]


def test_generators_can_be_put_back(tmp_path):
    randomness.seed_all(1, 2)
    random.gauss()  # keeps a second number for the next call
    np.random.standard_normal()
    checkpoint.save(randomness.states(torch.device("cpu")), tmp_path / "states")

    def draw():
        return random.gauss(), np.random.standard_normal(), torch.randn(3).tolist()

    expected = draw()
    randomness.restore(checkpoint.load(tmp_path / "states"), torch.device("cpu"))
    assert draw() == expected


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save({"epoch": 1}, path)

    def torn(content, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save({"epoch": 2}, path)
    assert checkpoint.load(path) == {"epoch": 1}
    # Flushed to disk before the rename, and the folder after it.
    order = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: order.append("fsync"))
        replace = os.replace
        patch.setattr(os, "replace", lambda *paths: (order.append("replace"), replace(*paths)))
        checkpoint.save({"epoch": 2}, path)
    assert order == ["fsync", "replace", "fsync"] if os.name == "posix" else order[:2]
    assert checkpoint.load(path) == {"epoch": 2}
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


def test_weights_are_found_in_plain_files_and_in_checkpoints(tmp_path):
    plain, mean = {"fc.bias": torch.ones(2)}, {"fc.bias": torch.zeros(2)}
    for name, content, expected in (
        ("plain", plain, plain),
        ("run", {"net": plain, "epoch": 3}, plain),
        ("averaged", {"net": plain, "ema": mean}, mean),
    ):
        checkpoint.save(content, tmp_path / name)
        assert torch.equal(checkpoint.weights(tmp_path / name)["fc.bias"], expected["fc.bias"])
    checkpoint.save({"epoch": 3}, tmp_path / "none")
    with pytest.raises(ValueError, match="holds no weights"):
        checkpoint.weights(tmp_path / "none")


def test_loss_is_a_fifth_cross_entropy_and_four_fifths_the_teachers():
    logits, taught = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    labels = torch.randint(5, (6,))

    class Constant(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, images):
            return self.value

    recipe = Recipe(label_smoothing=0.1, distillation=0.8)
    teacher = Constant(nn.Parameter(taught))
    found = losses.classification(recipe, teacher)(Constant(logits), torch.zeros(6), labels)
    smooth = torch.full((6, 5), 0.1 / 5).scatter_add(1, labels[:, None], torch.full((6, 1), 0.9))
    own = -(smooth * logits.log_softmax(1)).sum(1).mean()
    wanted = taught.softmax(1)
    told = (wanted * (taught.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(found, 0.2 * own + 0.8 * told)
    found.backward()
    assert logits.grad is not None
    assert teacher.value.grad is None
    assert not teacher.training


def test_a_teacher_and_its_weight_need_each_other():
    with pytest.raises(ValueError, match=r"`distillation` must be 0 without a --teacher, got 0\.8"):
        losses.classification(Recipe(distillation=0.8), None)
    with pytest.raises(ValueError, match="`distillation` must be above 0 with a --teacher"):
        losses.classification(Recipe(), nn.Identity())


def test_half_precision_logits_make_a_loss_in_float32_and_float64_stays():
    for narrow, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        logits = torch.randn(4, 3).to(narrow)
        found = losses.classification(Recipe(), None)(
            nn.Identity(), logits, torch.zeros(4, dtype=torch.int64)
        )
        assert found.dtype == wide
        assert torch.equal(found, F.cross_entropy(logits.to(wide), torch.zeros(4, dtype=torch.int64)))


def test_average_follows_parameters_and_buffers():
    net = nn.BatchNorm1d(2)
    mean = optim.average(net, Recipe(ema=0.75))
    kept = {}
    for step in range(4):
        with torch.no_grad():
            net.weight.fill_(step + 1.0)
            net.running_mean.fill_(10.0 * (step + 1))
            net.num_batches_tracked.fill_(step)
        mean.update_parameters(net)
        for name, value in (("weight", step + 1.0), ("running_mean", 10.0 * (step + 1))):
            kept[name] = value if step == 0 else 0.75 * kept[name] + 0.25 * value
    assert not mean.module.training
    for name, value in kept.items():
        assert getattr(mean.module, name).tolist() == pytest.approx([value] * 2)
    assert optim.average(net, Recipe()) is None


def test_epochs_that_were_logged_twice_are_drawn_once(tmp_path):
    path = tmp_path / "log.jsonl"
    for epoch, loss in ((1, 3.0), (2, 2.5), (2, 2.0), (3, 1.0)):
        log.append(path, {"kind": "step", "epoch": epoch, "loss": loss})
        log.append(path, {"kind": "epoch", "epoch": epoch, "train_loss": loss})
    assert [record["train_loss"] for record in log.epochs(path)] == [3.0, 2.0, 1.0]
    pytest.importorskip("matplotlib")
    assert log.draw(path).stat().st_size > 1000


@pytest.mark.parametrize("script", ["train_classification.py", "train_segmentation.py"])
def test_help_needs_none_of_the_libraries(script):
    hide = (
        "import runpy, sys; sys.modules |= dict.fromkeys(['timm', 'torchvision', 'sklearn', 'matplotlib']); "
    )
    code = f"{hide}sys.path.insert(0, sys.argv[1]); script = sys.argv.pop(2); del sys.argv[1]; "
    code += "runpy.run_path(script, run_name='__main__')"
    folder = Path(checkpoint.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, folder, folder / script, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(folder.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert "--weight-decay" in done.stdout


def test_models_are_found_by_name():
    assert models.make("resnet18", 7, drop_path_rate=0.1).fc.out_features == 7
    assert models.make("tests._support.tiny_nets:classifier", 3, drop_rate=0.5)[5].p == 0.5
    assert models.make("fpn_resnet18", 4)(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 64, 64)
    for name in ("unet", "resnext50", "tests._support.tiny_nets:nothing", "no_such_module:net"):
        with pytest.raises(ValueError, match=f"unknown model {name}"):
            models.make(name, 3)
    with pytest.raises(
        ValueError, match="the model fpn_resnet18: got an unexpected keyword argument 'drop_rate'"
    ):
        models.make("fpn_resnet18", 4, drop_rate=0.1)


def test_a_backbone_takes_a_classifiers_weights(tmp_path):
    classifier, net = models.make("resnet18", 7), models.make("fpn_resnet18", 4)
    checkpoint.save(classifier.state_dict(), tmp_path / "weights.pt")
    models.load_backbone(net, tmp_path / "weights.pt")
    assert torch.equal(net.backbone.layer4[1].conv2.weight, classifier.layer4[1].conv2.weight)
    with pytest.raises(ValueError, match="do not fit"):
        models.load_backbone(models.make("fpn_resnet34", 4), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="has no backbone"):
        models.load_backbone(classifier, tmp_path / "weights.pt")


def test_rmsprop_is_tensorflows(libraries):
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = optim.make([weight], Recipe(optimizer="rmsprop", lr=0.1, momentum=0.5, weight_decay=0.0))
    expected, square, velocity = 2.0, 1.0, 0.0
    for gradient in (3.0, -1.0, 2.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        square += 0.1 * (gradient**2 - square)
        velocity = 0.5 * velocity + 0.1 * gradient / math.sqrt(square + 1e-3)
        expected -= velocity
        assert weight.item() == pytest.approx(expected, rel=1e-6)
