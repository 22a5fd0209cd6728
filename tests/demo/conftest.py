"""Tests of the demo run on one thread."""

import pytest


@pytest.fixture(autouse=True)
def single_threaded(one_thread):
    """These sizes gain nothing from more threads."""
