"""Pool the features of a slide that is larger than memory, and train what pools them.

    python examples/stream_slide.py features.bin --make 20

The file is a NumPy memory map (N, C) of float16. Each step reads it twice: once for the tokens, once for the
gradient of their queries. Printed with each step is RssAnon, the memory that is not a file's cache.
`--measure` also times reading alone and computing alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vt_fast import streaming


class Run(NamedTuple):
    """What is left after training: losses, the largest RssAnon in MB, and seconds by name."""

    losses: list[float]
    anonymous: float
    seconds: dict[str, float]


class Delayed(streaming.Chunks):
    """Chunks that take longer to read, as from a slower disk."""

    delay = 0.0

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.delay)
        return super().__getitem__(index)


def main(arguments: Sequence[str] | None = None) -> Run:
    """Train, and measure."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(0)
    if options.make:
        make(options.features, options.make, options.channels)
    features = np.memmap(options.features, np.float16, "r").reshape(-1, options.channels)
    chunks = Delayed(features, options.pixels)
    chunks.delay = options.delay
    print(f"{len(features):,} features of {options.channels} channels, {features.nbytes / 1e9:.2f} GB")
    queries = torch.nn.Parameter(torch.randn(options.queries, options.channels))
    head = torch.nn.Linear(options.channels, 1)
    optimizer = torch.optim.Adam([queries, *head.parameters()], 1e-3)
    most, losses = [anonymous()], []

    def note(*_: Any) -> None:
        most[0] = max(most[0], anonymous())

    for step in range(options.steps):
        start = time.perf_counter()
        tokens = streaming.tokenize(
            chunks, queries, scale=options.channels**-0.5, progress=options.progress, on_chunk=note
        )
        loss = torch.nn.functional.softplus(head(tokens).mean())  # of a slide with a positive label: -z
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        spent = time.perf_counter() - start
        note()
        print(
            f"step {step}: loss {losses[-1]:.6f}, {spent:.2f} s, RssAnon at most {most[0]:.0f} MB", flush=True
        )
    seconds = measure(chunks, queries.detach(), options.channels) if options.measure else {}
    return Run(losses, most[0], seconds)


def make(path: Path, gigabytes: float, channels: int) -> None:
    """Write random features, a block at a time."""
    rows = int(gigabytes * 1e9 / 2 / channels)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, rows, 1 << 16):
            size = min(1 << 16, rows - start)
            file.write(random.standard_normal((size, channels), np.float32).astype(np.float16).tobytes())


def measure(chunks: streaming.Chunks, queries: torch.Tensor, channels: int) -> dict[str, float]:
    """Seconds of reading alone, of computing alone with one chunk over and over, and of both at a time.

    Medians of three rounds, with the file in the system's cache.
    """

    class OneChunk:
        """As many chunks, all of which are the first one."""

        def __len__(self) -> int:
            return len(chunks)

        def __iter__(self) -> Iterator[Any]:
            first = chunks[0]["x"].to(queries.dtype)
            return iter([first] * len(chunks))

    def read() -> None:
        for chunk in chunks:
            chunk["x"].to(queries.dtype)

    scale = channels**-0.5
    calls: dict[str, Callable[[], Any]] = {
        "reading": read,
        "computing": lambda: streaming.tokenize(OneChunk(), queries, scale=scale),
        "both": lambda: streaming.tokenize(chunks, queries, scale=scale),
    }
    read()  # so that the file is in the system's cache, as far as it fits
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    for name, median in seconds.items():
        print(f"{name}: {median:.2f} s")
    larger = max(seconds["reading"], seconds["computing"])
    print(f"both / the larger one: {seconds['both'] / larger:.2f}")
    return seconds


def anonymous() -> float:
    """RssAnon of this process in MB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next((line for line in status.read_text().splitlines() if line.startswith("RssAnon")), "0 0")
    return int(line.split()[1]) / 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("features", type=Path)
    parser.add_argument("--make", type=float, metavar="GB", help="write a file of random features first")
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=16384, help="of a chunk")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each chunk waits for a disk")
    parser.add_argument("--progress", action="store_true")
    return parser


if __name__ == "__main__":
    main()
