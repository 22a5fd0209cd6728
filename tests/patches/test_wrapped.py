"""Patched modules under the compiler that users run, and in training with several processes."""

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.nn.parallel import DistributedDataParallel

from tests._support import hosts
from tests._support.two_processes import two_processes
from tests.patches.cases import CASES

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu, pytest.mark.hosts]


@pytest.mark.parametrize(("name", "training"), [("timm latent", True), ("segment-anything", False)])
def test_inductor(name, training):
    """The code that inductor writes calls our ops. Each of its kernels takes seconds to compile."""
    host = CASES[name]
    module, patched, inputs = hosts.twins(host)
    if not training:
        module, patched, inputs = (
            module.transformer,
            patched.transformer,
            [*inputs[:2], torch.randn(1, 7, 64).double()],
        )
    torch._dynamo.reset()
    patched.compile(fullgraph=True)
    if training:
        found, codes = run_and_get_code(host.solve, patched, inputs)
        hosts.close(found, host.solve(module, inputs), 1e-10)
        assert "torch.ops.vt_fast.tokenize_backward" in "".join(codes)
    else:
        with torch.no_grad():
            found, codes = run_and_get_code(patched, *inputs)
            hosts.close(dict(enumerate(found)), dict(enumerate(module(*inputs))), 1e-10)
    calls = ["".join(codes).count(f"torch.ops.vt_fast.{op}.default(") for op in ("tokenize", "project")]
    assert sum(calls) == host.ops


def _trains_as_one_process(rank):
    """Each process has half of the batch, and gradients are means."""
    module, patched, (x,) = hosts.twins(CASES["timm latents, mean"])
    wrapped = DistributedDataParallel(patched)
    optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in (module, wrapped)]
    for _ in range(3):
        for each, optimizer, given in zip((module, wrapped), optimizers, (x, x.chunk(2)[rank]), strict=True):
            optimizer.zero_grad()
            each(given).square().mean().backward()
            optimizer.step()
    hosts.close(patched.state_dict(), module.state_dict(), 1e-10)
    assert hosts.ops_in(lambda: wrapped(x)) == 1


def test_distributed_data_parallel():
    hosts.need("timm")
    two_processes(_trains_as_one_process)
