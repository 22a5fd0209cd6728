"""The choice of a backend where the library for CUDA makes it, tried on CPU tensors and the emulator."""

import pytest
import torch

from tests._support import cuda_emulator
from vt_fast.backends.cuda import settings
from vt_fast.backends.cuda.settings import Setting

pytestmark = pytest.mark.skipif(cuda_emulator.REAL, reason="on a GPU the public ops are tested")


def public(op, *arguments, backend=None):
    return getattr(torch.ops.vt_fast_emulated, f"{op}_public").default(*arguments, backend=backend)


def tokenize(channels, backend=None):
    torch.manual_seed(0)
    x, queries = torch.randn(2, 20, channels), torch.randn(3, channels) / channels
    return public("tokenize", x, queries, None, None, None, 1, False, backend=backend)


@pytest.fixture(autouse=True)
def launched():
    """The launches of calls so far."""
    with cuda_emulator.emulated():
        yield


def test_none_takes_these_kernels():
    tokens, _, lse = tokenize(32)
    assert cuda_emulator.last_report().launches > 0
    expected, _, expected_lse = tokenize(32, backend="torch")
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_none_takes_the_next_backend_where_they_refuse():
    expected = tokenize(17, backend="torch")
    for value, other in zip(tokenize(17), expected, strict=True):
        assert torch.equal(value, other)


def test_a_backward_with_its_list_is_handed_over():
    x, keys, values = torch.randn(2, 20, 17), torch.randn(2, 3, 17), torch.randn(2, 3, 17)
    arguments = (torch.randn(2, 20, 17), x, keys, values, None, True, 1, [True, False, True, False, False])
    found = public("project_backward", *arguments)
    expected = public("project_backward", *arguments, backend="torch")
    assert found[1] is None or found[1].numel() == 0
    for index in (0, 2):
        assert torch.equal(found[index], expected[index])


def test_by_name_they_raise_where_they_refuse():
    with pytest.raises(
        RuntimeError, match=r'`backend="cuda"` cannot do this call: the channels of a head must'
    ):
        tokenize(17, backend="cuda")


def test_an_unknown_name_is_refused():
    with pytest.raises(
        RuntimeError, match='`backend` must be None or one of "cpu", "cuda", "triton", "torch"'
    ):
        tokenize(32, backend="tritium")


@pytest.mark.parametrize("maps", ["last", "halves"])
def test_the_choice_comes_before_memory(maps):
    """No memory holds the copy and the result of this map: the next backend meets that, and not this one."""
    pixels = (1 << 20) + 4  # rows of 4 pixels more than a multiple of 8: "halves" where pixels are contiguous
    memory = torch.zeros(8 * pixels + 1, dtype=torch.bfloat16)[1:]  # not aligned, so it is copied
    sizes = (1, pixels, 8) if maps == "last" else (1, 8, 1, pixels)
    x = memory.view(sizes).expand(1 << 29, *sizes[1:])
    rows = torch.zeros(4, 8, dtype=torch.bfloat16)
    arguments = (x, rows, rows, None, None, False, 1)
    library = cuda_emulator.library()
    try:
        with pytest.raises(RuntimeError, match=r"^a tensor cannot be allocated"):
            public("project", *arguments)
        settings.use(library, [Setting("project", "bf16", maps, 16, 8, backend="next")])
        with pytest.raises(RuntimeError, match=r"^another backend failed"):
            public("project", *arguments)
    finally:
        settings.use(library, [])


def test_a_setting_may_prefer_the_next_backend():
    library = cuda_emulator.library()
    expected = tokenize(32, backend="torch")
    try:
        settings.use(library, [Setting("tokenize", "fp32", "last", 16, 32, backend="next")])
        for value, other in zip(tokenize(32), expected, strict=True):
            assert torch.equal(value, other)
        named = tokenize(32, backend="cuda")
        assert not torch.equal(named[0], expected[0]) or cuda_emulator.last_report().launches > 0
    finally:
        settings.use(library, [])
