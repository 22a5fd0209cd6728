"""How bags are cut into pieces, also by offsets that are wrong: on a GPU nothing can check them."""

import contextlib
import itertools
from unittest import mock

import pytest
import torch

from tests._support import devices
from tests.triton.test_family import FORMS, OFFSETS, SETTINGS
from vt_fast.backends import contract, triton
from vt_fast.backends.triton import bags, project_op, schedule
from vt_fast.backends.triton.bags import cut_bags
from vt_fast.backends.triton.settings import using
from vt_fast.backends.triton.token_softmax import Parts


@contextlib.contextmanager
def unchecked():
    """Offsets on the CPU are as on a GPU."""
    with mock.patch.object(bags, "bag_bounds"), mock.patch.object(project_op, "bag_bounds"):
        yield


def pieces_of(bounds, each):
    """Bag, first pixel and the one after the last of each piece, and each bag's first piece."""
    pieces, first = [], [0]
    for bag, (start, stop) in enumerate(itertools.pairwise(bounds)):
        pieces += [(bag, begin, min(begin + each, stop)) for begin in range(start, stop, each)]
        first.append(len(pieces))
    return pieces, first


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("offsets", "bounds"),
    [
        (OFFSETS, OFFSETS),
        ([0, 0, 47], [0, 0, 47]),
        ([-5, 9, 4, 99], [0, 9, 9, 47]),
        ([3, 5, 2, 7], [0, 5, 5, 47]),
        ([60, 50, 9], [0, 47, 47]),
        ([5, 7], [0, 47]),
        ([9], [9]),
        (sorted([*range(0, 47, 3)] * 20), [0, *sorted([*range(0, 47, 3)] * 20)[1:-1], 47]),
    ],
    ids=["bags", "an empty one first", "out of range", "not covering", "falling", "one", "none", "many"],
)
def test_pieces(offsets, bounds, dtype):
    with unchecked():
        found = cut_bags(torch.tensor(offsets, dtype=dtype), 47, 16)
    expected, first = pieces_of(bounds, 16)
    pieces = [tuple(map(int, each)) for each in zip(*found.bags, strict=True)]
    assert pieces[: len(expected)] == expected
    assert all(start == stop for _, start, stop in pieces[len(expected) :])
    assert found.first.tolist() == first
    assert len(pieces) == found.count


def test_wrong_offsets_are_an_error_on_the_cpu():
    if devices.on_gpu("triton") and not devices.PRETENDED:
        pytest.skip("offsets are on a GPU")
    with pytest.raises(ValueError, match="must start at 0"):
        cut_bags(torch.tensor([-5, 9, 4, 99]), 40, 16)


def test_bags_are_cut_by_one_launch():
    launched = []
    with schedule.observed(lambda kernel, *_: launched.append(kernel.fn.__name__)):
        cut_bags(torch.tensor(OFFSETS), 47, 16)
    assert launched == ["cut_each_bag"]


@FORMS
@pytest.mark.parametrize("offsets", [[5, 9, 4, 20], [9]], ids=["not covering", "no bags"])
def test_wrong_offsets_leave_nothing_uninitialised(form, offsets):
    offsets = torch.tensor(offsets)
    count = len(offsets) - 1
    x, keys, values = torch.randn(47, 8), torch.randn(4, 8), torch.randn(count, 4, 8)
    scores = torch.randn(4, 47)
    filling = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with unchecked(), using(SETTINGS[form]):
            y = triton.project(contract.Project(x, keys, values, None, None, False, 1, scores, offsets))
            found = triton.project_backward(
                contract.ProjectBackward(y, x, keys, values, None, False, 1, [True] * 5, scores, offsets)
            )
            tokens, stats = triton.tokenize(
                contract.Tokenize(x, keys, None, None, None, 1, True, x, scores, None, offsets)
            )
            pooled = triton.tokenize_backward(
                contract.TokenizeBackward(
                    tokens, torch.zeros_like(stats), x, keys, None, torch.zeros(47), None, tokens, stats, 1,
                    [True, True, True, False, True, True, False], x, scores, None, offsets,
                )
            )  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(filling)
    for each in (y, tokens, stats, *found, *pooled):
        assert each is None or not each.isnan().any()  # what is allocated holds NaN
    assert y.count_nonzero() == (y.numel() if count else 0)


def sums_left(call, function):
    """The sums over pixels that kernels leave, of shared operands."""
    found = []
    with using(SETTINGS["stream"]), schedule.observed(lambda _, __, arguments, ___: found.extend(arguments)):
        function(call)
    found += [each for value in found if isinstance(value, Parts) for each in value]
    return [each for each in found if isinstance(each, torch.Tensor) and each.dim() > 3]


@pytest.mark.parametrize("bags", [False, True], ids=["samples", "bags"])
def test_a_bias_of_each_sample_costs_no_sums_of_shared_queries(bags):
    """There are as many sums as programs, whatever the number of samples."""
    count = 60
    x = torch.randn(2 * count, 8) if bags else torch.randn(count, 2, 8)
    call = contract.TokenizeBackward(
        torch.randn(count, 4, 8), None, x, torch.randn(4, 8), None, None, None, torch.randn(count, 4, 8),
        torch.randn(count, 4), 1, [True] * 7, token_bias=torch.randn(count, 4), normalize="tokens",
        offsets=torch.arange(0, 2 * count + 1, 2) if bags else None,
    )  # fmt: skip
    (sums,) = [each for each in sums_left(call, triton.tokenize_backward) if each.dim() == 5]
    assert sums.shape[:2].numel() < count


def test_a_bias_of_each_bag_costs_no_sums_of_shared_keys():
    count = 60
    x = torch.randn(2 * count, 8)
    call = contract.ProjectBackward(
        x, x, torch.randn(4, 8), torch.randn(4, 8), torch.randn(count, 4), False, 1, [True] * 5,
        offsets=torch.arange(0, 2 * count + 1, 2),
    )  # fmt: skip
    sums = sums_left(call, triton.project_backward)
    assert len(sums) == 2
    assert all(each.shape[:2].numel() < count for each in sums)
