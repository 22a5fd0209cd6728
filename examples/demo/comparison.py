"""Two small networks on the digits: training, and a comparison of accuracy, size and time."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from demo.digits import MEAN, Digits, load
from demo.nets import ConvolutionNet, TokenNet, macs, parameters
from demo.tables import table
from demo.timing import interleaved_medians

_SEEDS = (0, 1, 2)
_BATCH = 64


class Result(NamedTuple):
    """The measurements of one network; ``correct``: held-out images that it classifies correctly, by seed."""

    correct: tuple[int, ...]
    held_out: int
    macs: int
    macs_as_written: int
    parameters: int
    step: float

    @property
    def accuracy(self) -> float:
        """Share of the held-out images that it classifies correctly, the mean over the seeds."""
        return statistics.mean(self.correct) / self.held_out


def train(net: nn.Module, digits: Digits, name: str, *, epochs: int) -> None:
    """Train in place. The last weights are used: the held-out set selects nothing."""
    optimizer, count = _optimizer(net), len(digits.train)
    steps = epochs * (count // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    net.train()
    with tqdm(total=steps, desc=f"training {name}", unit="step", dynamic_ncols=True, mininterval=0.5) as bar:
        for _ in range(epochs):
            order = torch.randperm(count)[: count // _BATCH * _BATCH].split(_BATCH)
            for batch in order:
                loss = _step(net, optimizer, _moved(digits.train[batch]), digits.train_labels[batch])
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")


def correct(net: nn.Module, digits: Digits) -> int:
    """Number of held-out images that the network classifies correctly."""
    net.eval()
    with torch.no_grad():
        return int((net(digits.test).argmax(1) == digits.test_labels).sum())


def compare(*, quick: bool = False) -> tuple[dict[str, Result], TokenNet, Digits]:
    """Train both networks from the same seeds. Returns the results, a token network and the data."""
    digits, epochs, seeds = load(), 1 if quick else 20, _SEEDS[:1] if quick else _SEEDS
    makers: dict[str, Callable[[], nn.Module]] = {"VT": TokenNet, "convolution": ConvolutionNet}
    trained: dict[str, list[nn.Module]] = {name: [] for name in makers}
    for seed in seeds:
        for name, make in makers.items():
            torch.manual_seed(seed)
            net = make()
            torch.manual_seed(seed)  # the same order of images and the same shifts for both
            train(net, digits, f"{name}, seed {seed}", epochs=epochs)
            trained[name].append(net)
    first = {name: nets[0] for name, nets in trained.items()}
    seconds = _step_times(first, digits, rounds=3 if quick else 60)
    results = {
        name: Result(
            correct=tuple(correct(each, digits) for each in trained[name]),
            held_out=len(digits.test),
            macs=macs(net),
            macs_as_written=macs(net, backend="reference"),
            parameters=parameters(net),
            step=seconds[name],
        )
        for name, net in first.items()
    }
    return results, cast(TokenNet, first["VT"]), digits


def report(results: dict[str, Result]) -> str:
    """The comparison as a table, with the better network in each column and a sentence on the differences."""
    head = ["last stage", "held-out accuracy", "MACs", "as written", "parameters", "training step"]
    rows = [
        [
            name,
            f"{100 * result.accuracy:.2f} %",
            f"{result.macs / 1e6:.2f} M",
            f"{result.macs_as_written / 1e6:.2f} M",
            f"{result.parameters / 1e3:.0f} k",
            f"{1e3 * result.step:.1f} ms",
        ]
        for name, result in results.items()
    ]
    best = ["better"]
    for field in ("accuracy", "macs", "macs_as_written", "parameters", "step"):
        values = {name: float(getattr(result, field)) for name, result in results.items()}
        best.append(_winner(values, more_is_better=field == "accuracy"))
    one = next(iter(results.values()))
    return table(
        head,
        [*rows, best],
        f"{one.held_out} images are held out; seeds: {len(one.correct)}. "
        '"As written": MACs of the paper\'s equations with every projection on the pixels.',
        f"Training step: batch of {_BATCH}, forward, backward and update; median of interleaved steps on one "
        "thread.",
        _verdict(*results.items()),
    )


def _winner(values: dict[str, float], *, more_is_better: bool = False) -> str:
    """The name with the best value, or "tie".

    >>> _winner({"VT": 2.0, "convolution": 3.0}), _winner({"VT": 1.0, "convolution": 1.0})
    ('VT', 'tie')
    """
    best = (max if more_is_better else min)(values.values())
    names = [name for name, value in values.items() if value == best]
    return names[0] if len(names) == 1 else "tie"


def _verdict(first: tuple[str, Result], second: tuple[str, Result]) -> str:
    """Which network is more accurate and which has the faster step, in words."""
    (more, most), (less, least) = sorted((first, second), key=lambda item: -item[1].accuracy)
    gaps = [ours - theirs for ours, theirs in zip(most.correct, least.correct, strict=True)]
    by_seed = f"(by seed: {', '.join(f'{gap:+d}' for gap in gaps)})" if len(gaps) > 1 else "(one seed)"
    read = (
        f"{more} classifies {statistics.mean(gaps):.1f} more of the {most.held_out} digits correctly than "
        f"{less} {by_seed}."
        if sum(gaps)
        else f"Both classify as many of the {most.held_out} digits correctly {by_seed}."
    )
    if min(gaps) < 0 < max(gaps):
        read += " Which of the two is better depends on the seed."
    (fast, quicker), (slow, slower) = sorted((first, second), key=lambda item: item[1].step)
    return (
        f"{read} A step of {fast} is {slower.step / quicker.step:.1f} times as fast as one of {slow}, with "
        f"{quicker.macs / slower.macs:.2f} times the MACs."
    )


def _optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(net(images), labels, label_smoothing=0.05)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _moved(images: Tensor) -> Tensor:
    """The batch shifted by up to one pixel in each direction, because 1,347 images are few."""
    height, width = images.shape[2:]
    down, right = torch.randint(0, 3, (2,)).tolist()
    padded = F.pad(images, (1, 1, 1, 1), value=-MEAN)
    return padded[:, :, down : down + height, right : right + width]


def _step_times(nets: dict[str, nn.Module], digits: Digits, *, rounds: int) -> dict[str, float]:
    """Seconds per step on one batch. Copies are timed, so that the trained weights do not change."""
    batch, labels = digits.train[:_BATCH], digits.train_labels[:_BATCH]

    def stepper(net: nn.Module) -> Callable[[], Tensor]:
        timed = copy.deepcopy(net).train()
        optimizer = _optimizer(timed)
        return lambda: _step(timed, optimizer, batch, labels)

    return interleaved_medians({name: stepper(net) for name, net in nets.items()}, rounds)
