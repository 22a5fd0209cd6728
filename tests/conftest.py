"""Settings for every test."""

import pytest
import torch

# --doctest-modules would import them a second time, as modules that all have the same name.
collect_ignore_glob = ["*/conftest.py"]


@pytest.fixture(autouse=True)
def nan_in_uninitialised_memory():
    """A result that was not written is NaN, not what happened to lie there."""
    torch.use_deterministic_algorithms(True)  # which also fills new memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random numbers in each run and in any order of the tests."""
    torch.manual_seed(0)
