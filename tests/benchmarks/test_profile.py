"""The mode ``profile``: perf itself where it works, and stand-ins for it."""

import shutil
import sys
from collections import Counter

import pytest
import torch

from benchmarks import profile
from benchmarks.processes import UsageError, messages
from benchmarks.profile import PARTS, cached, parse
from benchmarks.results import OURS, PART
from benchmarks.roofline import Floor
from benchmarks.shapes import FORWARD, PASSES, Case, Shape
from tests._support.measuring import plans, reported
from vt_fast import backends

pytestmark = pytest.mark.skipif(
    dict(backends.report())["cpu"] is not None, reason="the CPU kernels are not built"
)
QUICK = "profile --quick --threads 1 --layout nchw --op tokenize"


def stand_in(monkeypatch, folder, text):
    """Put a program named perf first on the PATH."""
    program = folder / "perf"
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.fixture
def perf():
    """Skips a test where perf cannot look at this process."""
    if shutil.which("perf") is None:
        pytest.skip("needs perf")
    try:
        profile.sample(lambda: sum(range(1000)), 0.05)
    except RuntimeError as error:
        pytest.skip(f"needs the right to use perf: {error}")


class Ceilings:
    """Of a machine whose floor is a millisecond."""

    def measure(self, work, *, anew=False):
        pass

    def floor(self, work):
        return Floor(1e-3, "flops")


def test_parts_of_several_threads(monkeypatch):
    product, other = ("vt::expand_block", "libvt_fast_cpu.so"), ("vt::weigh", "libvt_fast_cpu.so")
    elsewhere = ("malloc", "libc.so.6")
    # Of one sample on one thread, then of two samples on two threads, in milliseconds.
    alone = profile.Samples(10, 0.02, Counter({product: 100, elsewhere: 100}))
    found = profile.Samples(10, 0.05, Counter({product: 300, other: 200, elsewhere: 400}))
    samples = [alone, found]
    monkeypatch.setattr(profile, "sample", lambda call, seconds: samples.pop(0))
    case = Case("tokenize", Shape(2, 14, 14, 64, 8), "bf16", "nchw")
    before = torch.get_num_threads()
    try:
        whole, *parts = profile._rows(case, [FORWARD], Ceilings(), 2, 1.0)
    finally:
        torch.set_num_threads(before)
    assert (whole.median, whole.floor, whole.threads, whole.rounds) == (0.05, 1e-3, 2, 10)
    values = {"products": 0.010, "waiting": 0.005, "between products": 0.010, "outside": 0.025}
    assert {row.contender: row.median for row in parts} == pytest.approx(values)


def test_parts_of_a_call(perf):
    (plan,) = plans(f"{QUICK} --shape 32x196x256x16")
    rows = reported(plan)
    for which in PASSES:
        whole, *parts = [row for row in rows if row.which == which]
        assert (whole.role, whole.dtype, whole.threads) == (OURS, "bf16", 1)
        assert [(row.contender, row.role) for row in parts] == [(name, PART) for name in PARTS]
        products, waiting, between, outside = (row.median for row in parts)
        # Whatever else the machine does meanwhile is outside.
        assert 0 < between < products + waiting
        assert products > 0
        assert outside > 0
        assert "block" in whole.note


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import sys\nsys.exit('not for you')", "perf record failed: not for you"),
        # It ends in the middle.
        (
            "import os, re, sys\n"
            "read, write = map(int, re.search('fd:(.*),(.*)', ' '.join(sys.argv)).groups())\n"
            "os.read(read, 16)\n"
            "os.write(write, b'ack')\n"
            "sys.exit('the disk is full')\n",
            "perf record failed: the disk is full",
        ),
        # It cannot write all that it has seen.
        (
            "import os, re, sys\n"
            "read, write = map(int, re.search('fd:(.*),(.*)', ' '.join(sys.argv)).groups())\n"
            "for _ in range(2):\n"
            "    os.read(read, 16)\n"
            "    os.write(write, b'ack')\n"
            "sys.exit('no space left')\n",
            "perf record failed: no space left",
        ),
        # It does not know the command.
        ("import time\ntime.sleep(60)", "perf record does not answer to enable"),
        # It agrees to all, and has seen no function.
        (
            "import os, re, sys\n"
            "if sys.argv[1] == 'record':\n"
            "    read, write = map(int, re.search('fd:(.*),(.*)', ' '.join(sys.argv)).groups())\n"
            "    while os.read(read, 16):\n"
            "        os.write(write, b'ack')\n"
            "else:\n"
            "    print(' 7f1 [unknown] (/somewhere/libvt_fast_cpu.so)')\n",
            "the kernels have no symbols: build them from source",
        ),
    ],
)
def test_what_perf_cannot_do_is_a_problem(monkeypatch, tmp_path, text, problem):
    stand_in(monkeypatch, tmp_path, text)
    (plan,) = plans(f"{QUICK} --shape 16x196x768x24")
    (found,) = [message.problem for message in messages(plan) if message.problem]
    assert found.startswith("tokenize 16x196x768x24 bf16 nchw: ")
    assert problem in found


