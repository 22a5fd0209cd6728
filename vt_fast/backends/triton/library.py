"""Whether Triton can be used here, and with what precision its products are taken."""

from __future__ import annotations

import importlib.util
import os

import torch

# Triton looks at this when kernels are defined: on the CPU they are then run by an interpreter.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable() -> str | None:
    """Why it cannot run on this machine, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if not INTERPRETED and not torch.cuda.is_available():
        return (
            "torch finds no CUDA or ROCm device (TRITON_INTERPRET=1 in the environment runs the kernels on "
            "CPU tensors, slowly, to check them)"
        )
    return None


def precision(dtype: torch.dtype) -> str:
    """tl.dot's input_precision for maps of this dtype; float32 follows torch's own switch."""
    return "tf32" if dtype == torch.float32 and _tf32() else "ieee"


def _tf32() -> bool:
    """Torch's switch, which has two names; the old one raises once the new one was used."""
    matmul = torch.backends.cuda.matmul
    setting = getattr(matmul, "fp32_precision", None)
    if setting is None or setting == "none":
        setting = getattr(torch.backends, "fp32_precision", "none")
        if setting == "none":
            return bool(matmul.allow_tf32)
    return bool(setting == "tf32")


def small_precision(dtype: torch.dtype) -> str:
    """The same for float32 products within a call whose maps have this dtype."""
    return "tf32" if dtype.itemsize == 2 else precision(dtype)


def kind(dtype: torch.dtype) -> str:
    """The class of settings by how products are taken: "16" bits, "tf32" or "ieee"."""
    return "16" if dtype.itemsize == 2 else precision(dtype)


def limit(dtype: torch.dtype) -> float:
    """The largest finite number of the dtype that is computed in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max


def widens(dtype: torch.dtype) -> bool:
    """Whether operands of products must become float32 first: the interpreter takes bfloat16 for integers."""
    return INTERPRETED and dtype == torch.bfloat16
