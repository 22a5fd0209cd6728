"""Peak memory and interleaved medians."""

import time

import pytest
import torch

from vt_fast.measure import interleaved_medians, peak_bytes


def test_peak_counts_temporaries_that_are_gone_at_the_end():
    x = torch.ones(1000)
    assert peak_bytes(lambda: x.clone()) == 4000
    assert peak_bytes(lambda: x.clone().clone().clone()) == 8000
    assert peak_bytes(lambda: None) == 0


def test_peak_does_not_count_what_was_there_before():
    held = [torch.ones(1000)]
    assert peak_bytes(held.clear) == 0


def test_peak_says_nothing_on_stderr(capfd):
    peak_bytes(lambda: torch.ones(3))
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_medians_are_taken_in_turn():
    order = []
    seconds = interleaved_medians(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=5, warmup=2
    )
    assert order == ["a", "b"] * 7
    assert set(seconds) == {"a", "b"}


def test_medians_measure_time():
    seconds = interleaved_medians({"sleep": lambda: time.sleep(0.01)}, rounds=3, warmup=0)
    assert seconds["sleep"] >= 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_on_a_gpu():
    x = torch.ones(1 << 20, device="cuda")
    assert peak_bytes(lambda: x.clone(), "cuda") == x.numel() * 4
