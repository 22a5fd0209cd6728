"""Which backend a call on a GPU gets, the messages of its errors, and the GPU that it runs on."""

import pytest
import torch

import vt_fast
from tests._support import devices
from tests._support.gpu_cases import same_bits, standard
from tests._support.problems import OPS
from vt_fast import backends
from vt_fast.backends.contract import Tokenize
from vt_fast.backends.triton.schedule import observed


def chosen(x, queries, backend=None):
    return backends.choose(backend, Tokenize(x, queries, None, None, None, 1, False))


def refused(message, *tensors, backend="triton"):
    with pytest.raises(ValueError, match=message):
        vt_fast.tokenize(*tensors, backend=backend)


def launched(x, queries):
    """The Triton kernels that a call without a backend launches."""
    names = []
    with observed(lambda kernel, *_: names.append(kernel.__name__)):
        vt_fast.tokenize(x, queries)
    return names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_none_takes_the_cuda_kernels_and_then_triton(dtype):
    x, queries = torch.randn(2, 40, 16, dtype=dtype), torch.randn(4, 16, dtype=dtype)
    if devices.missing("cuda") is None:
        with devices.preferring("cuda"):  # these tests put Triton first
            assert chosen(x, queries) == "cuda"
            assert launched(x, queries) == []
            x, queries = x[..., :6], queries[..., :6]  # the CUDA kernels refuse so few channels
            assert chosen(x, queries) == "triton"
            assert launched(x, queries)[0] == "tokenize_forward"
    else:
        assert chosen(x, queries) == "triton"
        assert launched(x, queries)[0] == "tokenize_forward"


@pytest.mark.usefixtures("cuda")
def test_none_takes_plain_pytorch_where_triton_refuses():
    x, queries = torch.randn(2, 40, 16), torch.randn(257, 16)
    assert chosen(x, queries) == "torch"
    assert vt_fast.tokenize(x, queries).is_cuda
    assert chosen(x.double(), queries[:4].double()) == "torch"


@pytest.mark.usefixtures("cuda")
def test_float64_is_refused():
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    refused("cannot do this call: it computes in float64 under TRITON_INTERPRET=1 alone", x, x)


@pytest.mark.usefixtures("cuda")
def test_each_backend_refuses_the_others_tensors():
    x = torch.randn(2, 40, 16)
    refused("the tensors are on cpu; this backend is for CUDA and ROCm devices", x.cpu(), x.cpu())
    if dict(backends.report())["cpu"] is None:
        refused("the tensors are on cuda:0; this backend is for the CPU", x, x, backend="cpu")


@pytest.mark.usefixtures("cuda")
def test_a_cpu_tensor_beside_those_of_the_gpu_is_refused():
    x = torch.randn(2, 40, 16)
    queries = torch.randn(4, 16, device="cpu")
    refused(r"`queries` must be on the device of `x` \(cuda:0\), got cpu", x, queries, backend=None)


@pytest.mark.usefixtures("cuda")
@pytest.mark.skipif(devices.GPU != "cuda" or torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("op", OPS)
def test_a_device_that_is_not_the_current_one(op):
    call = standard(op, torch.float32)
    expected = call()
    for name, value in call.operands.items():
        moved = value.detach().to("cuda:1")
        call.operands[name] = moved.requires_grad_(value.requires_grad)
    call.arriving = [value.to("cuda:1") for value in call.arriving]
    assert torch.cuda.current_device() == 0
    results = call()
    assert all(result.device == torch.device("cuda:1") for result in results)
    assert torch.cuda.current_device() == 0
    assert same_bits([result.to("cuda:0") for result in results], expected)


def test_more_samples_than_a_grid_has_rows():
    """CUDA takes 65535 programs in all directions of a grid but the first."""
    batch = 70 if devices.PRETENDED else 70_000
    x, queries = torch.randn(batch, 3, 16), torch.randn(2, 16)
    keys, values = torch.randn(2, 16), torch.randn(2, 16)
    last = x[-5:].clone()
    results = vt_fast.tokenize(x, queries), *vt_fast.project_tokenize(x, keys, values, queries)
    expected = vt_fast.tokenize(last, queries), *vt_fast.project_tokenize(last, keys, values, queries)
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a[-5:], b)
    torch.testing.assert_close(vt_fast.project(x, keys, values)[-5:], vt_fast.project(last, keys, values))
