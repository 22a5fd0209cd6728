"""``python -m benchmarks overhead``: the cost of a call where there is next to nothing to compute.

And that of the first call of a process, in fresh processes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from benchmarks import shapes
from benchmarks.processes import CPU, Died, Message, Plan, cpus_of, messages
from benchmarks.results import BACKEND, FAILED, OURS, PEER, Row
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
_PROCESSES = 5
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

    kind, dtype = (
        (CPU, options.dtype or "fp32") if options.device == CPU else ("cuda", options.dtype or "bf16")
    )
    # Compiling takes longer than all the rest of a quick run.
    skipped = "compile " if options.quick else "none"
    wanted = [name for name in PEERS if not name.startswith(skipped)]
    chosen = peers.chosen(wanted if options.peers is None else options.peers, kind)
    sizes = shapes.OVERHEAD_SHAPES[: 1 if options.quick else None]
    cases = [Case(op, size, dtype, "channels_last") for size in sizes for op in OPS]
    cases.append(Case(STACK, shapes.OVERHEAD_STACK_SHAPE, dtype, "channels_last", 1))
    # On one thread: two would only wait for each other.
    common: dict[str, Any] = {"cpus": cpus_of(1), "device": options.device, "quick": options.quick}
    calls = Plan(
        problems=[case.spec(chosen, mode=MODE) for case in cases if case.op in options.op],
        budget=QUICK_BUDGET if options.quick else BUDGET,
        repeat=QUICK_REPEAT if options.quick else REPEAT,
        **common,
    )
    case = Case("tokenize", _QUICK_SHAPE if options.quick else _FIRST_SHAPE, dtype, "channels_last")
    names = [name for name in _FIRST if not name.startswith(skipped)]
    specs = [{**case.spec(), "contender": name} for name in names]
    first = Plan(problems=specs, work="benchmarks.overhead", **common)
    return [calls] if options.no_first_call else [calls, first]


def work(plan: Plan) -> Iterator[Message]:
    """First calls of each contender in fresh processes; of those that compile also with empty caches."""
    for index, spec in enumerate(plan.problems):
        if spec.get("fresh"):  # this process is one
            yield Message(facts={"seconds": _steps(spec, plan.device)})
            return
        name = spec["contender"]
        yield Message(index=index, case=f"first call, {name}")
        compiles = name.startswith("compile ") or (_FIRST[name] == OURS and plan.device != CPU)
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, dict.fromkeys(_CACHES, folder)),
        ):
            for cold in (True, False) if compiles else (False,):
                yield Message(rows=list(_rows(plan, spec, cold=cold)))


def _rows(plan: Plan, spec: dict[str, Any], *, cold: bool) -> Iterator[Row]:
    """A row for each step of a fresh process, over so many of them."""
    fields = Case.of(spec).fields | {"mode": MODE, "contender": spec["contender"]}
    fields["case"] = "first call of tokenize" + ", empty caches" * cold
    on_cpu = plan.device == CPU
    place: dict[str, Any] = {"threads": 1, "clock": "wall"} if on_cpu else {"clock": "calls"}
    place["role"] = _FIRST[spec["contender"]]
    fresh = Plan(problems=[{**spec, "fresh": True}], cpus=plan.cpus, device=plan.device, work=plan.work)
    count = 1 if cold or plan.quick else _PROCESSES
    try:
        found = [message.facts["seconds"] for _ in range(count) for message in messages(fresh)]
    except Died as error:  # it has said why on stderr
        place |= {"status": FAILED, "reason": str(error)}
        yield Row(**fields, **place, which="first call")
        return
    for step in found[0]:
        times = quantiles([each[step] for each in found])._asdict()
        yield Row(**fields, **place, which=step, rounds=count, **times)


def _steps(spec: dict[str, Any], device: str) -> dict[str, float]:
    """Seconds of each step of a process. Torch is not imported before that is timed."""
    found: dict[str, float] = {}

    def timed(step: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = function()
        found[step] = time.perf_counter() - start
        return value

    name = spec["contender"]
    torch = timed("import torch", lambda: __import__("torch"))
    if name.startswith("vt_fast"):
        vt_fast = timed("import vt_fast", lambda: __import__("vt_fast"))
    from benchmarks import inputs

    case = Case.of(spec)
    operands, _ = inputs.draw(case, device)
    x, queries = inputs.lay_out(operands["x"], "x", case), operands["queries"]
    if name.startswith("vt_fast"):
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
    return found
