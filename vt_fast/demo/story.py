"""The demo in order: digits, what tokens look at, backends. What is printed is also written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vt_fast import info
from vt_fast.demo import backends, digits
from vt_fast.demo.clusters import cluster
from vt_fast.demo.nets import TokenNet
from vt_fast.demo.pictures import Picture, scaled
from vt_fast.demo.sheets import cluster_sheet, digit_sheet
from vt_fast.demo.threads import one_thread


def tell(pictures: Sequence[Picture], output: Path, *, quick: bool = False) -> None:
    """Run everything and leave ``report.txt``, ``report.json`` and the sheets in `output`."""
    report = _Report()
    # The caller's random numbers are none of the demo's business.
    with torch.random.fork_rng(devices=[]), one_thread():
        report.say(
            "1. Digits: the same small net with a Visual Transformer stage and with a convolutional one"
            + (" (--quick: these figures mean nothing)" if quick else "")
        )
        results, net, data = digits.compare(quick=quick)
        report.say(digits.report(results))
        report.data["digits"] = {
            name: {**result._asdict(), "accuracy": result.accuracy} for name, result in results.items()
        }

        report.say("2. What tokens look at")
        path = output / "digits_attention.png"
        _draw_digits(path, net, data)
        report.say(f"wrote {path}")
        for path, picture in zip(_sheet_paths(pictures, output), pictures, strict=True):
            shown = scaled(picture, 96) if quick else picture
            cluster_sheet(path, shown, cluster(shown.pixels))
            report.say(f"wrote {path}")

        report.say("3. Backends against plain eager code")
        lines = backends.measure(quick=quick)
        report.say(backends.report(lines))
        report.data["backends"] = [line._asdict() for line in lines]
    report.data["quick"] = quick
    report.data["machine"] = info.collect()
    (output / "report.txt").write_text("\n".join(report.text), encoding="utf-8")
    (output / "report.json").write_text(json.dumps(report.data, indent=2), encoding="utf-8")
    print(f"all of this is in {output / 'report.txt'} and {output / 'report.json'}")


class _Report:
    """Prints as it goes and keeps what it printed."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.data: dict[str, Any] = {}

    def say(self, text: str) -> None:
        print(text + "\n", flush=True)
        self.text.append(text + "\n")


def _draw_digits(path: Path, net: TokenNet, data: digits.Digits) -> None:
    """The first held-out picture of each class."""
    first = [int((data.test_labels == label).nonzero()[0]) for label in range(10)]
    pictures: Tensor = data.test[first]
    guesses = _guess(net, pictures)
    maps = net.attention_maps(pictures)
    digit_sheet(path, digits.ink(pictures)[:, 0], list(range(10)), guesses, maps)


def _guess(net: nn.Module, pictures: Tensor) -> list[int]:
    net.eval()
    with torch.no_grad():
        guesses: list[int] = net(pictures).argmax(1).tolist()
    return guesses


def _sheet_paths(pictures: Sequence[Picture], output: Path) -> list[Path]:
    """A name for each sheet; pictures of the same name from two folders must not overwrite each other."""
    names = [picture.name for picture in pictures]
    return [
        output / (f"clusters_{name}.png" if names.count(name) == 1 else f"clusters_{index + 1}_{name}.png")
        for index, name in enumerate(names)
    ]
