"""One training: a job in, a row out."""

from __future__ import annotations

import base64
import math
import time
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims import data, nets
from benchmarks.claims.data import TEST, VALIDATION, Images, Task
from vt_fast.models import MeanIoU, segmentation_loss

WARM_UP, WEIGHT_DECAY = 0.15, 0.05
# How often a training is evaluated on validation data, its end included, for the curves.
_POINTS = 6
_EVALUATED_AT_ONCE = 250


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is trained, and the part it is judged on: "validation" to choose a learning rate, or "test"."""

    task: str
    net: str
    part: str
    lr: float
    seed: int
    steps: int

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        """What tells a job from all others."""
        return self.task, self.net, self.part, self.lr, self.seed


class Row(Job, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job and its result.

    Args:
        status: "ok", or "diverged": the loss was not finite, and the score is 0.
        score: percent: accuracy, or mean intersection over union.
        loss: mean of the last tenth of the steps.
        macs, executed: of one image, as the paper writes them and with folded projections.
        parameters: number of them.
        seconds: of the training on one core; other programs count too.
        validation: scores during training, at equal distances; ``losses``: mean training losses of the tenths.
        entropy: of the tokens' attention, over its largest possible value.
        share: of the attention that lies on the objects; ``area``: their share of the image.
        hits: which images were classified correctly: bits, deflated, in base 64. Not for segmentation.
    """

    status: str
    score: float
    loss: float
    macs: int
    executed: int
    parameters: int
    seconds: float
    validation: str
    losses: str
    entropy: float | None = None
    share: float | None = None
    area: float | None = None
    hits: str = ""


def run(job: Job, rows: Iterable[Row] = ()) -> Row:
    """Train, and judge the last weights. ``rows`` must hold the choices for a job on test data."""
    task = data.TASKS[job.task]
    # Before the training: a job that may not see the test part must not run.
    judged = data.load(job.task, job.part, job.seed, rows=rows)
    held_out = judged if job.part == VALIDATION else data.load(job.task, VALIDATION)
    torch.manual_seed(job.seed)
    net = nets.make(job.net, task.classes, task.stride)
    began = time.perf_counter()
    losses, scores = _train(net, task, job, held_out)
    seconds = time.perf_counter() - began
    ok = math.isfinite(losses[-1])
    score, hits = _judge(net, judged, task) if ok else (0.0, "")
    image = task.draw(1, np.random.default_rng(0)).images[0]
    written, executed = nets.macs(job.net, task.classes, task.stride, image)
    return Row(
        **msgspec.structs.asdict(job),
        status="ok" if ok else "diverged",
        score=score,
        loss=losses[-1],
        macs=written,
        executed=executed,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        seconds=seconds,
        validation=" ".join(f"{each:.2f}" for each in scores),
        losses=" ".join(f"{each:.4g}" for each in losses),
        hits=hits if job.part == TEST else "",
        **(_attention(net, judged) if ok and job.part == TEST else {}),
    )


def rate(step: int, steps: int) -> float:
    """The learning rate over its largest value: a linear warm-up, then half a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _train(net: nn.Module, task: Task, job: Job, held_out: Images) -> tuple[list[float], list[float]]:
    """Mean losses of the tenths, and validation scores; the last loss is not finite if training diverged."""
    # Norms and biases do not decay.
    decaying = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in net.parameters() if parameter.dim() <= 1]
    groups = [{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=job.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, job.steps))
    random = np.random.default_rng((job.seed, 1))
    losses: list[float] = []
    scores: list[float] = []
    for step in range(job.steps):
        net.train()
        batch = task.draw(task.batch, random)
        loss = (segmentation_loss if task.segmentation else F.cross_entropy)(net(batch.images), batch.labels)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) * _POINTS // job.steps > step * _POINTS // job.steps:
            scores.append(_judge(net, held_out, task)[0])
    tenths = np.array_split(losses, min(10, len(losses)))
    return [float(np.mean(tenth)) for tenth in tenths], scores


@torch.no_grad()
def _judge(net: nn.Module, images: Images, task: Task) -> tuple[float, str]:
    net.eval()
    found = torch.cat([net(part).argmax(1) for part in images.images.split(_EVALUATED_AT_ONCE)])
    if task.segmentation:
        meter = MeanIoU(task.classes)
        meter.update(found, images.labels)
        return 100 * meter.compute().mean, ""
    hits = found == images.labels
    return 100 * hits.double().mean().item(), packed(hits)


def packed(hits: Tensor) -> str:
    """Bits as a short text.

    Example:
        >>> unpacked(packed(torch.tensor([True, False, True])), 3).tolist()
        [True, False, True]
    """
    return base64.b64encode(zlib.compress(np.packbits(hits.numpy()).tobytes(), 9)).decode()


def unpacked(text: str, count: int) -> Any:
    """The first ``count`` bits of :func:`packed`."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.unpackbits(raw, count=count).astype(bool)


@torch.no_grad()
def _attention(net: nn.Module, images: Images) -> dict[str, float]:
    """Entropy of the attention and its share on the objects: means over images, tokens, blocks and levels."""
    net.eval()
    found = []
    for index in range(0, min(len(images.images), 500), 50):
        part = images[index : index + 50]
        for weights in nets.attention_maps(net, part.images):
            size = weights.shape[-2:]
            objects = F.adaptive_avg_pool2d(part.objects[:, None], size)
            entropy = torch.special.entr(weights).sum((-2, -1)) / math.log(size[0] * size[1])
            share = (weights * objects).sum((-2, -1))
            found.append([each.double().mean().item() for each in (entropy, share, objects)])
    if not found:
        return {}
    return dict(zip(("entropy", "share", "area"), np.mean(found, 0).tolist(), strict=True))
