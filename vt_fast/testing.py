"""Helpers for tests and benchmarks of an implementation: accuracy against float64, and peak memory.

Tolerances follow from the data: an error is compared with the one that plain PyTorch makes in the same dtype.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vt_fast.precision import compute_dtype

__all__ = ["allowed_error", "assert_as_accurate", "least_accurate", "peak_bytes"]


def assert_as_accurate(
    actual: Tensor,
    exact: Tensor,
    plain: Tensor,
    name: str = "result",
    *,
    lse: float = 0.0,
    terms: int = 0,
    truncates: bool = False,
) -> None:
    """Raise unless ``actual`` is about as close to ``exact`` as plain PyTorch is in the same dtype.

    The largest error may be twice that of ``plain``, plus a few roundings of the largest exact value:

    - one for the result;
    - one for the lse, from which a backward starts: its rounding error changes all weights of a token;
    - those of a sum in another order, which grow with the square root of the number of terms.

    NaN and infinity must be where ``exact`` has them.

    Args:
        actual: the result to test, of any dtype.
        exact: the same in float64.
        plain: the same by plain PyTorch in the dtype of ``actual``.
        name: the name of the result in the message.
        lse: the largest magnitude of the lse involved, 0 for none.
        terms: how many terms are summed for one value, 0 for none.
        truncates: the implementation truncates instead of rounding to nearest. Doubles the allowance.

    Raises:
        AssertionError: the shape differs, NaN or infinity is elsewhere, or the error is too large.

    Example:
        >>> import torch
        >>> exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> assert_as_accurate(exact.float(), exact, exact.float())
        >>> assert_as_accurate(exact.float() + 0.1, exact, exact.float())
        Traceback (most recent call last):
        ...
        AssertionError: result: largest error 0.1, allowed 1.19e-07 (plain PyTorch: 0)
    """
    if actual.shape != exact.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}")
    found = actual.detach().to(torch.float64)
    truth, other = exact.detach(), plain.detach().to(torch.float64)
    for kind, test in (("NaN", torch.isnan), ("infinity", torch.isinf)):
        if not torch.equal(test(found), test(truth)):
            raise AssertionError(
                f"{name}: {kind} in {int(test(found).sum())} places, expected {int(test(truth).sum())}"
            )
    finite = torch.isfinite(truth)
    if not torch.equal(found[~finite].nan_to_num(), truth[~finite].nan_to_num()):
        raise AssertionError(f"{name}: infinity of the wrong sign")
    if not finite.any():
        return
    truth, found, other = truth[finite], found[finite], other[finite]
    error, reached = (found - truth).abs().max(), (other - truth).abs().max()
    allowed = allowed_error(
        float(reached.nan_to_num()), float(truth.abs().max()), actual.dtype, lse=lse, terms=terms
    ) * (2 if truncates else 1)
    if error > allowed:
        raise AssertionError(
            f"{name}: largest error {error:.3g}, allowed {allowed:.3g} (plain PyTorch: {reached:.3g})"
        )


def allowed_error(
    plain: float,
    largest: float,
    dtype: torch.dtype,
    *,
    lse: float = 0.0,
    terms: int = 0,
    multiple: float = 2.0,
) -> float:
    """The largest error that :func:`assert_as_accurate` accepts.

    Args:
        plain: the largest error of plain PyTorch in the same dtype.
        largest: the largest exact magnitude.
        dtype: of the result to test.
        lse: see :func:`assert_as_accurate`.
        terms: see :func:`assert_as_accurate`.
        multiple: how many times the plain error is allowed.

    Example:
        >>> allowed_error(0.25, 1.0, torch.float32) == 0.5 + torch.finfo(torch.float32).eps / 2
        True
    """
    statistic = compute_dtype(dtype)
    roundings = torch.finfo(dtype).eps + (lse + terms**0.5) * torch.finfo(statistic).eps
    return float(multiple * plain + roundings / 2 * largest)


def least_accurate(exact: Tensor, ways: Sequence[Tensor]) -> Tensor:
    """The one of several results with the largest finite error: any of them may be exact by chance.

    Args:
        exact: the result in float64.
        ways: the same of other computations, at least one.

    Example:
        >>> import torch
        >>> exact = torch.tensor([1.0], dtype=torch.float64)
        >>> least_accurate(exact, [exact, exact + 0.5, exact - 0.25])
        tensor([1.5000], dtype=torch.float64)
    """
    errors = [(way.detach().to(exact) - exact.detach()).abs().nan_to_num(posinf=0.0) for way in ways]
    sizes = [error.max().item() if error.numel() else 0.0 for error in errors]
    return ways[sizes.index(max(sizes))]


def peak_bytes(function: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Peak memory of a call in bytes: what PyTorch's allocator holds beyond what it held before.

    Results count, inputs do not. On a CPU it is the exact sum of the allocator's events.

    Args:
        function: called once.
        device: whose memory is measured.

    Raises:
        RuntimeError: on a CPU, if another profiler is running.

    Example:
        >>> x = torch.ones(1000)
        >>> peak_bytes(lambda: x.clone())
        4000
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _peak_from_events(function)
    module = torch.get_device_module(device)
    module.synchronize(device)
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    result = function()
    module.synchronize(device)
    del result
    peak: int = module.max_memory_allocated(device) - before
    return peak


def _peak_from_events(function: Callable[[], Any]) -> int:
    # The profiler logs its start and stop to stderr; only a level above the documented ones silences it.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = function()
    del result
    recorded = profile.profiler
    if recorded is None or recorded.kineto_results is None:
        raise RuntimeError("the profiler recorded nothing: is another one running?")
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
