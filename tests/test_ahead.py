"""Kernels compiled ahead of their launch, for GPUs that need not be there."""

import os
import random

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget

from tests._support.variants import variant
from vt_fast.backends import triton as calls
from vt_fast.backends.contract import Project, ProjectBackward
from vt_fast.backends.triton import INTERPRETED, ahead
from vt_fast.backends.triton.maps import Rows, place
from vt_fast.backends.triton.samples import KERNELS, sample
from vt_fast.backends.triton.schedule import Traits, standing_in

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}


def asked(architecture="sm_90", op="tokenize_backward"):
    with standing_in(Traits(architecture, 132, 64 << 10)):
        return ahead.requests(lambda: sample(op, torch.bfloat16, "channels", (2, 196, 64, 16), "meta")())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Triton's, of this test alone."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("architecture", TARGETS)
def test_a_launch_finds_what_was_compiled(architecture, cache):
    those = asked(architecture)
    assert {"tokenize_forward", "deltas", "tokenize_backward"} <= {each.name for each in those}
    with ahead.Ahead(TARGETS[architecture], 2) as compilers:
        assert ahead.finished(compilers.compile(those)) == []
    found = sorted(os.listdir(cache))
    assert len(found) == len(those)
    # What a launch does first, on a GPU of that kind.
    with ahead.compiling_for(TARGETS[architecture]):
        for each in those:
            each.kernel.device_caches.clear()
            each.compiled()
            each.kernel.device_caches.clear()
    assert sorted(os.listdir(cache)) == found


def test_one_that_cannot_be_compiled_is_named_and_the_others_are_compiled(cache):
    good = asked()[0]
    bad = good._replace(constants={**good.constants, "cfg": good.constants["cfg"]._replace(TILE=24)})
    with ahead.Ahead(TARGETS["sm_90"], 1) as compilers:
        compiling = compilers.compile([bad, good])
        (reason,) = ahead.finished(compiling)
    assert reason.startswith("tokenize_forward: CompilationError")
    assert compiling[1].result() is None


def test_the_same_is_compiled_once(cache):
    with ahead.Ahead(TARGETS["sm_90"], 1) as compilers:
        first = compilers.compile(asked())
        assert list(map(id, compilers.compile(asked()))) == list(map(id, first))


def test_a_process_that_dies_is_no_error(cache):
    with ahead.Ahead(TARGETS["sm_90"], 1) as compilers:
        compilers._pool.submit(os._exit, 1).exception()
        (reason,) = ahead.finished(compilers.compile(asked()[:1]))
    assert "BrokenProcessPool" in reason


def test_a_request_says_what_a_kernel_depends_on():
    tensor = torch.zeros(3, 5, dtype=torch.float16)
    operand = ahead._operand(tensor)
    assert (operand.dtype, operand.ptr_range(), operand.data_ptr()) == (torch.float16, 30, 0)
    assert ahead._operand(7) == 7
    rows = ahead._operand(Rows(tensor, 15))
    assert isinstance(rows, Rows)
    assert (rows.data.dtype, rows.batch) == (torch.float16, 15)


def test_at_least_one_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert ahead.processes() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert ahead.processes() == 15


def of_size(batch, height, width, layout, channels=32):
    """What forward and backward of project launch on such a map."""
    size = (batch, channels, height, width)
    x = torch.empty(size, dtype=torch.float16, device="meta").to(memory_format=layout)
    rows = torch.empty(batch, 8, channels, dtype=torch.float16, device="meta")
    with standing_in(Traits("sm_90", 132, 227 << 10)):
        forward = Project(x, rows, rows, None, None, True, 1)
        backward = ProjectBackward(x, x, rows, rows, None, True, 1, [True, True, True, False])
        return [
            *ahead.requests(lambda: calls.project(forward)),
            *ahead.requests(lambda: calls.project_backward(backward)),
        ]


LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)


@LAYOUTS
def test_sizes_alone_compile_nothing_new(layout, cache):
    # Numbers that are 1, multiples of 16 and neither.
    sizes = [(1, 64, 112), (2, 65, 113), (3, 72, 104), (5, 80, 98)]
    those = [of_size(*size, layout)[0] for size in sizes]
    with ahead.compiling_for(TARGETS["sm_90"]):
        for each in those:
            each.compiled()
    different = {variant(each) for each in those}
    assert len(os.listdir(cache)) == len(different)
    assert len(different) == (1 if layout == torch.channels_last else 2)


@pytest.mark.parametrize("op", KERNELS)
@pytest.mark.parametrize("layout", ["channels", "pixels"])
def test_sizes_reach_kernels_as_numbers_of_one_kind(op, layout):
    """Within a tuple Triton compiles anew for 1 and for multiples of 16, whatever the kernel says."""
    seen = {}
    for batch, pixels in ((1, 49), (2, 196), (3, 1000), (5, 3137), (16, 784), (17, 4096)):
        shape = (batch, pixels, 64, 16)
        with standing_in(Traits("sm_90", 132, 227 << 10)):
            those = ahead.requests(lambda shape=shape: sample(op, torch.float32, layout, shape, "meta")())
        for each in those:
            name, arguments, _ = variant(each)
            # A kernel that leaves parts has other results to write.
            parts = "cfg" in each.constants and not each.constants["cfg"].DIRECT
            seen.setdefault((name, parts), set()).add(arguments)
    assert {key: len(variants) for key, variants in seen.items() if len(variants) > 1} == {}


def test_batch_strides_are_passed_in_multiples():
    for batch in (1, 16, 37):
        x = torch.empty(2, 3, 5, device="meta").as_strided((2, 3, 5), (batch, 5, 1))
        placed = place(3, 5, x, x)
        assert [each.batch % 16 for each in placed.maps] == [0, 0]
        assert placed.maps[0].batch // 16 * placed.align == batch


@LAYOUTS
def test_training_at_many_sizes_compiles_little(layout):
    """As detectors are trained: it depends on how pixels are aligned, and little on how many there are."""
    drawn = random.Random(0)
    seen = set()
    for _ in range(200):
        height, width = drawn.randint(100, 200), drawn.randint(100, 336)
        seen |= {variant(each) for each in of_size(2, height, width, layout, channels=256)}
    assert len(seen) <= (3 if layout == torch.channels_last else 15)
