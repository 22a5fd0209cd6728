"""What processes send that share out the pixels of a map, how they scale, and a model for many GPUs.

    torchrun --nproc-per-node 4 -m tools.sharding traffic
    torchrun --nproc-per-node 2 -m tools.sharding times
    python -m tools.sharding model

`docs/scaling.md` has the results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from vt_fast import distributed

B, L, C = 1, 64, 256


class Traffic(TorchDispatchMode):
    """Notes each collective and how many bytes a process puts into it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the op."""
        if func.namespace in ("c10d", "_c10d_functional", "c10d_functional"):
            # The op's output comes first, its input last.
            tensors = [value for value in args if isinstance(value, Tensor)]
            lists = [each for value in args if isinstance(value, list) for each in value]
            found = tensors or [each for each in lists if isinstance(each, Tensor)]
            size = found[-1].numel() * found[-1].element_size() if found else 0
            self.sent.append((str(func).split(".")[1], size))
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Bytes that this process has put into collectives."""
        return sum(size for _, size in self.sent)


def calls(pixels: int) -> dict[str, tuple[Callable[[], Tensor], Tensor]]:
    """A loss of each op over so many pixels of this process, and its map."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(B, pixels, C, generator=generator, requires_grad=True)
    rows = torch.randn(3, B, L, C, generator=torch.Generator().manual_seed(9)) / 16
    queries, keys, values = (each.clone().requires_grad_() for each in rows)
    return {
        "tokenize": (lambda: distributed.tokenize(x, queries).sum(), x),
        "project": (lambda: distributed.project(x, keys, values, residual=x).sum(), x),
        "project_tokenize": (
            lambda: distributed.project_tokenize(x, keys, values, queries, return_map=False)[1].sum(),
            x,
        ),
    }


def show_traffic() -> None:
    """Bytes that each process puts into collectives, and gets from the others."""
    count = dist.get_world_size()
    say(f"B = {B}, L = {L}, C = {C}, float32, {count} processes; bytes of L x C: {4 * B * L * C:,}")
    for pixels in (1_000, 16_000):
        for name, (loss, x) in calls(pixels).items():
            with Traffic() as forward:
                total = loss()
            with Traffic() as backward:
                total.backward()
            size = x.numel() * x.element_size()
            for which, seen in (("forward", forward), ("backward", backward)):
                say(
                    f"{name}, {which}, {pixels:,} pixels a process: {len(seen.sent)} collectives, puts in "
                    f"{seen.total:,} B, gets {(count - 1) * seen.total:,} B; its part of the map: {size:,} B"
                )


def show_times(total: int, repeats: int) -> None:
    """Seconds of tokenize and its backward, strong and weak scaling, and of the exchange alone."""
    count = dist.get_world_size()
    for kind, pixels in (("strong", total // count), ("weak", total // 4)):
        loss, _ = calls(pixels)["tokenize"]
        say(f"{kind}: {count} processes, {pixels:,} pixels each: {1e3 * median(loss, repeats):.1f} ms")
    loss, _ = calls(1)["tokenize"]
    say(f"one pixel each, so the exchange and what a call costs: {1e3 * median(loss, repeats):.2f} ms")


def median(loss: Callable[[], Tensor], repeats: int) -> float:
    """Seconds of forward and backward, of the slowest process."""
    seconds = []
    for _ in range(repeats + 3):
        dist.barrier()
        start = time.perf_counter()
        loss().backward()
        spent = torch.tensor([time.perf_counter() - start])
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        seconds.append(float(spent))
    return statistics.median(seconds[3:])


def say(text: str) -> None:
    """Print once."""
    if dist.get_rank() == 0:
        print(text, flush=True)


class Link(NamedTuple):
    """What connects GPUs: seconds before a message, and bytes a second for each GPU and direction."""

    alpha: float
    beta: float


# Assumed, not measured: NVLink of a machine of 8 GPUs, a network of 400 Gbit/s for each GPU, and the rate at
# which a GPU reads a map.
INSIDE, ACROSS, MEMORY = Link(4e-6, 300e9), Link(12e-6, 45e9), 3.1e12
MACHINE = 8


def gather(message: int, count: int, link: Link) -> float:
    """Seconds of an all-gather: log2(count) rounds, in which a process gets all other messages."""
    rounds = max(count - 1, 0).bit_length()
    return link.alpha * rounds + (count - 1) * message / link.beta


def model(pixels: int) -> list[str]:
    """Lines of a table: tokenize and its backward, for so many bf16 pixels on each GPU."""
    message = 4 * (B * L * (C + 1) + 1)  # float32: tokens, lse and a label; backward about as much
    walk = 3 * pixels * C * 2 / MEMORY  # forward reads the map; backward reads it and writes its gradient
    lines = [
        "| GPUs | pixels together | passes over the map | exchange, one group | exchange, two groups | "
        "share of the exchange | gathering the map instead |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in (8, 16, 32, 64, 128, 256, 512, 1024):
        link = INSIDE if count <= MACHINE else ACROSS
        one = 2 * gather(message, count, link)
        two = 2 * (gather(message, MACHINE, INSIDE) + gather(message, count // MACHINE, ACROSS))
        best = min(one, two)
        whole = (count - 1) * pixels * C * 2 / link.beta
        lines.append(
            f"| {count:,} | {count * pixels / 1e6:,.0f} million | {1e3 * walk:.2f} ms | {1e3 * one:.2f} ms | "
            f"{1e3 * two:.2f} ms | {100 * best / (best + walk):.0f} % | {1e3 * whole:,.0f} ms |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("traffic", "times", "model"))
    parser.add_argument("--pixels", type=int, help="times: of a map; model: of each GPU")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    if options.what == "model":
        print("\n".join(model(options.pixels or 1_000_000)))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group("gloo")
    try:
        if options.what == "traffic":
            show_traffic()
        else:
            show_times(options.pixels or 40_000, options.repeats)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
