"""Train a Transolver-style block on a point cloud whose points are shared out among processes.

    torchrun --nproc-per-node 4 examples/sharded_points.py --points 4000000

Each process holds its own points, and the processes exchange slices: tokens that every point contributes to.
All parameters get their whole gradients on every process, so there is no DDP. The task is made up: a field
over a cube that depends on all points through their mean.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.func import functional_call  # type: ignore[attr-defined]

from vt_fast import distributed


class PointNet(nn.Module):
    """Points (1, N, 3) to a number each: an embedding, a block of physics attention, a head."""

    def __init__(self, channels: int, slices: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Sequential(nn.Linear(3, channels), nn.GELU(), nn.Linear(channels, 2 * channels))
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU())
        self.out = nn.Linear(channels, 1)
        # The slices' attention, and what assigns points to slices.
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.rows = nn.Parameter(torch.randn(heads * slices, channels // heads))
        self.bias = nn.Parameter(torch.zeros(heads * slices))

    def forward(self, points: Tensor) -> Tensor:
        """The field (1, N, 1) at this process's points."""
        x, features = self.on_points(self.embed, points).chunk(2, -1)
        x = x.contiguous()
        sums, mass = distributed.tokenize(
            x,
            self.rows,
            values=features,
            token_bias=self.bias,
            num_heads=self.heads,
            normalize="tokens",
            return_stats=True,
        )
        share = mass.unflatten(1, (self.heads, -1)).mT[..., None] + 1e-2
        slices = (sums.unflatten(2, (self.heads, -1)) / share).flatten(2)
        slices = slices + self.attention(slices, slices, slices, need_weights=False)[0]
        y = distributed.project(
            x, self.rows, slices, token_bias=self.bias, num_heads=self.heads, residual=features
        )
        return self.on_points(self.out, self.on_points(self.head, y))

    def on_points(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A layer that treats each point alone. Its gradients are summed over the processes."""
        names, values = zip(*layer.named_parameters(), strict=True)
        shared = dict(zip(names, distributed.shared(*values), strict=True))
        found: Tensor = functional_call(layer, shared, (x,))
        return found


class Run(NamedTuple):
    """What is left after training."""

    net: PointNet
    losses: list[float]


def main(arguments: Sequence[str] | None = None) -> Run:
    """Train."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        return train(options)
    finally:
        dist.destroy_process_group()


def train(options: argparse.Namespace) -> Run:
    """Some steps of Adam on all points."""
    rank, count = dist.get_rank(), dist.get_world_size()
    dtype = torch.float64 if options.double else torch.float32
    torch.manual_seed(
        0
    )  # all processes draw the same points and parameters, and keep their part of the points
    everything = torch.rand(options.points, 3, dtype=dtype)
    points = everything.tensor_split(count)[rank][None].clone()
    target = (6 * points - everything.mean(0)).sin().prod(-1, keepdim=True)
    del everything
    net = PointNet(options.channels, options.slices, options.heads).to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for step in range(options.steps):
        start = time.perf_counter()
        loss = (net(points) - target).square().sum() / options.points  # this process's part of the mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(float(total))
        if rank == 0:
            print(f"step {step}: loss {losses[-1]:.9f}, {time.perf_counter() - start:.2f} s", flush=True)
    return Run(net, losses)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=4_000_000, help="of all processes together")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--slices", type=int, default=32, help="of each head")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--double", action="store_true", help="compute in float64")
    return parser


if __name__ == "__main__":
    main()
