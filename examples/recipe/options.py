"""Command-line options of both training scripts, besides the recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from recipe import models


def parser(description: str, model: str, image_size: int) -> argparse.ArgumentParser:
    """A parser with the options outside the recipe."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--data", required=True, metavar="FOLDER", help="or digits, which needs no download")
    made.add_argument("--model", default=model, metavar="NAME", help=f"{models.NAMES} (default: {model})")
    made.add_argument(
        "--model-option",
        type=models.option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="passed to the model, for example num_tokens=8; may be repeated",
    )
    made.add_argument("--image-size", type=int, default=image_size, help="default: %(default)s")
    made.add_argument("--seed", type=int, default=0, help="of weights, image order and augmentation")

    where = made.add_argument_group("results")
    where.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a run in it is resumed")
    where.add_argument("--restart", action="store_true", help="start anew even if --output has a checkpoint")
    where.add_argument(
        "--checkpoint-steps", type=int, default=0, metavar="N", help="also every N steps of an epoch"
    )
    where.add_argument("--log-steps", type=int, default=50, metavar="N", help="log the loss every N steps")

    how = made.add_argument_group("machine")
    how.add_argument("--device", help="as in torch (default: cuda if available, otherwise cpu)")
    how.add_argument("--workers", type=int, default=4, help="data loading processes of each process")
    how.add_argument(
        "--micro-batch",
        type=int,
        metavar="N",
        help="images per forward pass of a process; gradients of several passes add up to --batch-size "
        "(default: all in one pass)",
    )
    how.add_argument("--amp", choices=("bf16", "fp16"), help="mixed precision; fp16 with a scaled loss")
    how.add_argument("--channels-last", action="store_true", help="use the channels_last memory format")
    how.add_argument(
        "--compile", nargs="?", const="inductor", metavar="BACKEND", help="with torch.compile (inductor)"
    )
    how.add_argument(
        "--deterministic",
        action="store_true",
        help="use deterministic algorithms only; CPU runs are always deterministic",
    )
    return made
