"""How long a run may take, and how long one compilation may."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# An alarm that arrives in code which may not be interrupted is lost; this many seconds later comes another.
_AGAIN = 5.0


class Deadline:
    """The time that a run has, in seconds from now on; None for as long as it takes."""

    def __init__(self, seconds: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = math.inf if seconds is None else now() + seconds

    @property
    def remaining(self) -> float:
        """Seconds, at least 0; infinite where there is no end."""
        return max(0.0, self._end - self._now())


class Compiling:
    """Which compilations are begun, and when they are given up: after ``most`` seconds or at the deadline."""

    def __init__(
        self,
        deadline: Deadline | None = None,
        most: float = math.inf,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deadline = Deadline() if deadline is None else deadline
        self._most = most
        self._now = now
        self._longest = 0.0

    def refusal(self) -> str | None:
        """Why none is begun any more: one has taken longer than the time that remains."""
        remaining = self._deadline.remaining
        if remaining > self._longest:
            return None
        return f"not compiled: {remaining:.0f} s are left, and one compilation took {self._longest:.0f} s"

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Around a compilation.

        Raises:
            TimeoutError: it took too long. It is interrupted where Python runs in the main thread; a compiler
                that waits elsewhere is found to be late when it is done.
        """
        seconds = min(self._most, self._deadline.remaining)
        start = self._now()
        try:
            with _interrupted_after(seconds):
                yield
        except _Late:
            raise TimeoutError(f"compiling was given up after {seconds:.0f} s") from None
        finally:
            self._longest = max(self._longest, self._now() - start)


class _Late(BaseException):
    """No Exception, lest a compiler catch it and go on."""


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds == math.inf or not possible:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
