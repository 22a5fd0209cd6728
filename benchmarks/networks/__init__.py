"""The paper's networks against those that they replace: ``python -m benchmarks models``."""
