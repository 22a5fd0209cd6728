"""``python -m benchmarks overhead``: the cost of a call where there is next to nothing to compute.

And that of the first call of a process, in fresh processes: this module, run as a program, is one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import shapes
from benchmarks.processes import CPU, Message, Plan, cpus_of
from benchmarks.results import BACKEND, OURS, PEER, Row
from benchmarks.shapes import OPS, STACK, Case, Shape
from benchmarks.timing import Budget, quantiles

MODE = "overhead"
# Plain PyTorch, and what usually makes it faster.
PEERS = ("eager", "folded", "sdpa", "compile eager", "compile folded")
# Calls in one turn of the clock.
REPEAT, QUICK_REPEAT = 100, 5
BUDGET = Budget(seconds=1.0, least=15, most=60, far_behind=1e9, behind=1e9)
QUICK_BUDGET = Budget(seconds=0.0, least=3, most=3, few=3, far_behind=1e9, behind=1e9)

# First calls, of tokenize: by our default backend, which takes longest to load, and by others.
_FIRST = {"vt_fast": OURS, "vt_fast torch": BACKEND, "eager": PEER, "sdpa": PEER, "compile eager": PEER}
_FIRST_SHAPE, _QUICK_SHAPE = Shape(8, 14, 14, 256, 16), Shape(1, 4, 4, 32, 4)
_PROCESSES, _SECONDS = 5, 600
# Where compilers keep what they have made.
_CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The mode's options."""
    add = parser.add_argument
    add("--op", nargs="+", choices=(*OPS, STACK), default=[*OPS, STACK])
    add("--dtype", choices=shapes.GPU_DTYPES, help="default: fp32 on a CPU, bf16 on a GPU")
    add("--peers", nargs="*", metavar="NAME", help=f"default: {', '.join(PEERS)}")
    add("--no-first-call", action="store_true", help="without fresh processes")


def plans(options: argparse.Namespace) -> list[Plan]:
    """A process for calls, and one that starts processes for first calls.

    Raises:
        UsageError: a peer is not known.
    """
    from benchmarks import peers

    on_gpu = options.device != CPU
    dtype = options.dtype or ("bf16" if on_gpu else "fp32")
    wanted = options.peers
    if wanted is None:
        # Compiling takes longer than all the rest of a quick run.
        wanted = [name for name in PEERS if not (options.quick and name.startswith("compile "))]
    chosen = peers.chosen(wanted, "cuda" if on_gpu else CPU)
    sizes = shapes.OVERHEAD_SHAPES[: 1 if options.quick else None]
    cases = [Case(op, size, dtype, "channels_last") for size in sizes for op in OPS]
    cases.append(Case(STACK, shapes.OVERHEAD_STACK_SHAPE, dtype, "channels_last", 1))
    calls = Plan(
        problems=[case.spec(chosen, mode=MODE) for case in cases if case.op in options.op],
        cpus=cpus_of(1),  # two would only wait for each other
        device=options.device,
        budget=QUICK_BUDGET if options.quick else BUDGET,
        quick=options.quick,
        repeat=QUICK_REPEAT if options.quick else REPEAT,
    )
    names = [name for name in _FIRST if not (options.quick and name.startswith("compile "))]
    first = Plan(
        problems=[{"contender": name, "dtype": dtype} for name in names],
        cpus=calls.cpus,
        device=options.device,
        quick=options.quick,
        work="benchmarks.overhead",
    )
    return [calls] if options.no_first_call else [calls, first]


def work(plan: Plan) -> Iterator[Message]:
    """First calls of each contender; of those that compile also with empty caches."""
    shape = _QUICK_SHAPE if plan.quick else _FIRST_SHAPE
    for index, spec in enumerate(plan.problems):
        name = spec["contender"]
        yield Message(index=index, case=f"first call, {name}")
        compiles = name.startswith("compile ") or (_FIRST[name] == OURS and plan.device != CPU)
        with contextlib.ExitStack() as stack:
            folders = {each: stack.enter_context(tempfile.TemporaryDirectory()) for each in _CACHES}
            for cold in (True, False) if compiles else (False,):
                fields = {
                    "mode": MODE,
                    "case": "first call of tokenize" + (", empty caches" if cold else ""),
                    "shape": shape.label,
                    "dtype": spec["dtype"],
                    "layout": "channels_last",
                    "threads": len(plan.cpus) if plan.device == CPU else None,
                    "clock": "wall" if plan.device == CPU else "calls",
                    "contender": name,
                    "role": _FIRST[name],
                }
                words = [name, json.dumps(shape), spec["dtype"], plan.device]
                count = 1 if cold or plan.quick else _PROCESSES
                yield Message(rows=list(_rows(words, folders, count, fields)))


def _rows(
    words: Sequence[str], caches: Mapping[str, str], count: int, fields: dict[str, Any]
) -> Iterator[Row]:
    """A row for each step of a fresh process, over so many of them."""
    found = []
    for _ in range(count):
        command = [sys.executable, "-m", "benchmarks.overhead", *words]
        settings = {**os.environ, **caches}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=_SECONDS)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
            reason = f"the process ended with status {done.returncode}: {last}"
            yield Row(**fields, which="first call", status="failed", reason=reason)
            return
        found.append(json.loads(done.stdout.splitlines()[-1]))
    for step in found[0]:
        median, low, high = quantiles([each[step] for each in found])
        yield Row(**fields, which=step, median=median, low=low, high=high, rounds=count)


def main(words: Sequence[str]) -> None:
    """Be the fresh process: print what each step took as JSON. Torch is not imported before that is timed."""
    name, sizes, dtype, device = words
    found: dict[str, float] = {}

    def timed(step: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = function()
        found[step] = time.perf_counter() - start
        return value

    torch = timed("import torch", lambda: __import__("torch"))
    vt_fast = timed("import vt_fast", lambda: __import__("vt_fast")) if _FIRST[name] != PEER else None
    batch, height, width, channels, tokens = json.loads(sizes)
    target = {
        "device": device,
        "dtype": {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype],
    }
    x = torch.randn(batch, channels, height, width, **target).contiguous(memory_format=torch.channels_last)
    queries = torch.randn(tokens, channels, **target) * channels**-0.5
    if vt_fast is not None:
        backend = name.partition(" ")[2] or None

        def call() -> None:
            vt_fast.tokenize(x, queries, backend=backend)
    else:
        from benchmarks import peers

        peer = next(peer for peer in peers.PEERS["tokenize"] if peer.name == name)
        function = peer.code if peer.compiled is None else peer.compiled()

        def call() -> None:
            function(x, queries)

    def finished() -> None:
        with torch.no_grad():
            call()
        if device != CPU:
            torch.cuda.synchronize()

    if device != CPU:
        torch.cuda.synchronize()
    timed("first call", finished)
    timed("second call", finished)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
