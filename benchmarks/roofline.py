"""The least time that a job can take on this machine: compulsory bytes and FLOPs over measured ceilings."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.inputs import DTYPES
from benchmarks.results import Row
from benchmarks.timing import Quantiles, quantiles

SOURCE = Path(__file__).with_name("probe.cpp")
_FLAGS = "-O3 -std=c++17 -ffp-contract=fast -fPIC -shared -pthread"
# Larger buffers are not faster, and the case needs the memory.
_MOST_BYTES, _QUICK_BYTES = 1 << 30, 1 << 22
_KEPT = 2  # variants of a stream with either kind of stores, after a first look at all
_LEAST_PROBES, _MOST_PROBES, _PROBE_SECONDS = 5, 200, 0.01
_STEPS, _CLOCK_STEPS = 200_000, 20_000  # about a millisecond
_MATRIX_SIDES, _QUICK_SIDES = (2048, 4096, 8192), (256,)


class Work(NamedTuple):
    """What no implementation can avoid: bytes, and FLOPs of matrix products, two a multiply-add.

    What runs one after another is a sequence of these: floors add up.
    """

    reads: int
    writes: int
    flops: int


class Floor(NamedTuple):
    """Seconds, and the term that sets most of them."""

    seconds: float
    bound: Literal["bytes", "flops"]


# Maps read and written, forward and backward; and products of N L C. What a backward computes again is not
# compulsory.
_MAPS = {"tokenize": ((1, 0), (1, 1)), "project": ((1, 1), (2, 1)), "project_tokenize": ((1, 1), (2, 1))}
_PRODUCTS = {"tokenize": (2, 4), "project": (2, 4), "project_tokenize": (4, 8)}


def op_work(
    op: str,
    which: str,
    batch: int,
    pixels: int,
    channels: int,
    tokens: float,
    itemsize: int,
    more: Sequence[tuple[float, float]] = ((0, 0), (0, 0)),
) -> tuple[Work, ...]:
    """Compulsory work of an op on a map of (batch, pixels, channels); ``which`` is the pass.

    ``more``: maps that are read and written beside those of the op, forward and backward.

    Example:
        >>> op_work("tokenize", "forward", 1, 100, 8, 4, itemsize=2)
        (Work(reads=1600, writes=0, flops=12800),)
    """
    size = batch * pixels * channels
    both = tuple(
        Work(
            int((reads + extra[0]) * size) * itemsize,
            int((writes + extra[1]) * size) * itemsize,
            int(2 * products * size * tokens),
        )
        for (reads, writes), products, extra in zip(_MAPS[op], _PRODUCTS[op], more, strict=True)
    )
    return both[:1] if which == "forward" else both


@dataclass
class _Probe:
    """A measurement that is repeated.

    ``run`` takes a number of repetitions and buffers to read and to write, and returns the bytes or FLOPs of
    one repetition, and the seconds of each. ``since``: how many of them belong to earlier cases.
    """

    case: str
    name: str
    run: Callable[[int, Tensor, Tensor], tuple[float, list[float]]]
    shape: str = ""
    past_caches: bool = False
    amount: float = 0.0
    seconds: list[float] = field(default_factory=list)
    since: int = 0

    def repeat(self, buffers: tuple[Tensor, Tensor], *, anew: bool, quick: bool) -> None:
        self.since = len(self.seconds) if anew else self.since
        before = self.seconds[-1] if self.seconds else self.run(1, *buffers)[1][0]
        times = 1 if quick else max(_LEAST_PROBES, min(_MOST_PROBES, int(_PROBE_SECONDS / before)))
        self.amount, seconds = self.run(times, *buffers)
        self.seconds += seconds

    def cost(self, amount: float) -> Quantiles:
        """Seconds of so many bytes or FLOPs, by the probes of the case or by all where those are faster.

        The clock rate changes from case to case. Disturbed probes must not raise the floor, which those of
        earlier cases prevent.
        """
        seconds = min(quantiles(self.seconds[since:]) for since in (self.since, 0))
        return Quantiles(*(value * amount / self.amount for value in seconds))


class Ceilings:
    """The ceilings of one process, device and dtype. Make one per dtype and keep it over all cases.

    Args:
        products: probes of FLOPs.
        streams: the probes of so many bytes to read and to write, in turning passes or not.
        buffers: memory for such probes.
        fields: of all rows.
        others: probes for information alone.
        quick: one short repetition each.
    """

    def __init__(
        self,
        products: Sequence[_Probe],
        streams: Callable[[int, int, bool], list[_Probe]],
        buffers: Callable[[int, int], tuple[Tensor, Tensor]],
        fields: dict[str, Any],
        *,
        others: Sequence[_Probe] = (),
        quick: bool,
    ) -> None:
        self._products, self._others, self._fields, self._quick = products, others, fields, quick
        self._make_streams, self._make_buffers = streams, buffers
        self._streams: dict[tuple[int, int, bool], list[_Probe]] = {}

    def measure(self, work: Sequence[Work], *, anew: bool = False) -> None:
        """Probe what bounds this work, now: before a case, after it, and in between where that is possible.

        ``anew``: a new case begins.
        """
        nothing = (torch.empty(0), torch.empty(0))
        for probe in [*self._others, *self._products]:
            probe.repeat(nothing, anew=anew, quick=self._quick)
        for key in {_key(item, work) for item in work if item.reads or item.writes}:
            share = min(1.0, (_QUICK_BYTES if self._quick else _MOST_BYTES) / (key[0] + key[1]))
            reads, writes = (int(share * size) for size in key[:2])
            buffers = self._make_buffers(reads, writes)
            if key not in self._streams:
                self._streams[key] = self._fastest(self._make_streams(reads, writes, key[2]), buffers)
            for probe in self._streams[key]:
                probe.repeat(buffers, anew=anew, quick=self._quick)

    def _fastest(self, probes: list[_Probe], buffers: tuple[Tensor, Tensor]) -> list[_Probe]:
        found: dict[str, list[float]] = {probe.name: [] for probe in probes}
        for _, probe in itertools.product(range(1 if self._quick else 2), probes):
            amount, seconds = probe.run(2, *buffers)
            found[probe.name] += [value / amount for value in seconds]
        ranked = sorted(probes, key=lambda probe: quantiles(found[probe.name]).median)
        # Which stores are faster changes with what else uses the caches.
        return [
            probe for kind in (False, True) for probe in [p for p in ranked if p.past_caches == kind][:_KEPT]
        ]

    def floor(self, work: Sequence[Work]) -> Floor:
        """By the probes: see ``_Probe.cost``. FLOPs alone need no more than one :meth:`measure` of anything.

        Raises:
            KeyError: :meth:`measure` was not called with this work.
        """
        spent = {"bytes": 0.0, "flops": 0.0}
        for item in work:
            terms = {"flops": min(probe.cost(item.flops) for probe in self._products)}
            if item.reads or item.writes:
                streams = self._streams[_key(item, work)]
                terms["bytes"] = min(probe.cost(item.reads + item.writes) for probe in streams)
            bound = max(terms, key=terms.__getitem__)
            spent[bound] += terms[bound].median
        return Floor(sum(spent.values()), "bytes" if spent["bytes"] >= spent["flops"] else "flops")

    def rows(self) -> list[Row]:
        """One for each kind, the fastest variant's, for a result file. A rate is ``work / median``."""
        streams = [min(probes, key=lambda probe: probe.cost(1)) for probes in self._streams.values()]
        rows = []
        for probe in [*self._others, *self._products, *streams]:
            if probe.seconds:
                fields: dict[str, Any] = {
                    "mode": "ceilings",
                    "case": probe.case,
                    "shape": probe.shape,
                    "contender": probe.name,
                }
                fields |= {"rounds": len(probe.seconds), "work": probe.amount, **self._fields}
                rows.append(Row(role="ceiling", **fields, **quantiles(probe.seconds)._asdict()))
        # One stream may be the fastest of several kinds.
        return list({row.key: row for row in rows}.values())


