"""MACs and parameters of a network, as the paper counts them.

Only convolutions, matrix products and the package's ops count. Norms, activations, pooling and resizing do
not, although fvcore counts some of them by default. fvcore is optional.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from tools.paper.rows import Row
from vt_fast.flops import fvcore_handles
from vt_fast.models.contexts import evaluating
from vt_fast.nn import ClusteringTokenizer, set_backend

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


@dataclass(frozen=True)
class Counted:
    """A row with its counts: MACs in the row's unit, parameters in millions, or quotients.

    Parameters are without those of BatchNorm unless the row says otherwise. `written` counts every projection
    where the paper has it, `executed` what runs after folding. `by_both` is True where fvcore agreed with
    torch's counter on `written`.
    """

    row: Row
    written: float
    executed: float
    parameters: float
    by_both: bool

    @property
    def residual(self) -> float | None:
        """Difference between `written` and the nearest number that the paper prints, in percent."""
        return _residual(self.written, self.row.printed_macs)

    @property
    def parameter_residual(self) -> float | None:
        """The same for the parameters."""
        return _residual(self.parameters, self.row.printed_parameters)


def counted(row: Row) -> Counted:
    """Count one row; see :attr:`Row.against` for quotients.

    Torch's counter runs on tensors without data. fvcore, where it is installed, traces a real call, which
    takes seconds for a large image.

    Raises:
        RuntimeError: the two counters disagree.
    """
    both = importlib.util.find_spec("fvcore") is not None
    numbers = _counts(row, row.build, both)
    if row.against is None:
        written, executed, size = numbers[0] / row.unit, numbers[1] / row.unit, numbers[2] / 1e6
    else:
        others = _counts(row, row.against, both)
        written, executed, size = (other / each for each, other in zip(numbers, others, strict=True))
    return Counted(row, written, executed, size, both)


def _counts(row: Row, build: Callable[..., nn.Module], both: bool) -> tuple[int, int, int]:
    """MACs as written and as executed, and parameters, of what `build` makes for the row's inputs."""
    with torch.device("meta"):
        model = build()
    argument = row.argument()
    written = macs(model, argument)
    if both and (other := fvcore_macs(build(), row.argument("cpu"))) != written:
        raise RuntimeError(f"{row.name}: torch.utils.flop_counter counts {written} MACs and fvcore {other}")
    size = parameters(model, batch_norm=row.batch_norm)
    set_backend(model, "torch")
    return written, macs(model, argument), size


def macs(model: nn.Module, *inputs: Tensor | list[Tensor]) -> int:
    """Multiply-accumulates of one forward pass in evaluation mode, by `torch.utils.flop_counter`.

    Args:
        model: any module. The k-means of clustering tokenizers does not count, as in the paper.
        *inputs: its arguments. Nothing is computed if they and the model are on device "meta".

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
    from fvcore.nn import FlopCountAnalysis

    with torch.no_grad(), evaluating(model), _without_kmeans(model):
        analysis = FlopCountAnalysis(model, inputs)
        analysis.set_op_handle(**dict.fromkeys(_NOT_COUNTED, _nothing), **fvcore_handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())


def parameters(model: nn.Module, *, batch_norm: bool = False) -> int:
    """Number of parameters, without those of BatchNorm, which the paper leaves out.

    Args:
        model: any module.
        batch_norm: True to count BatchNorm's too.

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


def _residual(value: float, printed: str) -> float | None:
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", printed)]
    if not numbers:
        return None
    nearest = min(numbers, key=lambda number: abs(number - value))
    return 100 * (value - nearest) / nearest


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


@contextmanager
def _without_kmeans(model: nn.Module) -> Iterator[None]:
    """Let clustering tokenizers keep their first centroids: no iteration, hence no product to count."""
    found = [part for part in model.modules() if isinstance(part, ClusteringTokenizer)]
    iterations = [part.iterations for part in found]
    for part in found:
        part.iterations = 0
    try:
        yield
    finally:
        for part, count in zip(found, iterations, strict=True):
            part.iterations = count
