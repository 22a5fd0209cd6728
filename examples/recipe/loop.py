"""The training loop: train, evaluate, log and save each epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from recipe import checkpoint, log
from recipe.metrics import Metric
from recipe.run import Run


def train(run: Run) -> None:
    """Train the remaining epochs of a run, then write `weights.pt` and plot the log.

    Raises:
        FloatingPointError: the loss is not finite. The last checkpoint is from before.
    """
    while run.epoch < run.recipe.epochs:
        started = time.perf_counter()
        _epoch(run)
        record = {"kind": "epoch", "epoch": run.epoch + 1, "lr": run.rate}
        record["train_loss"] = _mean_loss(run)
        run.group.share_buffers(run.net, run.average)
        record |= evaluate(run, run.net)
        if run.average is not None:
            found = evaluate(run, run.average.module)
            record |= {f"ema_{name}": value for name, value in found.items()}
        record["seconds"] = round(time.perf_counter() - started, 3)
        run.epoch, run.step, run.total = run.epoch + 1, 0, torch.zeros_like(run.total)
        if run.group.first:
            log.append(run.log, record)
        run.group.say(_line(record))
        run.save()
    _finish(run)


def _epoch(run: Run) -> None:
    sampler = run.loaders.sampler
    sampler.start(run.epoch, run.step)
    run.model.train()
    batches = iter(run.loaders.train)
    bar = tqdm(
        total=sampler.steps,
        initial=run.step,
        desc=f"epoch {run.epoch + 1}/{run.recipe.epochs}",
        unit="step",
        leave=False,
        dynamic_ncols=True,
        disable=None if run.group.first else True,  # None: unless stderr is a terminal
    )
    with bar:
        while run.step < sampler.steps:
            loss = _step(run, batches)
            run.total = run.total + loss
            run.step += 1
            bar.update()
            if run.log_steps and run.step % run.log_steps == 0:
                _log_step(run, loss, bar)
            # The end of an epoch is saved after its evaluation.
            if run.checkpoint_steps and run.step % run.checkpoint_steps == 0 and run.step < sampler.steps:
                _mean_loss(run)  # raises rather than save a loss that is not finite
                run.save()


def _step(run: Run, batches: Iterator[Any]) -> Tensor:
    """One optimizer step. Returns this process's mean loss."""
    run.optimizer.zero_grad(set_to_none=True)
    passes = run.loaders.sampler.passes
    total = torch.zeros_like(run.total)
    for number in range(passes):
        images, target = _moved(run, next(batches))
        with _unsynchronised(run.model, number < passes - 1):
            with _autocast(run):
                loss = run.loss(run.model, images, target) / passes
            run.scaler.scale(loss).backward()
        total += loss.detach()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.scheduler.step()
    if run.average is not None:
        run.average.update_parameters(run.net)
    return total


@torch.no_grad()
def evaluate(run: Run, net: nn.Module) -> dict[str, float]:
    """The scores of ``net`` on the held-out images, each counted once."""
    metric: Metric = run.metric()
    net.eval()
    for batch in run.loaders.val:
        images, target = _moved(run, batch)
        with _autocast(run):
            logits = net(images)
        metric.update(logits.float(), target)
    return metric.result(run.group)


def _mean_loss(run: Run) -> float:
    """Mean loss over the steps of this epoch and all processes."""
    mean = float(run.group.summed(run.total.clone())) / (run.step * run.group.size)
    if not torch.isfinite(torch.tensor(mean)):
        raise FloatingPointError(f"the loss is {mean} in epoch {run.epoch + 1}; a smaller --lr may help")
    return mean


def _log_step(run: Run, loss: Tensor, bar: Any) -> None:
    if not run.group.first:
        return
    bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{run.rate:.2g}")
    record = {"kind": "step", "epoch": run.epoch + 1, "step": run.step, "lr": run.rate, "loss": loss.item()}
    log.append(run.log, record)


def _moved(run: Run, batch: Any) -> tuple[Tensor, Tensor]:
    images, target = batch
    images = images.to(run.group.device, non_blocking=True, memory_format=run.memory_format)
    return images, target.to(run.group.device, non_blocking=True)


def _autocast(run: Run) -> AbstractContextManager[Any]:
    return torch.autocast(run.group.device.type, run.amp, enabled=run.amp is not None)


def _unsynchronised(model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Skip DDP's gradient exchange in all passes but the last, so that it happens once per step."""
    if wanted and isinstance(model, DistributedDataParallel):
        context: AbstractContextManager[Any] = model.no_sync()
        return context
    return nullcontext()


def _line(record: dict[str, Any]) -> str:
    words = [f"{name} {value:.4g}" for name, value in record.items() if name not in ("kind", "epoch")]
    return f"epoch {record['epoch']}: {', '.join(words)}"


def _finish(run: Run) -> None:
    run.model = run.net  # DDP's threads must end before the interpreter, see `distributed.group`
    if not run.group.first:
        return
    best = run.net if run.average is None else run.average.module
    checkpoint.save(best.state_dict(), run.output / "weights.pt")
    picture = log.draw(run.log) if run.log.exists() else None
    run.group.say(f"weights: {run.output / 'weights.pt'}, log: {run.log}")
    run.group.say(f"curves: {picture}" if picture else "no curves drawn: matplotlib is missing")