def _key(item: Work, work: Sequence[Work]) -> tuple[int, int, bool]:
    """A stream's sizes, and whether it turns: a second pass may start with what the first left in a cache."""
    return item.reads, item.writes, len(work) > 1


class InstructionSet(NamedTuple):
    """``needs``: what the processor's flags must name. ``products``: multiply-adds of one instruction."""

    name: str
    machine: str
    needs: str
    flags: str
    products: int
    dtype: str = "fp32"


_SETS = (
    InstructionSet("sse2", "x86_64", "sse2", "-mno-avx", 4),
    InstructionSet("avx2", "x86_64", "avx2 fma", "-mavx2 -mfma -mno-avx512f", 8),
    InstructionSet("avx512", "x86_64", "avx512f", "-mavx512f -mprefer-vector-width=512", 16),
    InstructionSet("avx512_bf16", "x86_64", "avx512_bf16", "-mavx512f -mavx512bf16 -DDOTS", 32, "bf16"),
    InstructionSet("amx_bf16", "x86_64", "amx_bf16", "-mavx512f -mamx-tile -mamx-bf16 -DTILES", 8192, "bf16"),
    InstructionSet("neon", "aarch64", "asimd", "", 4),
    InstructionSet("neon_bf16", "aarch64", "bf16", "-march=armv8.2-a+bf16 -DDOTS", 16, "bf16"),
)


