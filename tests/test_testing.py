"""The helpers that other tests rely on: the accuracy check and the peak memory of a call."""

import pytest
import torch

from vt_fast.testing import assert_as_accurate, peak_bytes

EXACT = torch.linspace(-2, 2, 101, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_accepts_the_rounded_truth(dtype):
    assert_as_accurate(EXACT.to(dtype), EXACT, EXACT.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rejects_an_error_of_two_units(dtype):
    wrong = EXACT.to(dtype, copy=True)
    wrong[100] += 2 * torch.finfo(dtype).eps * 2
    with pytest.raises(AssertionError, match=r"gradient: largest error .* allowed"):
        assert_as_accurate(wrong, EXACT, EXACT.to(dtype), "gradient")


def test_allows_twice_the_error_of_plain_pytorch():
    plain = EXACT + 0.01
    assert_as_accurate(EXACT + 0.0199, EXACT, plain)
    with pytest.raises(AssertionError, match="allowed"):
        assert_as_accurate(EXACT + 0.0201, EXACT, plain)


def test_allows_for_the_rounding_of_lse():
    off = EXACT.to(torch.float32, copy=True)
    off[100] += 4 * torch.finfo(torch.float32).eps
    with pytest.raises(AssertionError, match="allowed"):
        assert_as_accurate(off, EXACT, EXACT.float())
    assert_as_accurate(off, EXACT, EXACT.float(), lse=8.0)


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_special_values_must_be_where_the_truth_has_them(special):
    exact = EXACT.clone()
    exact[3] = special
    assert_as_accurate(exact.clone(), exact, exact.clone())
    with pytest.raises(AssertionError, match=r"NaN|infinity"):
        assert_as_accurate(EXACT, exact, exact.clone())
    with pytest.raises(AssertionError, match=r"NaN|infinity"):
        assert_as_accurate(exact.clone(), EXACT, EXACT)


def test_the_sign_of_infinity_counts():
    exact = torch.tensor([1.0, torch.inf], dtype=torch.float64)
    with pytest.raises(AssertionError, match="sign"):
        assert_as_accurate(-exact * torch.tensor([-1, 1]), exact, exact)


def test_nan_in_plain_pytorch_does_not_excuse_an_error():
    plain = EXACT.clone()
    plain[5] = torch.nan
    with pytest.raises(AssertionError, match="allowed"):
        assert_as_accurate(EXACT + 1, EXACT, plain)


def test_shapes_must_agree():
    with pytest.raises(AssertionError, match="shape"):
        assert_as_accurate(EXACT[:1], EXACT, EXACT)


def test_allows_for_another_order_of_a_sum():
    off = EXACT.to(torch.float32, copy=True)
    off[100] += 8 * torch.finfo(torch.float32).eps
    with pytest.raises(AssertionError, match="allowed"):
        assert_as_accurate(off, EXACT, EXACT.float(), terms=4)
    assert_as_accurate(off, EXACT, EXACT.float(), terms=100)


def test_allows_for_truncation():
    exact = torch.tensor([1 + 0.9 * torch.finfo(torch.bfloat16).eps], dtype=torch.float64)
    cut = torch.ones(1, dtype=torch.bfloat16)
    with pytest.raises(AssertionError, match="allowed"):
        assert_as_accurate(cut, exact, exact)
    assert_as_accurate(cut, exact, exact, truncates=True)


def test_peak_counts_temporaries():
    x = torch.ones(1000)
    assert peak_bytes(lambda: x.clone()) == 4000
    assert peak_bytes(lambda: x.clone().clone().clone()) == 8000
    assert peak_bytes(lambda: None) == 0


def test_peak_does_not_count_memory_held_before():
    held = [torch.ones(1000)]
    assert peak_bytes(held.clear) == 0


def test_peak_prints_nothing(capfd):
    peak_bytes(lambda: torch.ones(3))
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_on_a_gpu():
    x = torch.ones(1 << 20, device="cuda")
    assert peak_bytes(lambda: x.clone(), "cuda") == x.numel() * 4
