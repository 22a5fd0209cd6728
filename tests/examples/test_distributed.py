"""Two processes train as one does with the same batch."""

import shlex

import pytest
import torch

# In float64, without batch norm and dropout, so that only the order of sums may differ. SGD, two epochs of 3
# steps.
FLAGS = shlex.split(
    "--data digits --image-size 8 --model tests._support.tiny_nets:exact --epochs 2 --workers 0 "
    "--batch-size 448 --sync-bn"
)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(start, tmp_path):
    def train(name, *flags, processes):
        left = tmp_path / name
        left.mkdir()
        output = start(
            *("train_classification.py", *FLAGS, *flags, "--output", left),
            processes=processes,
            TESTS_LEAVE=str(left),
        )
        return output, [torch.load(left / f"rank{rank}.pt") for rank in range(processes)]

    # In two passes of 112 images each: 448 = 2 processes x 2 passes x 112.
    output, (first, second) = train("two", "--micro-batch", "112", processes=2)
    assert output.count("sync_bn: SyncBatchNorm does not run on cpu") == 1
    assert output.count("epoch 2:") == 1
    alone, (one,) = train("one", processes=1)
    assert "with one process, plain batch norm is the same" in alone
    for kind in ("weights", "gradients"):  # gradients are those of the last step
        for name, exact in one[kind].items():
            assert exact.dtype == torch.float64
            assert torch.equal(first[kind][name], second[kind][name]), name
            torch.testing.assert_close(first[kind][name], exact, rtol=1e-9, atol=1e-12)
    assert max(each.abs().max() for each in one["gradients"].values()) > 1e-3
    # Held-out images are shared out and each counted once, so the scores are those of one process.
    scores = [
        next(line for line in text.splitlines() if line.startswith("epoch 2:")) for text in (output, alone)
    ]
    assert scores[0].partition(", seconds")[0] == scores[1].partition(", seconds")[0]
