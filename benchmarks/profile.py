"""``python -m benchmarks profile``: what the time of our CPU kernels goes into, by Linux's sampling profiler.

The time of a call is divided into four parts, in seconds:

- products: what the three matrix products take where all they read and write lies in a cache. This is
  measured in a call of the same op on a map so small that it stays there, and scaled by the size of the map.
- waiting: what they take beyond that in the call itself, for memory and for the caches behind the first.
- between products: softmax, gradients of scores, packing of operands and copies.
- outside: PyTorch, Python, the system, and threads that wait for each other.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import shapes
from benchmarks.processes import CPU, Message, Plan, UsageError, cpus_of
from benchmarks.results import OURS, PART, Row
from benchmarks.shapes import Case, Shape

if TYPE_CHECKING:
    from benchmarks.problems import OpProblem

MODE = "profile"
_OURS = "vt_fast cpu"
PRODUCTS, WAITING, BETWEEN, OUTSIDE = PARTS = ("products", "waiting", "between products", "outside")
_HERTZ = 1000  # a sample takes some 20 us
_SECONDS, _QUICK_SECONDS = 2.0, 0.2
_PATIENCE = 5.0  # seconds that perf may take to answer
# Those of benchmarks/results/cpu.csv.
_SHAPES = (*shapes.SHAPES, Shape(16, 14, 14, 768, 24))
# Of four maps: x, the result, and their gradients. They fit into a second-level cache of 1 MiB.
_CACHED_BYTES, _CACHED_PIXELS = 1 << 19, (8, 16)
_LIBRARY = re.compile(r"libvt_fast_cpu[^/]*\.so")
# Functions of products.h and expand.h, with `expand`, which calls them; and copies of the C library, most of
# which are our packing.
_PRODUCT = re.compile(r"::(?:broadcast|accumulate|expand)(?:_\w+)?$|::stream_run$")
_COPY = re.compile(r"_*mem(?:cpy|move)")
_MANGLED = "(worker)"  # the loop over a worker's units, whose name perf cannot demangle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The mode's options."""
    add = parser.add_argument
    add("--op", nargs="+", choices=shapes.OPS, default=[*shapes.OPS])
    text = "of those that python -m benchmarks list prints"
    add("--shape", nargs="+", choices=list(shapes.REGISTRY), metavar="BxNxCxL", help=text)
    add("--dtype", nargs="+", choices=shapes.DTYPES, default=["bf16"], help="default: bf16")
    add("--layout", nargs="+", choices=shapes.LAYOUTS, default=list(shapes.LAYOUTS))
    add("--pass", nargs="+", choices=shapes.PASSES, default=list(shapes.PASSES), dest="passes")
    add("--threads", type=int, nargs="+", metavar="T", help="default: 1 and 2")


def plans(options: argparse.Namespace) -> list[Plan]:
    """A process for each number of threads.

    Raises:
        UsageError: there is no profiler here, or nothing that it could look at.
    """
    if options.device != CPU:
        text = "python -m tools.counters reads the counters of a GPU"
        raise UsageError(f"--device must be {CPU} in mode {MODE}, got {options.device}: {text}")
    if shutil.which("perf") is None:
        raise UsageError(
            "perf is not on the PATH: it is in the package linux-perf or linux-tools of your system"
        )
    wanted = [shapes.REGISTRY[label] for label in options.shape or ()]
    wanted = wanted or [*(shapes.QUICK_SHAPES if options.quick else _SHAPES)]
    cases = shapes.cases(options.op, wanted, dtypes=options.dtype, layouts=options.layout)
    available = len(cpus_of(None))
    return [
        Plan(
            problems=[case.spec(passes=options.passes) for case in cases],
            cpus=cpus_of(count),
            quick=options.quick,
            work="benchmarks.profile",
        )
        for count in options.threads or [count for count in shapes.THREADS if count <= available]
    ]


