"""One case: who may be timed, times in turn, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.admission import cause
from benchmarks.device import Device
from benchmarks.networks.cases import NECK, Case
from benchmarks.networks.gate import complaints
from benchmarks.networks.records import NetworkCell, Side
from benchmarks.networks.sides import COMPILED, CONVOLUTIONAL, REFERENCE, argument, module, step
from benchmarks.operands import TORCH_DTYPES
from benchmarks.timing import Budget, interleaved
from tools.paper.counting import macs
from vt_fast.nn import set_backend
from vt_fast.testing import peak_bytes

BUDGET = Budget(seconds=3.0, least=7, most=50, few=5, patience=30.0, behind=math.inf, far_behind=math.inf)


def measure(
    case: Case,
    dtype: str,
    layout: str,
    passes: tuple[str, ...],
    sides: tuple[str, ...],
    device: Device,
    budget: Budget = BUDGET,
) -> Iterator[NetworkCell]:
    """The cells of a case, one for each pass."""
    where, target = device.torch_device, TORCH_DTYPES[dtype]
    wrong = complaints(case, where, target, sides)
    given = argument(case.inputs, case.batch, case.kind == NECK, where, target)
    if layout == "channels_last":
        given = _channels_last(given)
    for which in passes:
        found = [Side(name, macs=_macs(case, name), reason=wrong.get(name)) for name in sides]
        calls = {}
        for side in found:
            if side.reason is not None:
                continue
            try:
                made = module(case, side.name, where, target)
                if layout == "channels_last":
                    made = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                call = step(made, given, which)
                call()  # compiles, packs weights, makes the optimizer's state
                side.peak_bytes = peak_bytes(call, where)
                calls[side.name] = call
            except Exception as error:  # one side that fails must not end the run, nor go unnamed
                side.reason = cause(error)
        device.warm_up()
        for name, seconds in interleaved(calls, budget, clock=device.clock).items():
            next(side for side in found if side.name == name).seconds = seconds
        yield NetworkCell(case.kind, case.name, case.batch, dtype, layout, device.threads, which, found)
        del calls
        device.give_back_memory()


def _channels_last(given: Any) -> Any:
    if isinstance(given, list):
        return [_channels_last(each) for each in given]
    return given.contiguous(memory_format=torch.channels_last)


def _macs(case: Case, side: str) -> int:
    """Of one inference of the whole batch, counted on tensors without data."""
    with torch.device("meta"):
        made = case.convolutional() if side == CONVOLUTIONAL else case.visual()
    if side != CONVOLUTIONAL:
        set_backend(made, "reference" if side in (REFERENCE, COMPILED) else "torch")
    shapes = [torch.empty((case.batch, *shape), device="meta") for shape in case.inputs]
    return macs(made, shapes if case.kind == NECK else shapes[0])