def test_bad_arguments_are_refused(monkeypatch):
    message = r"--device must be cpu in mode profile, got cuda:1: .*tools\.counters"
    with pytest.raises(UsageError, match=message):
        plans("profile --device cuda:1")
    monkeypatch.setattr(profile.shutil, "which", lambda name: "/usr/bin/perf")
    with pytest.raises(UsageError, match="--threads must be from 1"):
        plans("profile --threads 4096")
    monkeypatch.setattr(profile.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"perf is not on the PATH: .*linux-perf"):
        plans("profile")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("sizes", [(32, 14, 14, 1024, 16), (1, 200, 304, 256, 8), (9, 3, 5, 7, 2)])
def test_what_stays_in_the_cache(sizes, dtype):
    shape = Shape(*sizes)
    case = Case("project", shape, dtype, "nchw")
    small = cached(case)
    batch, height, width, channels, tokens = small.shape
    assert (batch, tokens) == (1, shape.tokens)
    assert 4 * height * width * channels * (2 if dtype == "bf16" else 4) <= 1 << 19
    # Rows as long as in the case itself, where one tile has them whole.
    whole = shape.height * shape.width <= 256
    assert height * width == (shape.height * shape.width if whole else 128)
    assert shape.channels % channels == 0
    assert cached(small) == small


def test_functions_are_those_of_our_products():
    lines = """
        7f1 vt::avx512::(anonymous namespace)::expand_block<vt::N, 8, 2> (/a b/libvt_fast_cpu.so)
        7f2 void vt::avx512::(anonymous namespace)::broadcast_rows<vt::N>(float*) (/a/libvt_fast_cpu-1.so)
        7f3 vt::avx512::(anonymous namespace)::expand<vt::N, true> (libvt_fast_cpu.so)
        7f4 vt::avx512::(anonymous namespace)::stream_run<vt::Bfloat16> (libvt_fast_cpu.so)
        7f5 vt::avx512::(anonymous namespace)::Bank<vt::N>::pack (libvt_fast_cpu.so)
        7f6 _ZZZN2vt11avx512_bf1612_GLOBAL__N_13runINS1_ (libvt_fast_cpu.so)
        7f7 __memmove_avx512_unaligned_erms (/usr/lib/libc.so.6)
        7f8 at::native::accumulate_block (libtorch_cpu.so)
        7f9 clear_page_erms ([kernel.kallsyms])
    something else
    """
    counts = parse(lines)
    assert sum(counts.values()) == 9
    assert counts["vt::avx512::(anonymous namespace)::Bank", "libvt_fast_cpu.so"] == 1
    found = profile.Samples(calls=2, seconds=0.0025, counts=counts)
    assert found.of(profile._is_product) == pytest.approx(4 / 1000 / 2)
    assert found.of(profile._is_ours) == pytest.approx(7 / 1000 / 2)
    assert "Bank 20%, (worker) 20%" in found.summary(threads=1)