def work(plan: Plan) -> Iterator[Message]:
    """Profile each case in each pass."""
    import torch

    from benchmarks import devices
    from benchmarks.roofline import Ceilings

    torch.set_num_threads(len(plan.cpus))
    device = devices.make(plan.device, plan.cpus)
    seconds = _QUICK_SECONDS if plan.quick else _SECONDS
    ceilings: dict[str, Ceilings] = {}
    for index, spec in enumerate(plan.problems):
        case = Case.of(spec)
        yield Message(index=index, case=case.label)
        if case.dtype not in ceilings:
            ceilings[case.dtype] = device.ceilings(case.dtype, quick=plan.quick)
        try:
            # All together, so that no file has a call without its parts.
            yield Message(
                rows=list(_rows(case, spec["passes"], ceilings[case.dtype], len(plan.cpus), seconds))
            )
        except RuntimeError as error:
            yield Message(problem=f"{case.label}: {error}")
    yield Message(rows=[row for each in ceilings.values() for row in each.rows()])


def _rows(case: Case, passes: Sequence[str], ceilings: Any, threads: int, seconds: float) -> Iterator[Row]:
    """For each pass the call's row, with its floor, and one for each part."""
    import torch

    small = cached(case)
    torch.set_num_threads(1)
    _, calls = _calls(small, passes)
    alone = {which: sample(call, seconds) for which, call in calls.items()}
    torch.set_num_threads(threads)
    size, cached_size = (math.prod(each.shape.sizes[:3]) for each in (case, small))
    problem, calls = _calls(case, passes)
    for which, call in calls.items():
        compulsory = problem.work(which)
        ceilings.measure(compulsory, anew=True)
        found = sample(call, seconds)
        ceilings.measure(compulsory)
        floor = ceilings.floor(compulsory)
        least = alone[which].of(_is_product) * size / cached_size / threads
        products, library = found.of(_is_product) / threads, found.of(_is_ours) / threads
        parts = {
            PRODUCTS: least,
            WAITING: products - least,
            BETWEEN: library - products,
            OUTSIDE: found.seconds - library,
        }
        common: dict[str, Any] = {"mode": MODE, **case.fields, "which": which, "threads": threads}
        common |= {"floor": floor.seconds, "bound": floor.bound, "rounds": found.calls}
        ours: dict[str, Any] = {"role": OURS, "note": found.summary(threads)}
        yield Row(**common, **ours, contender=_OURS, median=found.seconds)
        part: dict[str, Any] = {"role": PART}
        for name, seconds_of in parts.items():
            yield Row(**common, **part, contender=name, median=seconds_of)


def _calls(case: Case, passes: Sequence[str]) -> tuple[OpProblem, dict[str, Callable[[], object]]]:
    """A case, and the calls of our kernels in it.

    Raises:
        RuntimeError: there are no kernels.
    """
    import torch

    from benchmarks.problems import OpProblem

    problem = OpProblem(case, torch.device(CPU), (), judged=False)
    (ours,) = [each for each in problem.contenders if each.role == OURS]
    if ours.name != _OURS:
        raise RuntimeError(f"the CPU kernels must be built, {ours.name} is all there is: see make native")
    return problem, {which: problem.call(ours, which) for which in passes}


def cached(case: Case) -> Case:
    """The same on one sample that stays in the second-level cache.

    Example:
        >>> cached(Case("project", Shape(32, 14, 14, 1024, 16), "bf16", "nchw")).shape.label
        '1x196x256x16'
    """
    _, height, width, channels, tokens = case.shape
    if height * width > 256:  # more than one tile
        height, width = _CACHED_PIXELS
    itemsize = 2 if case.dtype == "bf16" else 4
    while channels % 2 == 0 and 4 * itemsize * height * width * channels > _CACHED_BYTES:
        channels //= 2
    return case._replace(shape=Shape(1, height, width, channels, tokens))


@dataclass(frozen=True)
class Samples:
    """``calls`` calls of ``seconds`` each, and how often a function of a library was seen running in them."""

    calls: int
    seconds: float
    counts: Counter[tuple[str, str]]

    def of(self, chosen: Callable[[str, str], bool]) -> float:
        """Seconds of all threads in these functions, in one call."""
        return sum(count for key, count in self.counts.items() if chosen(*key)) / _HERTZ / self.calls

    def summary(self, threads: int) -> str:
        """The functions that take most of the time."""
        total = self.calls * self.seconds * _HERTZ * threads
        return ", ".join(
            f"{function.rpartition('::')[2]} {count / total:.0%}"
            for (function, _), count in self.counts.most_common(8)
        )


