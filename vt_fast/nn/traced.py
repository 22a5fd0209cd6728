"""Who looks at calls: torch.fx, for which those of modules are single nodes, other tracers, and modes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Proxy
from torch.jit import is_tracing  # type: ignore[attr-defined]


def interposed() -> bool:
    """Whether a tracer, a dispatch mode or a function transform stands between calls and their kernels."""
    return (
        is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def is_traced(x: Any) -> bool:
    """Whether torch.fx traces the call: `x` stands for a tensor, or is a list of such."""
    return isinstance(x, Proxy) or (isinstance(x, list | tuple) and len(x) > 0 and isinstance(x[0], Proxy))


def leaf(module: nn.Module, x: Any, *args: Any, **options: Any) -> Any:
    """The node of a call `module(x, *args, **options)`, whose inside is not traced.

    The inside chooses kernels and checks shapes when it runs.

    Raises:
        TypeError: `module` is itself what is traced.
    """
    tracer: Any = (x if isinstance(x, Proxy) else x[0]).tracer
    if tracer.root is module:
        raise TypeError(
            f"torch.fx cannot trace into {type(module).__name__}, which is one node of a graph: trace the "
            f"network that contains it, or put it into an nn.Sequential"
        )
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (x, *args), options)
