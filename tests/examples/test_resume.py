"""A run that is killed and resumed ends exactly like an uninterrupted one."""

import shlex
import signal

import pytest
import torch

# 1,347 images in steps of 449: 3 steps per epoch, 9 in all. Everything in the recipe that has a state is
# used: dropout, batch norm, RMSProp, warm-up, AutoAugment and the moving average.
FLAGS = shlex.split(
    "--data digits --image-size 8 --model tests._support.tiny_nets:classifier --recipe advanced --epochs 3 "
    "--warmup-epochs 1 --batch-size 449 --distillation 0 --ema 0.9 --log-steps 1"
)


def equal(first, second):
    """Whether two nested structures of dicts, lists and tensors are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def done(folder):
    """Epochs and steps in the checkpoint."""
    content = torch.load(folder / "last.pt", weights_only=True)
    return content["epoch"], content["step"]


@pytest.mark.slow
def test_killed_twice_and_resumed_is_the_same_bit_for_bit(start, tmp_path):
    def train(folder, *flags, **environment):
        return start("train_classification.py", *FLAGS, "--output", tmp_path / folder, *flags, **environment)

    train("whole", "--workers", "0")
    # In the second of three steps of the second epoch: only that epoch is lost.
    train("killed", "--workers", "2", ends=-signal.SIGKILL, TESTS_DIE_AT="5")
    assert done(tmp_path / "killed") == (1, 0)
    # In the last step of the third epoch, of which two are saved, with another number of workers.
    output = train(
        *("killed", "--workers", "0", "--checkpoint-steps", "2"), ends=-signal.SIGKILL, TESTS_DIE_AT="6"
    )
    assert "resumed from" in output
    assert "1 epochs and 0 steps" in output
    assert done(tmp_path / "killed") == (2, 2)
    assert "2 epochs and 2 steps" in train("killed", "--workers", "2")

    whole, killed = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "killed")
    )
    assert whole.keys() == killed.keys() >= {"net", "ema", "optimizer", "scheduler", "ranks"}
    for key in whole:
        assert equal(whole[key], killed[key]), key
    weights = [torch.load(tmp_path / name / "weights.pt") for name in ("whole", "killed")]
    assert equal(*weights)
    assert equal(weights[0], whole["ema"])
    assert not equal(whole["net"], whole["ema"])
