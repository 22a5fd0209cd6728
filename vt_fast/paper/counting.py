"""Counting a row: as the paper writes the network, and as it runs once its projections are folded."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

import torch

from vt_fast.models.counting import fvcore_macs, macs, parameters
from vt_fast.nn.base import set_backend
from vt_fast.paper.rows import Network


@dataclass(frozen=True)
class Counted:
    """A row with its counts: MACs in the row's unit, parameters in millions without those of BatchNorm.

    `written` is by torch's counter, and by fvcore too where `by_both`; `executed` counts what runs after
    folding.
    """

    network: Network
    written: float
    executed: float
    parameters: float
    by_both: bool

    @property
    def residual(self) -> float | None:
        """How far `written` is from the nearest number that the paper prints, in percent of it."""
        return _residual(self.written, self.network.printed_macs)

    @property
    def parameter_residual(self) -> float | None:
        """The same of the parameters."""
        return _residual(self.parameters, self.network.printed_parameters)


def counted(network: Network) -> Counted:
    """Count one row.

    Torch's counter needs no data, hence no time. Fvcore, where it is installed, traces a call on real
    tensors, which takes seconds for a large image.

    Raises:
        RuntimeError: the two counters disagree.
    """
    with torch.device("meta"):
        model = network.build()
    argument = network.argument("meta")
    written = macs(model, argument)
    both = importlib.util.find_spec("fvcore") is not None
    if both and (other := fvcore_macs(network.build(), network.argument("cpu"))) != written:
        raise RuntimeError(
            f"{network.name}: torch.utils.flop_counter counts {written} MACs and fvcore {other}"
        )
    size = parameters(model)
    set_backend(model, "torch")
    executed = macs(model, argument)
    return Counted(network, written / network.unit, executed / network.unit, size / 1e6, both)


def _residual(value: float, printed: str) -> float | None:
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", printed)]
    if not numbers:
        return None
    nearest = min(numbers, key=lambda number: abs(number - value))
    return 100 * (value - nearest) / nearest
