"""Shared code of the training scripts: recipes, data, distributed runs and checkpoints."""