def instruction_sets() -> list[InstructionSet]:
    """Those of this processor that the probe knows.

    Raises:
        RuntimeError: it knows none.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
    here = platform.machine()
    found = [each for each in _SETS if each.machine == here and flags.issuperset(each.needs.split())]
    if not found:
        raise RuntimeError(f"{SOURCE.name} measures x86-64 and aarch64 processors, and this is {here}")
    return found


@functools.cache
def library(each: InstructionSet) -> ctypes.CDLL:
    """The probe for an instruction set, compiled unless an earlier process has done so.

    Raises:
        RuntimeError: it does not compile; the message says what to do.
    """
    names = ("g++", "c++", "clang++")
    compiler = shlex.split(os.environ.get("CXX", "")) or list(filter(None, map(shutil.which, names)))[:1]
    advice = f"{SOURCE.name} measures the floor: install g++, or name a C++ compiler in CXX"
    if not compiler:
        raise RuntimeError(f"no C++ compiler was found ({', '.join(names)} were looked for); {advice}")
    command = [*compiler, *_FLAGS.split(), *each.flags.split(), str(SOURCE)]
    key = hashlib.sha256(SOURCE.read_bytes() + repr(command).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vt_fast"
    path = folder / f"probe-{each.name}-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may be doing the same.
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            done = subprocess.run([*command, "-o", f"{draft}/probe.so"], capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"`{shlex.join(command)}` failed: {done.stderr.strip()}; {advice}")
            os.replace(f"{draft}/probe.so", path)
    found = ctypes.CDLL(str(path))
    found.run_chains.restype = found.count_cycles.restype = ctypes.c_double
    return found


class Team:
    """Threads that run the probe, one on each of the CPUs. A first repetition is left out of all times."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self.cpus = list(cpus)
        self._arguments = (ctypes.c_int * len(cpus))(*cpus), ctypes.c_int(len(cpus))

    def chain(self, each: InstructionSet, kernel: str, steps: int, times: int) -> tuple[float, list[float]]:
        """FLOPs of ``run_chains`` or cycles of ``count_cycles``, and seconds of each repetition."""
        seconds = (ctypes.c_double * (times + 1))()
        run = getattr(library(each), kernel)
        return run(ctypes.c_long(steps), *self._arguments, times + 1, seconds), list(seconds)[1:]

    def stream(
        self, each: InstructionSet, manner: tuple[bool, int, bool], times: int, source: Tensor, target: Tensor
    ) -> tuple[int, list[float]]:
        """The sum of the words that are read and not written, and seconds of each repetition.

        ``manner``: non-temporal stores, lanes, every second repetition backwards.

        Raises:
            RuntimeError: a thread could not be put on its CPU.
        """
        seconds, total = (ctypes.c_double * (times + 1))(), ctypes.c_uint32()
        sizes = [
            argument
            for buffer in (source, target)
            for argument in (ctypes.c_void_p(buffer.data_ptr()), ctypes.c_size_t(buffer.nbytes))
        ]
        run = library(each).stream
        if not run(*sizes, *manner, *self._arguments, times + 1, seconds, ctypes.byref(total)):
            raise RuntimeError(f"`cpus` must be CPUs that this process may use, got {self.cpus}")
        return total.value, list(seconds)[1:]


def cpu_ceilings(dtype: str, cpus: Sequence[int] | None = None, *, quick: bool = False) -> Ceilings:
    """Of a CPU, by the project's own probe, which is compiled on first use, in a thread on each of ``cpus``.

    Raises:
        RuntimeError: the probe does not compile, or knows no such processor.
    """
    team = Team(sorted(os.sched_getaffinity(0)) if cpus is None else cpus)
    lanes_share = 0.5 if dtype == "fp64" else 1.0
    sets = [each for each in instruction_sets() if each.dtype in ("fp32", dtype)]
    vectors = [each for each in sets if each.dtype == "fp32"]

    def product(each: InstructionSet) -> _Probe:
        def run(times: int, *_: Tensor) -> tuple[float, list[float]]:
            flops, seconds = team.chain(each, "run_chains", _STEPS, times)
            return lanes_share * flops, seconds

        return _Probe("multiply-add", each.name, run)

    def stream(each: InstructionSet, manner: tuple[bool, int, bool], reads: int, writes: int) -> _Probe:
        past_caches, lanes, turning = manner
        words = [each.name, f"{lanes} lanes", "non-temporal" * past_caches, "turning" * turning]
        return _Probe(
            "stream",
            " ".join(filter(None, words)),
            lambda times, *buffers: (reads + writes, team.stream(each, manner, times, *buffers)[1]),
            shape=f"{reads}+{writes}",
            past_caches=past_caches,
        )

    def streams(reads: int, writes: int, turning: bool) -> list[_Probe]:
        non_temporal = writes and vectors[-1].machine == "x86_64"
        manners = itertools.product(
            (False, True) if non_temporal else (False,), (2, 8), (False, True) if turning else (False,)
        )
        return [stream(*each, reads, writes) for each in itertools.product(vectors[-2:], manners)]

    def buffers(reads: int, writes: int) -> tuple[Tensor, Tensor]:
        # From torch, so that they have such pages as the case's. Every thread touches its own part first.
        source, target = (torch.empty(size, dtype=torch.uint8) for size in (reads, writes))
        for buffer in (source, target):
            team.stream(vectors[-1], (False, 1, False), 0, torch.empty(0), buffer)
        return source, target

    clock = _Probe("clock", "cycles", lambda n, *_: team.chain(vectors[0], "count_cycles", _CLOCK_STEPS, n))
    # What the system does not let this process use has no FLOPs.
    products = [product(each) for each in sets if team.chain(each, "run_chains", 1, 0)[0]]
    fields = {"dtype": dtype, "threads": len(team.cpus)}
    return Ceilings(products, streams, buffers, fields, others=[clock], quick=quick)


