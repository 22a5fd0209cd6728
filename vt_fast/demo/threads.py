"""One thread for what is timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the body on one thread of PyTorch's.

    Steps of a millisecond gain little from a second thread, and where another program wants a core too, the
    threads wait for each other at every barrier: on a busy machine the same step then takes 100 times as long
    (measured), which says nothing about the code. It also makes results independent of the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
