"""Train gated attention pooling over slides of different sizes, several a step, in several processes.

    torchrun --nproc-per-node 2 examples/ragged_slides.py FOLDER --bags 4

FOLDER holds a file of features for each slide, as CLAM and TRIDENT write them: HDF5 with `features` (N, C)
and `coords` (N, 2). Its `labels.csv` has a line `name,label` for each. `--make 32` fills it with made-up
slides first. Bags are not padded: they lie one after the other, and offsets say where each one begins.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vt_fast import tokenize


class GatedPooling(nn.Module):
    """Ilse et al., 2018: the weights of a bag's instances are a softmax of w (tanh(V h) * sigmoid(U h))."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU())
        self.tanh, self.gate = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.weight = nn.Linear(hidden, 1, bias=False)
        self.head = nn.Linear(hidden, classes)

    def forward(self, features: Tensor, offsets: Tensor) -> Tensor:
        """Logits (bags, classes) of features (total, C) and offsets (bags + 1,)."""
        h = self.embed(features)
        scores = self.weight(torch.tanh(self.tanh(h)) * torch.sigmoid(self.gate(h))).T  # (1, total)
        pooled: Tensor = tokenize(h, scores=scores.contiguous(), offsets=offsets)  # (bags, 1, hidden)
        logits: Tensor = self.head(pooled[:, 0])
        return logits


class Group(NamedTuple):
    """This process and how many there are."""

    rank: int
    size: int


class Run(NamedTuple):
    """What is left after training."""

    net: GatedPooling
    group: Group
    losses: list[float]


def main(arguments: Sequence[str] | None = None) -> Run:
    """Train."""
    options = _parser().parse_args(arguments)
    group = Group(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if group.size > 1:
        dist.init_process_group("gloo")
    if options.bags % group.size:
        raise SystemExit(f"--bags must be a multiple of {group.size} processes, got {options.bags}")
    try:
        if options.make and group.rank == 0:
            make(options.folder, options.make, options.channels)
        if group.size > 1:
            dist.barrier()
        return train(options, group)
    finally:
        if group.size > 1:
            dist.destroy_process_group()


def train(options: argparse.Namespace, group: Group) -> Run:
    """Epochs of AdamW; `--bags` slides a step, over all processes."""
    with (options.folder / "labels.csv").open() as file:
        slides = [(options.folder / f"{name}.h5", int(label)) for name, label in csv.reader(file)]
    torch.manual_seed(0)
    dtype = torch.float64 if options.double else torch.float32
    net = GatedPooling(options.channels, options.hidden, 1 + max(label for _, label in slides)).to(dtype)
    wrapped = DistributedDataParallel(net) if group.size > 1 else net
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    losses = []
    for epoch in range(options.epochs):
        total = torch.zeros((), dtype=dtype)
        for step in steps(slides, options.bags, epoch):
            own = step[group.rank :: group.size]
            features, offsets, labels = batch(own, dtype)
            loss = nn.functional.cross_entropy(wrapped(features, offsets), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() / (len(slides) // options.bags)
        if group.size > 1:
            dist.all_reduce(total)
            total /= group.size
        losses.append(float(total))
        if group.rank == 0:
            print(f"epoch {epoch}: loss {losses[-1]:.6f}", flush=True)
    return Run(net, group, losses)


def steps(slides: list[tuple[Path, int]], bags: int, epoch: int) -> Iterator[list[tuple[Path, int]]]:
    """The slides of each step of an epoch, the same in every process. The last few may be left out."""
    order = torch.randperm(len(slides), generator=torch.Generator().manual_seed(epoch)).tolist()
    for start in range(0, len(slides) - bags + 1, bags):
        yield [slides[index] for index in order[start : start + bags]]


def batch(slides: list[tuple[Path, int]], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features (total, C), offsets (bags + 1,) and labels (bags,)."""
    import h5py

    bags = []
    for path, _ in slides:
        with h5py.File(path) as file:
            bags.append(torch.from_numpy(file["features"][:]).to(dtype))
    sizes = torch.tensor([0, *(len(bag) for bag in bags)])
    return torch.cat(bags), sizes.cumsum(0), torch.tensor([label for _, label in slides])


def make(folder: Path, count: int, channels: int) -> None:
    """Slides of 50 to 2,000 patches. Those with label 1 have some patches that others have not."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        size = int(torch.randint(50, 2000, (), generator=generator))
        features = torch.randn(size, channels, generator=generator)
        features[: size // 20, :8] += 3 * (index % 2)
        side = int(size**0.5) + 1
        coords = torch.stack([torch.arange(size) % side, torch.arange(size) // side], 1) * 256
        with h5py.File(folder / f"slide{index}.h5", "w") as file:
            file["features"], file["coords"] = features.numpy(), coords.numpy()
        rows.append((f"slide{index}", index % 2))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", type=int, metavar="N", help="write so many made-up slides first")
    parser.add_argument("--bags", type=int, default=4, help="slides a step, over all processes")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--double", action="store_true", help="compute in float64")
    return parser


if __name__ == "__main__":
    main()
