"""The settings of the paper's recipes, the flags that override them, and the learning rate at each step."""

import argparse
import dataclasses

import pytest
import torch

from recipe import recipes, schedule
from recipe.recipes import CLASSIFICATION, CLASSIFIERS_ONLY, OURS, SEGMENTATION, Recipe


def chosen(*arguments, known=CLASSIFICATION, without=()):
    parser = argparse.ArgumentParser()
    recipes.add_arguments(parser, known, without)
    return recipes.chosen(parser.parse_args(arguments), known)


def test_numbers_are_the_papers():
    default, advanced = CLASSIFICATION["default"], CLASSIFICATION["advanced"]
    assert (default.optimizer, default.momentum, default.lr) == ("sgd", 0.9, 0.1)
    assert (default.decay, default.decay_epochs, default.decay_factor) == ("step", 30, 0.1)
    assert (default.weight_decay, default.batch_size, default.epochs) == (4e-5, 256, 90)
    assert not any(getattr(default, name) for name in (*CLASSIFIERS_ONLY, "sync_bn", "ema", "warmup_epochs"))
    assert (advanced.epochs, advanced.optimizer, advanced.batch_size) == (400, "rmsprop", 2048)
    assert (advanced.warmup_lr, advanced.lr, advanced.warmup_epochs) == (0.01, 0.16, 5)
    assert (advanced.decay, advanced.decay_epochs, advanced.decay_factor) == ("step", 1, 0.9875)
    assert advanced.sync_bn
    assert advanced.label_smoothing > 0
    assert advanced.auto_augment == "original"
    assert (1 - advanced.drop_path_rate, advanced.drop_rate) == (0.9, 0.2)
    assert (advanced.ema, advanced.distillation) == (0.99985, 0.8)
    coco, lip = SEGMENTATION["coco"], SEGMENTATION["lip"]
    assert (coco.batch_size, coco.lr, coco.sync_bn) == (32, 0.04, True)
    assert (coco.decay, coco.weight_decay) == ("1x", 1e-4)
    assert coco.warmup_epochs * 118_287 / 32 == pytest.approx(1000, rel=0.01)
    assert (lip.batch_size, lip.optimizer, lip.lr, lip.weight_decay, lip.sync_bn) == (
        96,
        "sgd",
        0.01,
        5e-4,
        True,
    )


def test_settings_that_the_paper_does_not_state_are_named():
    names = {each.name for each in dataclasses.fields(Recipe)}
    assert OURS.keys() == CLASSIFICATION.keys() | SEGMENTATION.keys()
    assert all(set(ours) <= names for ours in OURS.values())


def test_every_number_has_a_flag_that_overrides_it():
    for each in dataclasses.fields(Recipe):
        flag, old = f"--{each.name.replace('_', '-')}", getattr(Recipe(), each.name)
        if each.type == "bool":
            given, new = [flag], not old
        elif each.metadata["choices"]:
            new = next(choice for choice in each.metadata["choices"] if choice != old)
            given = [flag, new]
        else:
            # Values that pass all checks: 45 for integers, a quarter for floats.
            new = {"int": 45, "float": 0.25, "str": "v0"}[each.type]
            given = [flag, str(new)]
        assert chosen(*given) == dataclasses.replace(Recipe(), **{each.name: new})


def test_zero_switches_off():
    assert chosen("--recipe", "advanced", "--ema", "0", "--no-sync-bn").ema == 0
    assert not chosen("--recipe", "advanced", "--no-sync-bn").sync_bn


def test_rates_follow_the_batch_only_when_told():
    smaller = ("--recipe", "advanced", "--batch-size", "512")
    assert chosen(*smaller).lr == 0.16
    scaled = chosen(*smaller, "--scale-lr")
    assert (scaled.lr, scaled.warmup_lr) == (0.04, 0.0025)


def test_flags_without_a_meaning_do_not_exist(capsys):
    with pytest.raises(SystemExit):
        chosen("--dropout", "0.1", known=SEGMENTATION, without=CLASSIFIERS_ONLY)
    assert "--dropout" in capsys.readouterr().err
    assert chosen("--recipe", "lip", known=SEGMENTATION, without=CLASSIFIERS_ONLY) == SEGMENTATION["lip"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "`epochs` must be at least 1, got 0"),
        (["--lr", "0"], "`lr` must be above 0, got 0.0"),
        (["--warmup-epochs", "90"], r"`warmup_epochs` must be in \[0, epochs = 90\), got 90"),
        (["--drop-rate", "1"], r"`drop_rate` must be in \[0, 1\), got 1.0"),
        (["--distillation", "1.1"], r"`distillation` must be in \[0, 1\], got 1.1"),
    ],
)
def test_impossible_numbers_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        chosen(*flags)


def rates(recipe, steps_per_epoch):
    """The learning rates that an optimizer gets from the scheduler."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    parameter.grad = torch.zeros(())
    optimizer = torch.optim.SGD([parameter], lr=recipe.lr)
    scheduler = schedule.make(optimizer, recipe, steps_per_epoch)
    found = []
    for _ in range(recipe.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_default_falls_to_a_tenth_every_thirty_epochs():
    found = rates(CLASSIFICATION["default"], 4)
    assert found == pytest.approx([0.1 / 10 ** (step // 4 // 30) for step in range(360)], rel=1e-12)


def test_advanced_warms_up_for_five_epochs_and_then_falls_each_epoch():
    found = rates(CLASSIFICATION["advanced"], 4)
    rising = [0.01 + 0.15 * step / 20 for step in range(20)]
    falling = [0.16 * 0.9875 ** (step // 4) for step in range(395 * 4)]
    assert found == pytest.approx(rising + falling, rel=1e-12)
    assert found[20] == max(found) == pytest.approx(0.16)


def test_coco_falls_as_detectron2_does():
    found = rates(SEGMENTATION["coco"], 3000)
    assert found[0] == pytest.approx(4e-5)
    assert found[405] == pytest.approx(0.02, rel=0.01)
    assert set(found[810:]) == {0.04, 0.04 * 0.1, 0.04 * 0.1**2}
    falls = [step for step in range(811, len(found)) if found[step] != found[step - 1]]
    assert falls == [24_000, 32_000]


def test_poly_ends_at_zero():
    recipe = dataclasses.replace(SEGMENTATION["lip"], epochs=12, lr=0.04, warmup_epochs=2, warmup_lr=0.004)
    found = rates(recipe, 5)
    expected = [0.004 + 0.036 * step / 10 for step in range(10)]
    expected += [0.04 * (1 - step / 50) ** 0.9 for step in range(50)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert schedule.learning_rate(recipe, 60, 5) == 0
