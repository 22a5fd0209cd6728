"""A training run: its state, and how it is saved and resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from recipe import checkpoint, randomness
from recipe.data import Loaders
from recipe.distributed import Group
from recipe.losses import Loss
from recipe.metrics import Metric
from recipe.recipes import Recipe
from recipe.schedule import learning_rate

_FORMAT = 1


@dataclass
class Run:
    """The state of a run in this process.

    Attributes:
        net: the model itself; ``model`` is the same, wrapped for training.
        average: its moving average, or None.
        settings: must be the same when a checkpoint is resumed.
        layout: how the work is split over processes and passes. A run can be resumed with another layout, but
            not bit for bit.
        epoch: finished epochs.
        step: finished steps of the current epoch.
        total: sum of the losses of these steps in this process.
    """

    group: Group
    recipe: Recipe
    output: Path
    net: nn.Module
    model: nn.Module
    average: AveragedModel | None
    loss: Loss
    metric: Callable[[], Metric]
    loaders: Loaders
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    amp: torch.dtype | None
    memory_format: torch.memory_format
    settings: dict[str, Any]
    layout: dict[str, Any]
    seed: int
    checkpoint_steps: int
    log_steps: int
    epoch: int = 0
    step: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's path."""
        return self.output / "last.pt"

    @property
    def log(self) -> Path:
        """The log's path."""
        return self.output / "log.jsonl"

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        steps = self.loaders.sampler.steps
        return learning_rate(self.recipe, self.epoch * steps + self.step - 1, steps)

    def save(self) -> None:
        """Write a checkpoint. All processes must call it; the first writes."""
        self.group.share_buffers(self.net, self.average)
        own = {"random": randomness.states(self.group.device), "total": self.total.cpu()}
        ranks = self.group.gathered(own)
        if not self.group.first:
            return
        content: dict[str, Any] = {
            "format": _FORMAT,
            "settings": self.settings,
            "layout": self.layout,
            "recipe": dataclasses.asdict(self.recipe),
            "epoch": self.epoch,
            "step": self.step,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ranks": ranks,
        }
        if self.average is not None:
            content["ema"] = self.average.module.state_dict()
            content["ema_steps"] = int(self.average.n_averaged)
        checkpoint.save(content, self.checkpoint)

    def resume(self) -> bool:
        """Resume from the checkpoint if there is one, and return whether there was.

        Raises:
            ValueError: it was written with another recipe or other settings.
        """
        if not self.checkpoint.exists():
            return False
        content = checkpoint.load(self.checkpoint)
        self._check(content)
        self.net.load_state_dict(content["net"])
        if self.average is not None:
            self.average.module.load_state_dict(content["ema"])
            self.average.n_averaged.fill_(content["ema_steps"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.scaler.load_state_dict(content["scaler"])
        self.epoch, self.step = content["epoch"], content["step"]
        where = f"{self.checkpoint}, {self.epoch} epochs and {self.step} steps"
        if content["layout"] == self.layout:
            own = content["ranks"][self.group.rank]
            self.total = own["total"].to(self.group.device)
            randomness.restore(own["random"], self.group.device)
            self.group.say(f"resumed from {where}")
        else:
            # The same images in the same order, but different summation orders and random numbers.
            mean = torch.stack([own["total"] for own in content["ranks"]]).mean()
            self.total = mean.to(self.group.device)
            randomness.seed_all(self.seed, self.epoch, self.step, self.group.rank)
            self.group.say(
                f"resumed from {where}, not bit for bit: it was written with {content['layout']}, "
                f"this is {self.layout}"
            )
        return True

    def _check(self, content: dict[str, Any]) -> None:
        if content["format"] != _FORMAT:
            raise ValueError(f"{self.checkpoint} must have format {_FORMAT}, got {content['format']}")
        old = content["settings"] | content["recipe"]
        new = self.settings | dataclasses.asdict(self.recipe)
        odd = [f"{key} = {old.get(key)!r}, now {new[key]!r}" for key in new if old.get(key) != new[key]]
        if odd:
            raise ValueError(
                f"{self.checkpoint} was written with {'; '.join(odd)}: choose another --output, or --restart"
            )
