"""What the processes that hold parts of a map tell each other: a few numbers for each token."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch import distributed as dist

from vt_fast.merging import merged
from vt_fast.precision import compute_dtype

#: Where a map is shared out: a group, groups along which it is, or None for all processes.
Group: TypeAlias = "dist.ProcessGroup | Sequence[dist.ProcessGroup] | None"

# Devices whose data can be asked for without waiting for them.
_SYNCHRONOUS = ["cpu"]

# The name before torch 2.13 is the second one.
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """Sums and merges over process groups, one group after the other, in the order of the ranks.

    Each process gathers what all have found and combines it itself. So all get the same bits, and the same
    ones in each run, which the order of sums in an all-reduce need not give.

    Every message starts with a number that stands for the call. Where processes have made different calls,
    they raise on a CPU; elsewhere, where that would wait for the device, the results are NaN.
    """

    def __init__(self, groups: Sequence[Any], label: str = "") -> None:
        """``label``: what all processes must have asked for."""
        self.groups: list[Any] = []
        self.label = label
        for group in groups:
            if any(group is other for other in self.groups):
                raise ValueError("`group` must hold each group once")
            size = dist.get_world_size(group)
            if size < 1:
                raise ValueError("`group` must contain this process, got a group of others")
            if size > 1:
                self.groups.append(group)

    def pool(self, tokens: Tensor, stats: Tensor, normalize: str | None) -> tuple[Tensor, Tensor]:
        """The tokens and statistics of all pixels from those of this process's, in the compute dtype."""
        for group in self.groups:
            tokens, stats = self._gather(group, f"pool {normalize}", tokens, stats)
            if normalize == "pixels":
                tokens, stats = merged(tokens, stats)
            else:
                tokens, stats = _in_order(tokens), _in_order(stats)
        return tokens, stats

    def total(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over the processes, in its dtype; the sums are in the compute dtype."""
        if not parts or not self.groups:
            return list(parts)
        dtypes = [part.dtype for part in parts]
        wide = compute_dtype(torch.float64 if torch.float64 in dtypes else torch.float32)
        sums = [part.to(wide) for part in parts]
        for group in self.groups:
            sums = [_in_order(part) for part in self._gather(group, f"total {dtypes}", *sums)]
        return [found.to(dtype) for found, dtype in zip(sums, dtypes, strict=True)]

    def _gather(self, group: Any, call: str, *parts: Tensor) -> list[Tensor]:
        """Each part of each process, (processes, ...), by one collective."""
        shapes = [part.shape for part in parts]
        what = " ".join(filter(None, (self.label, call, str([tuple(shape) for shape in shapes]))))
        # float32 holds integers of 24 bits.
        label = parts[0].new_full((1,), zlib.crc32(what.encode()) % 2**24)
        message = torch.cat([label, *(part.reshape(-1) for part in parts)])
        gathered = message.new_empty((dist.get_world_size(group), message.numel()))
        _all_gather(gathered.view(-1), message, group=group)
        alike = (gathered[:, 0] == label).all()
        if message.device.type not in _SYNCHRONOUS:
            gathered = gathered.masked_fill(~alike, torch.nan)
        elif not alike:
            raise RuntimeError(
                "the processes of the group have not made the same call: ops, shapes (but for the number of "
                "pixels), dtypes, the operands that need gradients and the order of the calls must agree; "
                f'this one has called "{what}"'
            )
        found = gathered[:, 1:].split([part.numel() for part in parts], 1)
        return [each.reshape(-1, *shape) for each, shape in zip(found, shapes, strict=True)]


def _in_order(parts: Tensor) -> Tensor:
    """The sum over the first dimension, from the first to the last."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def first_derivative_only(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """For the backward of an autograd.Function: create_graph=True is an error.

    A second derivative would have to reach the operands by way of other processes. What raises only when it
    is asked for may never be: autograd leaves out whatever leads to none of the tensors asked about.
    """

    def wrapped(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "functions of vt_fast.distributed can be differentiated only once: use no create_graph=True"
            )
        return backward(ctx, *grads)

    return wrapped


class _Shared(torch.autograd.Function):
    """The operands themselves; backward, the sums of their gradients over the processes."""

    @staticmethod
    def forward(ctx: Any, exchange: Exchange, *operands: Tensor) -> tuple[Tensor, ...]:
        ctx.exchange = exchange
        return tuple(operand.view_as(operand) for operand in operands)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return (None, *ctx.exchange.total(grads))


def share(exchange: Exchange, *operands: Any) -> tuple[Any, ...]:
    """Operands that all processes hold alike, for use with pixels that they do not.

    What a process computes from them with its own pixels gives it a part of their gradients. Each process
    gets the sum.
    """
    wanted = [operand is not None and operand.requires_grad for operand in operands]
    given = [operand for operand, each in zip(operands, wanted, strict=True) if each]
    apply: Callable[..., Any] = _Shared.apply
    found = iter(apply(exchange, *given) if given else ())
    return tuple(next(found) if each else operand for operand, each in zip(operands, wanted, strict=True))
