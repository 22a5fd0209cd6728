"""Choosing a backend, and the reason why one is unavailable."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch

import vt_fast
from tests._support.devices import choosing_in_python
from vt_fast import backends
from vt_fast.backends.contract import Tokenize


def call(dtype=torch.float32):
    x = torch.randn(2, 5, 8, dtype=dtype)
    return Tokenize(x, x, None, None, None, 1, False)


def test_the_plain_backend_always_runs():
    assert ("torch", None) in backends.report()
    assert backends.choose("torch", call()) == "torch"
    assert list(dict(backends.report()))[-1] == "torch"


def put_first(monkeypatch, backend, reason):
    monkeypatch.setattr(backends, "_REASONS", {"first": reason, **backends._REASONS})
    monkeypatch.setattr(backends, "_BACKENDS", {"first": backend, **backends._BACKENDS})
    monkeypatch.setattr(backends, "NAMES", ("first", *backends.NAMES))
    monkeypatch.setattr(backends, "_GIVEN_UP", set())


@pytest.fixture
def broken(monkeypatch):
    """A backend that comes first and cannot run here."""
    put_first(monkeypatch, None, "no such device; buy one")
    with choosing_in_python():
        yield


class OnlyFloat32:
    """A backend that comes first and takes float32 alone, where it gives ones."""

    @staticmethod
    def refuses(call):
        return None if call.x.dtype == torch.float32 else f"float32 only, got {call.x.dtype}"

    @staticmethod
    def tokenize(call):
        return call.x.new_ones(2, 5, 8), call.x.new_ones(2, 5)


@pytest.fixture
def picky(monkeypatch):
    put_first(monkeypatch, OnlyFloat32, None)
    with choosing_in_python():
        yield


class DoesNotCompile(OnlyFloat32):
    """A backend that comes first, takes float32 and fails when it runs."""

    attempts = 0

    @classmethod
    def tokenize(cls, call):
        cls.attempts += 1
        raise backends.CannotRunError("the kernel does not compile: no C compiler")


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.setattr(DoesNotCompile, "attempts", 0)
    put_first(monkeypatch, DoesNotCompile, None)
    with choosing_in_python():
        yield


@pytest.mark.usefixtures("broken")
def test_an_explicit_backend_never_falls_back():
    x = torch.randn(2, 5, 8)
    message = '`backend="first"` is not available here: no such device; buy one'
    with pytest.raises(RuntimeError, match=message):
        vt_fast.tokenize(x, x, backend="first")


@pytest.mark.usefixtures("broken")
def test_none_takes_the_first_that_can_run():
    x = torch.randn(2, 5, 8)
    chosen = backends.choose(None, call())
    assert chosen == next(name for name, reason in backends.report() if reason is None)
    assert torch.equal(vt_fast.tokenize(x, x), vt_fast.tokenize(x, x, backend=chosen))
    assert backends.report()[0] == ("first", "no such device; buy one")


@pytest.mark.usefixtures("picky")
def test_none_takes_the_first_that_can_do_the_call():
    x = torch.randn(2, 5, 8)
    assert (vt_fast.tokenize(x, x) == 1).all()
    assert not (vt_fast.tokenize(x.double(), x.double()) == 1).all()


@pytest.mark.usefixtures("picky")
def test_an_explicit_backend_says_why_it_cannot_do_the_call():
    x = torch.randn(2, 5, 8).double()
    message = '`backend="first"` cannot do this call: float32 only, got torch.float64'
    with pytest.raises(ValueError, match=message):
        vt_fast.tokenize(x, x, backend="first")


@pytest.mark.usefixtures("failing")
def test_none_goes_on_to_the_next_backend_where_one_cannot_run_and_says_so_once():
    x = torch.randn(2, 5, 8)
    expected = vt_fast.tokenize(x, x, backend="torch")
    with pytest.warns(
        RuntimeWarning, match='"first" cannot run Tokenize in torch.float32.*no C compiler'
    ) as caught:
        found = vt_fast.tokenize(x, x)
    assert len(caught) == 1
    torch.testing.assert_close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vt_fast.tokenize(x, x)
    assert DoesNotCompile.attempts == 1


@pytest.mark.usefixtures("failing")
def test_a_backend_is_given_up_for_calls_of_one_kind_only():
    x, other = torch.randn(2, 5, 8), torch.randn(2, 5, 16)
    for attempts, rows in ((1, x), (2, other), (2, x[:1])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vt_fast.tokenize(rows, rows[0])
        assert DoesNotCompile.attempts == attempts


@pytest.mark.usefixtures("failing")
def test_a_backend_is_given_up_for_calls_with_the_same_switches_only():
    x, values = torch.randn(2, 5, 8), torch.randn(2, 5, 4)
    rows, offsets = x[0], torch.tensor([0, 2, 5])
    calls = [
        (1, lambda: vt_fast.tokenize(x, rows, normalize="tokens")),
        (2, lambda: vt_fast.tokenize(x, rows)),
        (3, lambda: vt_fast.tokenize(x, rows, values=values)),
        (3, lambda: vt_fast.tokenize(x[:, :3], rows, values=values[:, :3])),
        (4, lambda: vt_fast.tokenize(x[0], rows, offsets=offsets)),
        (5, lambda: vt_fast.tokenize(x, rows[:4], num_heads=2, normalize="tokens")),
        (6, lambda: vt_fast.tokenize(x, scores=x.mT[:, :4])),
        (7, lambda: vt_fast.tokenize(x, scores=x.mT)),
        (7, lambda: vt_fast.tokenize(x[:1], rows, normalize="tokens")),
    ]
    for attempts, call in calls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
        assert DoesNotCompile.attempts == attempts


@pytest.mark.usefixtures("failing")
def test_a_named_backend_that_cannot_run_raises():
    x = torch.randn(2, 5, 8)
    for _ in range(2):
        with pytest.raises(backends.CannotRunError, match="does not compile: no C compiler"):
            vt_fast.tokenize(x, x, backend="first")
    assert DoesNotCompile.attempts == 2


class Kernel:
    """A Triton kernel that fails when it is launched."""

    fn = SimpleNamespace(__name__="tokenize_forward")

    def __init__(self, error):
        self.error = error

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            raise self.error

        return launch


def test_what_stops_a_triton_kernel_is_named():
    pytest.importorskip("triton")
    from vt_fast.backends.triton import schedule

    for error in (OSError("no C compiler"), RuntimeError("no binary for this device")):
        with pytest.raises(
            backends.CannotRunError, match=f"tokenize_forward cannot be .*: {error}"
        ) as caught:
            schedule.launch(Kernel(error), (1,))
        assert caught.value.__cause__ is error
    # These have handlers of their own.
    for error in (
        schedule.OutOfResources(2, 1, "shared memory"),
        schedule.MiscompiledError("a wrong address"),
        torch.OutOfMemoryError("no memory"),
        torch.AcceleratorError("an illegal memory access"),
    ):
        with pytest.raises(type(error)):
            schedule.launch(Kernel(error), (1,))


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, OSError])
def test_an_error_of_a_backend_in_python_arrives_as_it_is(error, monkeypatch):
    def fail(call):
        raise error("a fault of the backend")

    x = torch.randn(2, 5, 8, requires_grad=True)
    tokens = vt_fast.tokenize(x, x.detach(), backend="torch")
    for function in ("tokenize", "tokenize_backward"):
        monkeypatch.setattr(backends.load("torch"), function, fail)
    with pytest.raises(error, match="a fault of the backend"):
        vt_fast.tokenize(x, x, backend="torch")
    with pytest.raises(error, match="a fault of the backend"):
        tokens.sum().backward()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            "a tensor cannot be allocated: CUDA out of memory. Tried to allocate 16 TiB",
            torch.OutOfMemoryError,
        ),
        ("a tensor cannot be allocated: CUDA error: an illegal memory access", RuntimeError),
    ],
)
def test_a_gpu_without_memory_is_told_from_other_faults(message, kind, monkeypatch):
    """Errors of ops in C++ are RuntimeErrors, and people catch torch.OutOfMemoryError."""

    def fail(call):
        raise RuntimeError(message)

    x = torch.randn(2, 5, 8, requires_grad=True)
    tokens = vt_fast.tokenize(x, x.detach(), backend="torch")
    for function in ("tokenize", "tokenize_backward"):
        monkeypatch.setattr(backends.load("torch"), function, fail)
    with pytest.raises(RuntimeError, match=re.escape(message)) as forward:
        vt_fast.tokenize(x, x, backend="torch")
    with pytest.raises(RuntimeError, match=re.escape(message)) as backward:
        tokens.sum().backward()
    assert type(forward.value) is type(backward.value) is kind


@pytest.mark.skipif("cpu" not in backends.NATIVE, reason="needs the compiled library")
def test_an_error_of_a_backend_in_python_passes_through_the_chooser_in_cpp(monkeypatch):
    """As saved programs call it. Torch keeps the type of no error there."""

    def fail(call):
        raise OSError("a fault of the backend")

    monkeypatch.setattr(backends.load("torch"), "tokenize", fail)
    x = torch.randn(2, 5, 8)
    # Before 2.13, torch prints the reason and keeps it to itself.
    known = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
    reason = "OSError: a fault of the backend" if known else "see the error above"
    with pytest.raises(RuntimeError, match=f'`backend="torch"` failed: {reason}'):
        torch.ops.vt_fast.tokenize(x, x, None, None, None, 1, False, backend="torch")
