"""What the training scripts do with their command lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from recipe import recipes
from recipe.distributed import Group, group
from recipe.loop import train
from recipe.recipes import Recipe
from recipe.run import Run


def train_from(
    arguments: Sequence[str] | None,
    parser: argparse.ArgumentParser,
    known: Mapping[str, Recipe],
    build: Callable[[argparse.Namespace, Recipe, Group], Run],
) -> Run:
    """Train with the given command-line arguments, and return the finished run."""
    given = parser.parse_args(arguments)
    try:
        recipe = recipes.chosen(given, known)
        with group(given.device) as processes:
            run = build(given, recipe, processes)
            train(run)
            return run
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
