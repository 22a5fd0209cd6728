"""The demo's three parts in order: digits, attention, backends. All output is also saved."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from demo import backends, comparison, digits, segmenting
from demo.clusters import cluster
from demo.nets import TokenNet
from demo.pictures import Picture, scaled
from demo.scene_net import SmallBackbone, scene_net
from demo.scenes import DigitScenes
from demo.scenes import batch as scenes_batch
from demo.sheets import cluster_sheet, digit_sheet, pixels_looked_at, places_looked_at, scene_sheet
from demo.timing import one_thread
from vt_fast import info
from vt_fast.models import VTFPN

# File systems allow names of 255 bytes; this leaves room for prefix and number.
_LONGEST_NAME = 80


def tell(pictures: Sequence[Picture], output: Path, *, quick: bool = False) -> None:
    """Run everything and leave ``report.txt``, ``report.json`` and the sheets in `output`."""
    report = _Report()
    with torch.random.fork_rng(devices=[]), one_thread():
        report.say(
            "1. Digits: the same small network with a Visual Transformer stage and with a convolutional one "
            "that has its MACs as written" + (" (--quick: these numbers mean nothing)" if quick else "")
        )
        results, net, data = comparison.compare(quick=quick)
        report.say(comparison.report(results))
        report.data["digits"] = {
            name: {**result._asdict(), "accuracy": result.accuracy} for name, result in results.items()
        }

        report.say("2. Attention of the tokens")
        path = output / "digits_attention.png"
        captions, report.data["attention"] = _look(net, data)
        _draw_digits(path, net, data, captions)
        report.say(f"wrote {path}\n" + "\n".join(captions))
        path = output / "scenes_attention.png"
        caption, report.data["scenes"] = _look_at_scenes(path, quick=quick)
        report.say(f"wrote {path}\n{caption}")
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
    (output / "report.txt").write_text("\n".join(report.text), "utf-8", "backslashreplace")
    (output / "report.json").write_text(json.dumps(report.data, indent=2), encoding="utf-8")
    print(f"saved in {output / 'report.txt'} and {output / 'report.json'}")


class _Report:
    """Prints text and keeps it."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.data: dict[str, Any] = {}

    def say(self, text: str) -> None:
        print(text + "\n", flush=True)
        self.text.append(text + "\n")


def _look(net: TokenNet, data: digits.Digits) -> tuple[list[str], dict[str, dict[str, float]]]:
    """How the tokens' attention is spread over the held-out digits: a caption and numbers per tokenizer."""
    captions, figures = [], {}
    kinds = {"filter": "the same filters for all", "recurrent": "filters also from the digit's tokens"}
    for (kind, what), maps in zip(kinds.items(), net.attention_maps(data.test), strict=True):
        tokens, pixels = maps.shape[1], maps[0, 0].numel()
        places, spread = places_looked_at(maps), pixels_looked_at(maps)
        captions.append(
            f"{kind} tokenizer, {what}\n{tokens} tokens peak on {places:.1f} distinct places, "
            f"each attends to {spread:.0f} of {pixels} pixels\n(effective number; means over {len(maps)} "
            "held-out digits)"
        )
        figures[kind] = {"tokens": tokens, "distinct_places": places, "effective_pixels": spread}
    return captions, figures


def _draw_digits(path: Path, net: TokenNet, data: digits.Digits, captions: Sequence[str]) -> None:
    """The first held-out picture of each class."""
    first = [int((data.test_labels == label).nonzero()[0]) for label in range(10)]
    pictures: Tensor = data.test[first]
    guesses = _guess(net, pictures)
    maps = net.attention_maps(pictures)
    digit_sheet(path, digits.ink(pictures)[:, 0], list(range(10)), guesses, maps, captions)


def _look_at_scenes(path: Path, *, quick: bool) -> tuple[str, dict[str, Any]]:
    """Train a VT-FPN on zeros and ones over photographs, draw its attention; a caption, and numbers."""
    torch.manual_seed(0)
    held_out = DigitScenes(4 if quick else 60, classes=(0, 1), held_out=True)
    scenes = DigitScenes(16 if quick else 400, classes=(0, 1))
    net, steps = scene_net(scenes.num_classes), 4 if quick else 600
    with tqdm(total=steps, desc="training VT-FPN", unit="step", dynamic_ncols=True, mininterval=0.5) as bar:
        segmenting.train(net, scenes, steps=steps, learning_rate=3e-3, report=lambda step, loss: bar.update())
    net.eval()
    by_colour = segmenting.evaluate(segmenting.ColourClassifier(scenes), held_out).mean
    found = segmenting.evaluate(net.predict, held_out).mean
    images, labels = scenes_batch(held_out, range(3))
    with torch.no_grad():
        features = cast(SmallBackbone, net.backbone).features(images)
        maps = cast(VTFPN, net.neck).attention_maps(features)
    levels = [(f"{each.shape[2]} \N{MULTIPLICATION SIGN} {each.shape[3]}", each) for each in maps]
    caption = (
        f"VT-FPN after {steps} steps on zeros and ones over photographs: mean IoU {100 * found:.0f} % on "
        f"{len(held_out)} held-out scenes;\nby a pixel's colour alone {100 * by_colour:.0f} %. "
        f"{maps[0].shape[1]} tokens of each level; each map has its own scale."
    )
    scene_sheet(path, images, (labels, net.predict(images)), levels, caption)
    return caption, {"steps": steps, "mean_iou": found, "mean_iou_by_colour": by_colour}


def _guess(net: nn.Module, pictures: Tensor) -> list[int]:
    net.eval()
    with torch.no_grad():
        guesses: list[int] = net(pictures).argmax(1).tolist()
    return guesses


def _sheet_paths(pictures: Sequence[Picture], output: Path) -> list[Path]:
    """A distinct file name for each sheet, valid on any file system, case-insensitive ones included."""
    names: list[str] = []
    taken: set[str] = set()
    for picture in pictures:
        plain = re.sub(r"[^\w.-]+", "_", picture.name.encode(errors="replace").decode())
        plain = plain.encode()[:_LONGEST_NAME].decode(errors="ignore")
        name, number = plain, 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return [output / f"clusters_{name}.png" for name in names]
