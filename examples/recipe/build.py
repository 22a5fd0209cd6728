"""Build a run from the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from recipe import data, optim, randomness, schedule
from recipe.distributed import Group, synchronised, wrapped
from recipe.losses import Loss
from recipe.metrics import Metric
from recipe.recipes import OURS, Recipe
from recipe.run import Run

_AMP = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Options that may differ when a checkpoint is resumed.
_FREE = {"output", "restart", "checkpoint_steps", "log_steps", "device", "workers", "micro_batch", "compile"}


def build(
    options: argparse.Namespace,
    recipe: Recipe,
    group: Group,
    *,
    images: data.Data,
    make_net: Callable[[], nn.Module],
    loss: Loss,
    metric: Callable[[], Metric],
    val_batch: int | None = None,
) -> Run:
    """A run, new or resumed from its checkpoint.

    Args:
        options: of :func:`recipe.options.parser`.
        recipe: how to train.
        group: this process among all.
        images: the training and validation data.
        make_net: makes the model; called after the generators are seeded.
        loss: the loss to minimise.
        metric: makes the :class:`recipe.metrics.Metric` to evaluate with.
        val_batch: batch size in evaluation; by default that of a training pass.

    Raises:
        ValueError: batch sizes that do not divide, or a checkpoint of another run.
    """
    if options.deterministic:
        # cuBLAS reads this once, when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    passes = _passes(recipe.batch_size, group.size, options.micro_batch)
    micro = recipe.batch_size // (passes * group.size)
    loaders = data.loaders(
        images,
        group,
        batch=recipe.batch_size,
        passes=passes,
        val_batch=val_batch or micro,
        workers=options.workers,
        seed=options.seed,
    )
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    randomness.seed_all(options.seed)  # the same weights in all processes
    # torch's signature lacks memory_format without a device.
    net: nn.Module = make_net().to(device=group.device, memory_format=memory_format)  # type: ignore[call-overload]
    net = synchronised(net, group, recipe.sync_bn)
    average = optim.average(net, recipe)
    randomness.seed_all(options.seed, group.rank)  # different dropout in each
    optimizer = optim.make(net.parameters(), recipe)
    if options.compile:
        net.compile(backend=options.compile)  # in place, which keeps the parameters' names
    run = Run(
        group=group,
        recipe=recipe,
        output=options.output,
        net=net,
        model=wrapped(net, group),
        average=average,
        loss=loss,
        metric=metric,
        loaders=loaders,
        optimizer=optimizer,
        scheduler=schedule.make(optimizer, recipe, loaders.sampler.steps),
        scaler=torch.amp.GradScaler(group.device.type, enabled=options.amp == "fp16"),
        amp=_AMP[options.amp],
        memory_format=memory_format,
        settings=_settings(options, recipe),
        layout={"processes": group.size, "passes": passes, "device": group.device.type},
        seed=options.seed,
        checkpoint_steps=options.checkpoint_steps,
        log_steps=options.log_steps,
        total=torch.zeros((), device=group.device),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    if options.restart or not run.resume():
        _describe(run, options, micro)
    return run


def _passes(batch: int, processes: int, micro: int | None) -> int:
    """Number of forward passes of ``micro`` images in a process's share of a batch."""
    if micro is None:
        return 1
    if micro < 1 or batch % (micro * processes):
        raise ValueError(
            f"`batch_size` must be a multiple of micro_batch * processes = {micro} * {processes}, got {batch}"
        )
    return batch // (micro * processes)


def _settings(options: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """The options outside the recipe, in a form that a checkpoint can hold."""
    numbers = vars(recipe).keys() | {"recipe", "scale_lr"}
    return {key: repr(value) for key, value in vars(options).items() if key not in numbers | _FREE}


def _describe(run: Run, options: argparse.Namespace, micro: int) -> None:
    """Print the settings, and remove the files of an earlier run from the folder."""
    recipe, group = run.recipe, run.group
    if group.first:
        for name in (run.checkpoint, run.log, run.output / "weights.pt"):
            name.unlink(missing_ok=True)
    parameters = sum(each.numel() for each in run.net.parameters())
    group.say(
        f"{options.model}: {parameters / 1e6:.2f} M parameters; recipe {options.recipe}: "
        f"{', '.join(f'{key} {value}' for key, value in vars(recipe).items())}"
    )
    if ours := OURS[options.recipe]:
        group.say(f"not stated in the paper: {', '.join(ours)}")
    sampler = run.loaders.sampler
    group.say(
        f"a step: {sampler.batch} images = {sampler.size} processes x {sampler.passes} passes x {micro}; "
        f"an epoch: {sampler.steps} steps"
    )
