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
        seconds: of one core, that the training took.
        validation: scores during training, at equal distances.
        entropy: of the tokens' attention, over its largest possible value.
        share: of the attention that lies on the objects; ``area``: their share of the image.
        images: that the score is of.
        hits: which test images were classified correctly, by :func:`packed`. Not for segmentation.
    """

    status: str
    score: float
    loss: float
    macs: int
    executed: int
    parameters: int
    seconds: float
    validation: str
    images: int
    entropy: float | None = None
    share: float | None = None
    area: float | None = None
    hits: str = ""


def run(job: Job, rows: Iterable[Row] = ()) -> Row:
    """Train, and judge the last weights. `rows` must hold the choices for a job on test data."""
    task = data.TASKS[job.task]
    # First of all: a job that may not see the test part must not run.
    judged = data.load(job.task, job.part, job.seed, rows=rows)
    held_out = judged if job.part == VALIDATION else data.load(job.task, VALIDATION)
    torch.manual_seed(job.seed)
    net = nets.make(job.net, task.classes, task.stride)
    began = time.process_time()
    loss, scores = _train(net, task, job, held_out)
    seconds = time.process_time() - began
    ok, tested = math.isfinite(loss), job.part == TEST
    score, hits = _judge(net, judged, task) if ok else (0.0, "")
    written, executed = nets.macs(job.net, task.classes, task.stride, judged.images[0])
    return Row(
        **msgspec.structs.asdict(job),
        status="ok" if ok else "diverged",
        score=score,
        loss=loss,
        macs=written,
        executed=executed,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        seconds=seconds,
        validation=" ".join(f"{each:.2f}" for each in scores),
        images=len(judged.images),
        hits=hits if tested else "",
        **(_attention(net, judged) if ok and tested else {}),
    )


def rate(step: int, steps: int) -> float:
    """The learning rate over its largest value: a linear warm-up, then half a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _train(net: nn.Module, task: Task, job: Job, held_out: Images) -> tuple[float, list[float]]:
    """The mean loss of the last tenth, not finite if training diverged; and scores on the way."""
    # Norms and biases do not decay.
    groups = [
        {"params": [each for each in net.parameters() if (each.dim() > 1) == decays], "weight_decay": decay}
        for decays, decay in ((True, WEIGHT_DECAY), (False, 0.0))
    ]
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
            return losses[-1], scores
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) * _POINTS // job.steps > step * _POINTS // job.steps:
            scores.append(_judge(net, held_out, task)[0])
    return float(np.mean(losses[-max(1, job.steps // 10) :])), scores


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
    """Bits as a text: deflated, in base 64.

    Example:
        >>> unpacked(packed(torch.tensor([True, False, True])), 3).tolist()
        [True, False, True]
    """
    return base64.b64encode(zlib.compress(np.packbits(hits.numpy()).tobytes(), 9)).decode()


def unpacked(text: str, count: int) -> Any:
    """The first `count` bits of :func:`packed`, as an array."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.unpackbits(raw, count=count).astype(bool)


@torch.no_grad()
def _attention(net: nn.Module, images: Images) -> dict[str, Any]:
    """Entropy of the attention and its share on the objects: means over images, tokens, blocks and levels."""
    found = []
    for index in range(0, min(len(images.images), 500), 50):
        objects = images.objects[index : index + 50, None]
        for weights in nets.attention_maps(net, images.images[index : index + 50]):
            entropy = torch.special.entr(weights).sum((-2, -1)) / math.log(weights.shape[-2:].numel())
            covered = F.adaptive_avg_pool2d(objects, (weights.shape[-2], weights.shape[-1]))
            share = (weights * covered).sum((-2, -1))
            found.append([each.double().mean().item() for each in (entropy, share, covered)])
    return dict(zip(("entropy", "share", "area"), np.mean(found, 0).tolist(), strict=True)) if found else {}
