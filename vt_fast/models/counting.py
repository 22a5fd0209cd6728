"""Multiply-accumulates and parameters as the paper counts them, by torch's counter and by fvcore.

Counted are convolutions, matrix products and the package's ops; not norms, activations, pooling and resizing,
some of which fvcore counts by default. fvcore is optional.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from vt_fast.models.modes import evaluating
from vt_fast.nn import ClusteringTokenizer

# What fvcore counts by default and torch's counter does not.
_NOT_COUNTED = (
    "aten::batch_norm",
    "aten::group_norm",
    "aten::layer_norm",
    "aten::instance_norm",
    "aten::upsample_nearest2d",
    "aten::upsample_bilinear2d",
    "aten::adaptive_avg_pool2d",
    "aten::grid_sampler",
)


def macs(model: nn.Module, *inputs: Tensor | list[Tensor]) -> int:
    """Multiply-accumulates of one forward pass in evaluation, by `torch.utils.flop_counter`.

    Args:
        model: any module; the k-means of clustering tokenizers is not counted, as in the paper.
        *inputs: what it is called with. With the model and them on device "meta" nothing is computed.

    Example:
        >>> macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10)) == 3 * 8 * 9 * 100
        True
    """
    with (
        torch.no_grad(),
        evaluating(model),
        _without_kmeans(model),
        FlopCounterMode(display=False) as counter,
    ):
        model(*inputs)
    return int(counter.get_total_flops()) // 2


def fvcore_macs(model: nn.Module, *inputs: Tensor | list[Tensor]) -> int:
    """The same by fvcore, which traces the model.

    Raises:
        ModuleNotFoundError: fvcore is not installed.

    Example:
        >>> fvcore_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10)) == 3 * 8 * 9 * 100
        True
    """
    try:
        from fvcore.nn import FlopCountAnalysis
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("`fvcore_macs` needs fvcore: pip install fvcore") from error
    from vt_fast.flops import fvcore_handles

    with torch.no_grad(), evaluating(model), _without_kmeans(model):
        analysis = FlopCountAnalysis(model, inputs)
        analysis.set_op_handle(**dict.fromkeys(_NOT_COUNTED, _nothing), **fvcore_handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())


def parameters(model: nn.Module, *, batch_norm: bool = False) -> int:
    """Parameters of a model, those of BatchNorm left out as the paper does.

    Args:
        model: any module.
        batch_norm: True to count them too.

    Example:
        >>> parameters(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)))
        32
    """
    left_out = {
        id(parameter)
        for part in model.modules()
        if isinstance(part, _BatchNorm) and not batch_norm
        for parameter in part.parameters(recurse=False)
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in left_out)


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


@contextmanager
def _without_kmeans(model: nn.Module) -> Iterator[None]:
    """Let clustering tokenizers keep their first centroids: no iteration, no product to be counted."""
    found = [part for part in model.modules() if isinstance(part, ClusteringTokenizer)]
    iterations = [part.iterations for part in found]
    for part in found:
        part.iterations = 0
    try:
        yield
    finally:
        for part, count in zip(found, iterations, strict=True):
            part.iterations = count