def _is_product(function: str, library: str) -> bool:
    return bool(_LIBRARY.fullmatch(library) and _PRODUCT.search(function))


def _is_ours(function: str, library: str) -> bool:
    return bool(_LIBRARY.fullmatch(library) or _COPY.match(function))


def sample(call: Callable[[], object], seconds: float) -> Samples:
    """Repeat a call for so many seconds, with the profiler looking.

    Raises:
        RuntimeError: the profiler does not work here, or the kernels have no symbols.
    """
    for _ in range(3):
        call()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "samples"
        with _Profiler(data):
            calls, start, elapsed = 0, time.perf_counter(), 0.0
            while elapsed < seconds or calls < 2:
                call()
                calls, elapsed = calls + 1, time.perf_counter() - start
        words = ["perf", "script", "-i", str(data), "-F", "ip,sym,dso"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"perf script failed: {done.stderr.strip()[-300:]}")
    counts = parse(done.stdout)
    if not counts:
        raise RuntimeError("perf has seen nothing")
    nameless = sum(counts[key] for key in counts if key[0] == "[unknown]" and _LIBRARY.fullmatch(key[1]))
    if 10 * nameless > sum(counts.values()):
        raise RuntimeError("the kernels have no symbols: build them from source")
    mangled = sum(counts[key] for key in counts if key[0] == _MANGLED)
    if 2 * mangled > sum(counts[key] for key in counts if _LIBRARY.fullmatch(key[1])):
        raise RuntimeError("this perf does not demangle the names of C++ functions")
    return Samples(calls, elapsed / calls, counts)


class _Profiler:
    """Attaches ``perf record`` to all threads of this process, in the body of a ``with`` statement."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def __enter__(self) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        words = f"perf record -qBN -e cpu-clock -F {_HERTZ} --strict-freq -D -1 -p {os.getpid()}".split()
        words += ["-o", str(self._data), "--control", f"fd:{commands},{answers}"]
        self._process = subprocess.Popen(
            words, pass_fds=(commands, answers), stderr=subprocess.PIPE, text=True
        )
        os.close(commands)
        os.close(answers)  # so that reading ends where perf does
        self._say("enable")

    def __exit__(self, *_: object) -> None:
        self._say("stop")
        self._close()
        if self._process.returncode != 0:
            raise RuntimeError(f"perf record failed: {self._said}")

    def _say(self, word: str) -> None:
        """Send a command and wait until it is carried out; where it is not, close all and raise."""
        with contextlib.suppress(BrokenPipeError):  # perf has ended, and says why
            os.write(self._write, f"{word}\n".encode())
        answered, _, _ = select.select([self._read], [], [], _PATIENCE)
        if not answered:
            self._process.kill()
            self._close()
            raise RuntimeError(f"perf record does not answer to {word}: a newer version of perf may")
        if not os.read(self._read, 16).startswith(b"ack"):
            self._close()
            raise RuntimeError(f"perf record failed: {self._said}")

    def _close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        self._said = self._process.communicate()[1].strip()[-300:]


def parse(text: str) -> Counter[tuple[str, str]]:
    """Functions, without template arguments, and file names of libraries, as ``perf script`` prints them.

    Example:
        >>> parse("  7f12 void vt::avx2::expand_block<vt::Plain<float>, 8>(long) (/lib/libvt_fast_cpu.so)")
        Counter({('vt::avx2::expand_block', 'libvt_fast_cpu.so'): 1})
    """
    counts: Counter[tuple[str, str]] = Counter()
    for line in text.splitlines():
        found = re.fullmatch(r"\s*[0-9a-f]+ (.*) \((.*)\)", line)
        if found:
            function = re.sub("^_Z.*", _MANGLED, found[1]).partition("<")[0].removeprefix("void ")
            counts[function, os.path.basename(found[2])] += 1
    return counts
