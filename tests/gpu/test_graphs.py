"""Calls can be captured in a CUDA graph and do not synchronise with the host."""

import pytest
import torch

from tests._support.gpu_cases import Call, same_bits, standard
from tests._support.problems import OPS
from vt_fast.tune import captured

pytestmark = pytest.mark.usefixtures("cuda")
DTYPES = [torch.bfloat16, torch.float32]


def refill(call: Call, seed: int) -> None:
    """Other numbers in the same memory."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in [*call.operands.values(), *call.arriving]:
            if value.dtype == torch.bool:
                value.copy_(torch.rand(value.shape) < 0.5)
            else:
                value.copy_(torch.randn(value.shape) / 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_a_replayed_forward(op, dtype):
    call = standard(op, dtype)
    with torch.no_grad():
        graph, results = captured(call.forward)
        for seed in (1, 2):
            refill(call, seed)
            graph.replay()
            assert same_bits(results, call.forward())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_a_replayed_forward_and_backward(op, dtype):
    call = standard(op, dtype)
    graph, results = captured(call)
    for seed in (1, 2):
        refill(call, seed)
        graph.replay()
        assert same_bits(results, call())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_the_host_waits_for_nothing(op, dtype):
    call = standard(op, dtype)
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waiting_would_be_noticed():
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
