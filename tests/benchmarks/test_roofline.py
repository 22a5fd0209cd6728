"""Floors: the probe streams and counts what it says, and the floor is the larger of two terms."""

import os
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import roofline
from benchmarks.roofline import Ceilings, InstructionSet, Team, Work, op_work
from vt_fast import project, project_tokenize, tokenize

SETS = roofline.instruction_sets()
CPUS = sorted(os.sched_getaffinity(0))[:2]
UNIT = 256
PATTERNS = [(1, 0), (0, 1), (1, 1), (2, 1), (3, 1), (3, 2), (1, 3)]


def words(count):
    return torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32)


@pytest.mark.parametrize("each", [each for each in SETS if each.dtype == "fp32"], ids=lambda each: each.name)
@pytest.mark.parametrize("manner", [(False, 1, False), (True, 1, True), (True, 8, False), (False, 8, True)])
def test_streams_read_and_write_all_words_once(each, manner):
    share = UNIT * manner[1] * len(CPUS) // 4 * 3  # in words
    for reads, writes in PATTERNS:
        # The ends fill no unit.
        source, target = words(reads * share + 5), torch.zeros(writes * share + 5, dtype=torch.int32)
        total, seconds = Team(CPUS).stream(each, manner, 3, source, target)
        assert len(seconds) == 3
        assert min(seconds) > 0
        triad = writes and reads >= 2 * writes
        both, rest = (writes, reads - 2 * writes) if triad else (min(reads, writes), max(reads - writes, 0))
        want = target.new_full((writes * share + 5,), 7)
        want[: both * share] = source[: both * share]
        if triad:
            want[: both * share] += source[both * share : 2 * both * share]
        want[-5:] = 0
        torch.testing.assert_close(target, want, rtol=0, atol=0)
        assert total == int(source[(reads - rest) * share : reads * share].long().sum()) % 2**32


@pytest.mark.parametrize("each", SETS, ids=lambda each: each.name)
def test_chains_count_their_instructions(each):
    for cpus in (CPUS, CPUS[:1]):
        flops, seconds = Team(cpus).chain(each, "run_chains", 40, 2)
        chains = flops / (40 * len(cpus) * 2 * each.products)
        assert chains in (4, 12, 24)  # AMX, or three quarters of the registers
        assert len(seconds) == 2
        assert min(seconds) > 0
    assert Team(CPUS).chain(each, "count_cycles", 7, 1)[0] == 700


def test_a_cpu_that_is_not_there():
    with pytest.raises(RuntimeError, match="`cpus` must be CPUs that this process may use, got \\[1023\\]"):
        Team([1023]).stream(SETS[0], (False, 1, False), 1, words(64), words(64))


