"""What the two training scripts share: the paper's recipes, data, distributed runs and checkpoints."""
