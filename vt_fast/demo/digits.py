"""scikit-learn's 1,797 handwritten digits: the split, the training and the comparison."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from vt_fast.demo.nets import ConvolutionNet, TokenNet, macs, parameters
from vt_fast.demo.tables import table, winner, wrapped
from vt_fast.measure import interleaved_medians

_SEED = 0
_BATCH = 64
_INK = 16.0  # the largest value of a pixel in this data set
_MEAN = 0.3  # of all pixels, to one digit


class Digits(NamedTuple):
    """Pictures (n, 1, 8, 8), shifted to a mean near zero, and labels (n,): for training and held out."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Result(NamedTuple):
    """What the comparison says of one net."""

    correct: int
    held_out: int
    macs: int
    macs_as_written: int
    parameters: int
    step: float

    @property
    def accuracy(self) -> float:
        """Share of the held-out pictures that it gets right."""
        return self.correct / self.held_out


def load() -> Digits:
    """The digits in a fixed split: a quarter of each class is held out."""
    data = load_digits()
    pictures = torch.from_numpy(data.images).float()[:, None] / _INK - _MEAN
    labels = torch.from_numpy(data.target)
    indices = torch.arange(len(labels)).numpy()
    kept, held_out = map(
        torch.from_numpy, train_test_split(indices, test_size=0.25, stratify=data.target, random_state=_SEED)
    )
    return Digits(pictures[kept], labels[kept], pictures[held_out], labels[held_out])


def ink(pictures: Tensor) -> Tensor:
    """Undo the shift: the pixels as they were written, in [0, 1]."""
    return pictures + _MEAN


def train(net: nn.Module, digits: Digits, name: str, *, epochs: int) -> None:
    """Train in place. The last weights count: nothing is picked by its score on the held-out set."""
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
    """How many of the held-out pictures the net gets right."""
    net.eval()
    with torch.no_grad():
        return int((net(digits.test).argmax(1) == digits.test_labels).sum())


def compare(*, quick: bool = False) -> tuple[dict[str, Result], TokenNet, Digits]:
    """Train both nets from the same seed; return what came out, the token net and the data."""
    digits, epochs = load(), 1 if quick else 30
    torch.manual_seed(_SEED)
    token_net = TokenNet()
    nets: dict[str, nn.Module] = {"VT": token_net, "convolution": ConvolutionNet()}
    for name, net in nets.items():
        torch.manual_seed(_SEED)  # the same order of pictures and the same shifts for both
        train(net, digits, name, epochs=epochs)
    seconds = _step_times(nets, digits, rounds=3 if quick else 60)
    results = {
        name: Result(
            correct=correct(net, digits),
            held_out=len(digits.test),
            macs=macs(net),
            macs_as_written=macs(net, backend="reference"),
            parameters=parameters(net),
            step=seconds[name],
        )
        for name, net in nets.items()
    }
    return results, token_net, digits


def report(results: dict[str, Result]) -> str:
    """The comparison as a table, with the winner of each column and what the difference is worth."""
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
    for field in ("correct", "macs", "macs_as_written", "parameters", "step"):
        values = {name: float(getattr(result, field)) for name, result in results.items()}
        best.append(winner(values, more_is_better=field == "correct"))
    counts = [result.correct for result in results.values()]
    held_out = next(iter(results.values())).held_out
    note = wrapped(
        f"{held_out} pictures are held out, so the accuracies differ by {max(counts) - min(counts)} of them. "
        '"As written": MACs of the paper\'s equations with every projection on the pixels.',
        f"Step: batch of {_BATCH}, forward, backward and update, medians of interleaved steps on one thread.",
        _verdict(*results.items()),
    )
    return f"{table(head, [*rows, best])}\n{note}"


def _verdict(first: tuple[str, Result], second: tuple[str, Result]) -> str:
    """Who reads more digits and whose step is faster, in words."""
    (more, most), (less, least) = sorted((first, second), key=lambda item: -item[1].correct)
    gap = most.correct - least.correct
    read = (
        f"{more} reads {gap} of {most.held_out} digits more than {less}"
        if gap
        else "Both read as many digits"
    )
    (fast, quicker), (slow, slower) = sorted((first, second), key=lambda item: item[1].step)
    times, macs = slower.step / quicker.step, quicker.macs / slower.macs
    link = "although it has" if macs > 1 else "and it has"
    return (
        f"{read} (one seed). {fast}'s step is {times:.1f} times as fast as {slow}'s, "
        f"{link} {macs:.2f} times the MACs."
    )


def _optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, pictures: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(net(pictures), labels, label_smoothing=0.05)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _moved(pictures: Tensor) -> Tensor:
    """The batch moved by up to one pixel in each direction: 1,347 pictures are few."""
    height, width = pictures.shape[2:]
    down, right = torch.randint(0, 3, (2,)).tolist()
    padded = F.pad(pictures, (1, 1, 1, 1), value=-_MEAN)
    return padded[:, :, down : down + height, right : right + width]


def _step_times(nets: dict[str, nn.Module], digits: Digits, *, rounds: int) -> dict[str, float]:
    """Both nets take turns on one batch. Copies are timed: the trained weights stay as they are."""
    batch, labels = digits.train[:_BATCH], digits.train_labels[:_BATCH]

    def stepper(net: nn.Module) -> Any:
        timed = copy.deepcopy(net).train()
        optimizer = _optimizer(timed)
        return lambda: _step(timed, optimizer, batch, labels)

    return interleaved_medians({name: stepper(net) for name, net in nets.items()}, rounds)
