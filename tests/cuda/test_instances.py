"""Each kernel that is compiled is right, by the plan of some call on some GPU, or by a setting."""

import contextlib
import functools
import itertools

import pytest
import torch

from tests._support import cuda_emulator
from tests._support.cuda_emulator import OPS as PASSES
from tests._support.cuda_emulator import TYPES, Sizes
from tests._support.emulated_cases import DTYPES, check, problem
from tests._support.judging import short
from tests._support.problems import OPS
from vt_fast.backends.cuda import settings
from vt_fast.backends.cuda.settings import Setting

pytestmark = pytest.mark.skipif(cuda_emulator.REAL, reason="runs each kernel on its GPU")

# KB of shared memory of a block, and blocks of a cluster, from compute capability 8.0 to 12.0.
GPUS = [(227, 16), (227, 8), (163, 1), (99, 8), (99, 1)]
CHANNELS = [8, 16, 40, 136, 264, 520, 1032, 2048]
ROWS = [9, 17, 33]  # one more than half of what a kernel takes
# The kernels' layouts (csrc/cuda/call.h), and maps that lie so.
LAYOUTS = {"last": ("bnc", 4, 6), "first": ("nchw", 4, 5), "shifted": ("nchw", 3, 7)}


Call = tuple[int, int, tuple[int, int]]  # channels, rows, and the GPU


@functools.cache
def plans(op: str, dtype: torch.dtype, layout: str) -> dict[Call, tuple[int, int]]:
    """``mt`` and ``nt`` of the kernels that calls get, small calls first."""
    found = {}
    for channels, rows, gpu in itertools.product(CHANNELS, ROWS, GPUS):
        sizes = Sizes(PASSES.index(op), DTYPES.index(dtype), list(LAYOUTS).index(layout), channels, channels)
        sizes.keys = rows if "project" in op else 0
        sizes.queries = rows if "tokenize" in op else 0
        sizes.has_grad_map = op in ("project_backward", "project_tokenize_backward")
        plan = cuda_emulator.planned(sizes, 1024 * gpu[0], gpu[1])
        if plan is not None:
            found[channels, rows, gpu] = (plan.mt, plan.nt)
    return found


def some_kernel(rows):
    """Sizes of a call of the first op and type that are built."""
    op, kind = (names[0] for names in cuda_emulator.selected())
    sizes = Sizes(PASSES.index(op), TYPES.index(kind), 0, 264, 264)
    sizes.keys, sizes.queries = rows * ("project" in op), rows * ("tokenize" in op)
    return sizes


@pytest.mark.parametrize(("rows", "room"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64)])
def test_a_kernel_with_room_for_no_more_rows_than_needed(rows, room):
    assert 8 * cuda_emulator.planned(some_kernel(rows), 227 << 10, 16).nt == room


def test_no_more_shared_memory_than_there_is():
    sizes = [
        (size, cuda_emulator.planned(some_kernel(16), size, 8)) for size in range(16 << 10, 228 << 10, 512)
    ]
    planned = [(size, plan) for size, plan in sizes if plan is not None]
    assert len({plan.stages for _, plan in planned}) > 1
    assert all(plan.shared_bytes <= size for size, plan in planned)


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [(layout, dtype) for layout in LAYOUTS for dtype in DTYPES if layout != "first" or dtype.itemsize == 2],
    ids=short,
)
@pytest.mark.parametrize("op", OPS)
def test_each_kernel(op, layout, dtype):
    passes = (op, f"{op}_backward")
    forward, backward = (plans(each, dtype, layout) for each in passes)
    missing = set()
    for each in passes:
        exists = getattr(cuda_emulator.library(), f"exists_{each}_{TYPES[DTYPES.index(dtype)]}")
        missing |= {(each, *key) for key in itertools.product((1, 2, 4, 8), (2, 4, 8)) if exists(*key)}
    # Calls that use two new kernels come before those that use one.
    for new in (2, 1):
        for call in [call for call in forward if call in backward]:
            kernels = {(passes[0], *forward[call]), (passes[1], *backward[call])}
            if len(kernels & missing) < new:
                continue
            missing -= kernels
            channels, rows, (kilobytes, max_ranks) = call
            name, height, width = LAYOUTS[layout]
            found = problem(
                op,
                (),
                name,
                batch=1,
                channels=channels,
                height=height,
                width=width,
                tokens=rows,
                queries=rows,
            )
            reports = check(
                found,
                dtype,
                seed=channels,
                copies=cuda_emulator.RANDOM,
                shared_bytes=1024 * kilobytes,
                max_ranks=max_ranks,
            )
            assert {(each, report.mt, report.nt) for each, report in reports.items()} == kernels
    # The others are launched where a setting names them.
    name, height, width = LAYOUTS[layout]
    for each, mt, nt in sorted(missing):
        sizes = {"channels": 16 * mt + 8, "height": height, "width": width, "tokens": 4 * nt + 1}
        found = problem(op, (), name, batch=1, queries=4 * nt + 1, **sizes)
        maps = "halves" if layout == "first" else layout
        kind = settings.DTYPES[DTYPES.index(dtype)]
        setting = Setting(each, kind, maps, 8 * nt, 16 * mt + 8, mt=mt, ranks=1, stages=2)
        with using(setting):
            report = check(found, dtype, seed=mt, copies=cuda_emulator.RANDOM)[each]
        assert (report.mt, report.nt) == (mt, nt)


@contextlib.contextmanager
def using(setting):
    settings.use(cuda_emulator.library(), [setting])
    try:
        yield
    finally:
        settings.use(cuda_emulator.library(), [])
