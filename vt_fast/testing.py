"""Comparing an implementation with the float64 truth, with tolerances that follow from the data."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.precision import compute_dtype

__all__ = ["allowed_error", "assert_as_accurate"]


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
    """Raise unless ``actual`` is about as near to ``exact`` as plain PyTorch in the same dtype is.

    Its largest error may be twice that of ``plain``, which computes the same in plain PyTorch, plus some
    roundings of the largest exact value: that of the result; that of lse, which a backward starts from
    and which changes all of a token's weights by its own rounding error; and those of a sum, which in
    another order grow with the square root of its terms. So no tolerance is chosen by hand. NaN and
    infinity must be where ``exact`` has them.

    Args:
        actual: what is tested, of any dtype.
        exact: the same in float64.
        plain: the same by plain PyTorch in actual's dtype.
        name: how the message calls it.
        lse: the largest magnitude of the lse in the problem, 0 where none is involved.
        terms: how many terms are summed for one value, 0 where none are.
        truncates: digits that dtype has no room for were cut off, not rounded to nearest as by plain
            PyTorch: then all is allowed twice.

    Raises:
        AssertionError: another shape, NaN or infinity elsewhere, or a larger error.

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
    """The largest error that :func:`assert_as_accurate` lets pass.

    Args:
        plain: the largest error of plain PyTorch in the same dtype.
        largest: the largest exact magnitude.
        dtype: of what is tested.
        lse: as there, and so is ``terms``.
        terms: see above.
        multiple: how many times the plain error is allowed.

    Example:
        >>> allowed_error(0.25, 1.0, torch.float32) == 0.5 + torch.finfo(torch.float32).eps / 2
        True
    """
    statistic = compute_dtype(dtype)
    roundings = torch.finfo(dtype).eps + (lse + terms**0.5) * torch.finfo(statistic).eps
    return float(multiple * plain + roundings / 2 * largest)