def test_no_compiler_and_unknown_processors(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for compiler, message in (
        ("", "no C.* compiler was found .*install g"),
        (f"{sys.executable} -c 1/0", r"` failed: (.|\n)*division by zero; probe.cpp"),
    ):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(RuntimeError, match=message):
            roofline.library(InstructionSet("none", "x86_64", "", compiler, 1))
    monkeypatch.setattr(roofline.platform, "machine", lambda: "riscv64")
    with pytest.raises(RuntimeError, match="x86-64 and aarch64 processors, and this is riscv64"):
        roofline.instruction_sets()


def ceilings_of(seconds):
    """Two products of 10 FLOPs and two streams, which take what ``seconds`` says at the time."""

    def probe(name, amount):
        return roofline._Probe("any", name, lambda times, *_: (amount, [seconds[name]] * times))

    def streams(reads, writes, turning):
        return [probe(f"stream{kind}{'+' * turning}", reads + writes) for kind in (1, 2)]

    products = [probe("product1", 10), probe("product2", 10)]
    return Ceilings(products, streams, lambda *_: (None, None), {"dtype": "fp32"}, quick=True)


def test_the_floor_is_the_larger_term_by_the_fastest_variants():
    seconds = {
        "product1": 1.0,
        "product2": 0.5,
        "stream1": 6.0,
        "stream2": 4.0,
        "stream1+": 2.0,
        "stream2+": 3.0,
    }
    ceilings = ceilings_of(seconds)
    bytes_alone, both = [Work(20, 10, 60)], [Work(20, 10, 60), Work(20, 10, 20)]
    ceilings.measure(bytes_alone)
    ceilings.measure(both)
    assert ceilings.floor(bytes_alone) == (4.0, "bytes")  # 3 s of FLOPs
    assert ceilings.floor(both) == (3.0 + 2.0, "flops")  # a second pass may turn
    assert ceilings.floor([Work(0, 0, 10)]).seconds == 0.5
    with pytest.raises(KeyError):
        ceilings.floor([Work(1, 2, 3)])
    best = {(row.contender, row.median, row.rounds) for row in ceilings.rows()}
    assert best == {("product1", 1.0, 2), ("product2", 0.5, 2), ("stream2", 4.0, 1), ("stream1+", 2.0, 1)}


def test_a_case_has_its_own_probes_unless_they_were_disturbed():
    seconds = {"product1": 1.0, "product2": 9.0, "stream1": 1.0, "stream2": 1.0}
    ceilings, work = ceilings_of(seconds), [Work(0, 0, 10)]
    ceilings.measure(work, anew=True)
    seconds["product1"] = 3.0
    ceilings.measure(work)
    assert ceilings.floor(work) == (2.0, "flops")
    seconds["product1"] = 0.5
    ceilings.measure(work, anew=True)
    assert ceilings.floor(work).seconds == 0.5
    seconds["product1"] = 9.0
    ceilings.measure(work, anew=True)
    assert ceilings.floor(work).seconds == 2.0  # the median of all


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_ceilings_of_this_cpu(dtype):
    ceilings = roofline.cpu_ceilings(dtype, CPUS, quick=True)
    work = op_work("project", "forward+backward", 2, 50, 64, 4, 4)
    ceilings.measure(work, anew=True)
    ceilings.measure(work[:1])
    assert ceilings.floor(work).seconds > 0
    rows = ceilings.rows()
    assert len({row.key for row in rows}) == len(rows)
    assert {row.case for row in rows} == {"clock", "multiply-add", "stream"}
    assert {row.contender for row in rows if row.case == "multiply-add"} <= {each.name for each in SETS}
    assert {(row.mode, row.role, row.threads, row.dtype) for row in rows} == {
        ("ceilings", "ceiling", len(CPUS), dtype)
    }


def test_ceilings_of_a_gpu_by_its_own_clock():
    called = []

    def clock(function):
        called.append(function())
        return 1e-3

    ceilings = roofline.gpu_ceilings("bf16", "cpu", clock, quick=True)
    ceilings.measure([Work(1000, 1000, 10)])
    assert {tensor.dtype for tensor in called} == {torch.bfloat16, torch.float32}
    # Of copies of 4 MiB and of 2000 bytes, which take the same time by this clock, the larger is the faster.
    assert ceilings.floor([Work(1000, 1000, 10)]).seconds == pytest.approx(1e-3 * 2000 / (1 << 22))
    ceilings.measure([Work(2000, 0, 10)])
    assert any(tensor.ndim == 0 for tensor in called)  # a sum
    assert ceilings.floor([Work(2000, 0, 10)]).seconds == pytest.approx(1e-3 * 2000 / (1 << 22))
    assert ceilings.floor([Work(0, 0, 2 * 256**3)]).seconds == pytest.approx(1e-3)


CALLS = {
    "tokenize": tokenize,
    "project": lambda x, rows: project(x, rows, rows, residual=x),
    "project_tokenize": lambda x, rows: project_tokenize(x, rows, rows, rows, residual=x),
}
MAPS = {"tokenize": 1 + 2, "project": 2 + 3, "project_tokenize": 2 + 3}


@pytest.mark.parametrize("op", CALLS)
def test_compulsory_work_is_no_more_than_what_the_op_does(op):
    x, rows = torch.randn(2, 30, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    forward, backward = op_work(op, "forward+backward", 2, 30, 8, 4, 4)
    assert op_work(op, "forward", 2, 30, 8, 4, 4) == (forward,)
    with FlopCounterMode(display=False) as counter:
        results = CALLS[op](x, rows)
        assert counter.get_total_flops() == forward.flops
        results = results if isinstance(results, tuple) else (results,)
        torch.autograd.backward(results, [torch.ones_like(result) for result in results])
    # The backward computes logits again.
    assert forward.flops + backward.flops < counter.get_total_flops() <= 2 * (forward.flops + backward.flops)
    assert sum(sum(work[:2]) for work in (forward, backward)) == MAPS[op] * x.nbytes