def gpu_ceilings(
    dtype: str, device: Any, clock: Callable[[Callable[[], Any]], float], *, quick: bool = False
) -> Ceilings:
    """Of a GPU: the bandwidth of copies (of sums, for reads alone), and the best rate of ``torch.mm``.

    ``clock``: seconds of one call, with whatever is flushed before it.
    """
    most = _QUICK_BYTES if quick else 2 * _MOST_BYTES

    def product(side: int) -> _Probe:
        def run(times: int, *_: Tensor) -> tuple[float, list[float]]:
            a, result = torch.randn(2, side, side, device=device).to(DTYPES[dtype])
            return 2.0 * side**3, [clock(lambda: torch.mm(a, a, out=result)) for _ in range(times)]

        return _Probe("product", f"torch.mm {side}", run)

    def stream(size: int, shape: str, writes: bool) -> _Probe:
        def run(times: int, source: Tensor, target: Tensor) -> tuple[float, list[float]]:
            source, target = source[:size], target[:size]
            call = functools.partial(target.copy_, source) if writes else source.sum
            return (1.0 + writes) * source.nbytes, [clock(call) for _ in range(times)]

        return _Probe("stream", f"torch.{'copy_' if writes else 'sum'} {4 * size}", run, shape)

    def streams(reads: int, writes: int, _: bool) -> list[_Probe]:
        # What is written may stay in a cache. So a copy of no more bytes counts, too, where it is faster.
        sizes = {most // 8, min(most, reads + writes) // 8}
        kinds = {True, bool(writes)}
        return [stream(size, f"{reads}+{writes}", kind) for size in sizes if size for kind in kinds]

    def buffers(reads: int, writes: int) -> tuple[Tensor, Tensor]:
        source, target = torch.ones(2, most // 8, device=device)
        return source, target

    products = [product(side) for side in (_QUICK_SIDES if quick else _MATRIX_SIDES)]
    return Ceilings(products, streams, buffers, {"dtype": dtype, "clock": "graph"}, quick=quick)


def _lines(cpus: Sequence[int]) -> Iterator[str]:
    """The clock, the rates of instruction sets and bandwidths by size."""
    ceilings = cpu_ceilings("bf16", cpus)
    ceilings.measure([])
    (_, hertz), *rates = [(row.contender, (row.work or 0) / (row.median or 1)) for row in ceilings.rows()]
    yield f"{len(cpus)} threads, {hertz / 1e9:.2f} GHz"
    products = {each.name: each.products for each in instruction_sets()}
    for name, rate in rates:
        count = rate / len(cpus) / hertz / (2 * products[name])
        nearest = max(1, round(2 * count)) / 2
        yield f"  {name:12}{rate / 1e9:8.1f} GFLOP/s: {nearest} a cycle {count / nearest - 1:+.1%}"
    yield "  GB/s           read   write    copy   triad"
    for size in (100_000, 1_000_000, 6_400_000, 25_600_000, 100_000_000, 1_000_000_000):
        works = [Work(reads * size, writes * size, 0) for reads, writes in ((1, 0), (0, 1), (1, 1), (2, 1))]
        for work in works:
            ceilings.measure([work])
        found = [(work.reads + work.writes) / ceilings.floor([work]).seconds / 1e9 for work in works]
        yield f"  {size / 1e6:7.1f} MB" + "".join(f"{value:8.1f}" for value in found)


if __name__ == "__main__":
    allowed = sorted(os.sched_getaffinity(0))
    for threads in sorted({1, len(allowed)}):
        for line in _lines(allowed[:threads]):
            print(line, flush=True)
