"""What a fresh process waits for: the imports, the first call of an op, and the second one.

Run as ``python -m benchmarks.first_call CONTENDER OP SHAPE DTYPE DEVICE``, it is such a process and prints
what it found as JSON. Nothing that imports torch is imported before that is timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Which of them are measured, of whatever registry: our default backend, the slowest to start first.
OURS, PLAIN = "vt_fast", "vt_fast torch"
PEERS = ("eager", "sdpa", "compile eager")
# Folders in which compilers keep what they have made.
_CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
_SECONDS = 600


def measure(
    device: str, dtype: str, processes: int, cpus: Sequence[int], *, quick: bool = False
) -> list[Any]:
    """A FirstCall of :mod:`benchmarks.records` for each contender; two, cold and warm, if it compiles."""
    from benchmarks.cases import Shape
    from benchmarks.records import FirstCall

    shape = Shape(1, 4, 4, 32, 4) if quick else Shape(8, 14, 14, 256, 16)
    found = []
    names = [OURS, PLAIN, *(name for name in PEERS if not (quick and name.startswith("compile ")))]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            caches = {variable: str(Path(folder) / variable) for variable in _CACHES}
            compiles = name.startswith("compile ") or (name == OURS and device != "cpu")
            for cold in (True, False) if compiles else (False,):
                each = FirstCall(name, "tokenize", shape, dtype, cold)
                found.append(each)
                for _ in range(1 if cold else processes):
                    try:
                        seconds = _process(each, device, cpus, caches)
                    except (RuntimeError, subprocess.SubprocessError) as error:
                        each.reason = str(error)
                        break
                    for key, value in seconds.items():
                        getattr(each, key).append(value)
    return found


def _process(each: Any, device: str, cpus: Sequence[int], caches: Mapping[str, str]) -> dict[str, float]:
    from benchmarks import launch
    from benchmarks.machine import ROOT

    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = {**os.environ, **launch.environment(list(cpus)), **caches, "PYTHONPATH": path}
    words = [each.name, each.op, json.dumps(each.shape), each.dtype, device]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_call", *words],
        env=settings,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        raise RuntimeError(f"the process ended with status {done.returncode}: {last[0]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(words: Sequence[str]) -> int:
    """Be the fresh process."""
    name, op, sizes, dtype, where = words
    found: dict[str, float] = {}

    def timed(key: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = function()
        found[key] = time.perf_counter() - start
        return value

    def import_torch() -> Any:
        import torch

        return torch

    def import_vt_fast() -> Any:
        import vt_fast
        import vt_fast.functional

        return vt_fast

    torch = timed("import_torch", import_torch)
    vt_fast = timed("import_vt_fast", import_vt_fast) if name.startswith(OURS) else None
    from benchmarks import operands
    from benchmarks.cases import Shape

    shape = Shape(*json.loads(sizes))
    drawn, _ = operands.draw(op, shape, dtype, device=where)
    x, queries = operands.lay_out(drawn["x"], shape, "channels_last"), drawn["queries"]
    if vt_fast is not None:
        backend = name.partition(" ")[2] or None

        def call() -> Any:
            return vt_fast.tokenize(x, queries, backend=backend)
    else:
        from benchmarks.peers import PEERS as REGISTRY

        (peer,) = (peer for peer in REGISTRY[op] if peer.name == name)
        function = torch.compile(peer.function, dynamic=False) if peer.compiled else peer.function

        def call() -> Any:
            return function(x, queries)

    def finished() -> None:
        with torch.no_grad():
            call()
        if where != "cpu":
            torch.cuda.synchronize()

    if where != "cpu":
        torch.cuda.synchronize()  # the context is there, since the operands are
    timed("first", finished)
    timed("second", finished)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
