import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    pytest.importorskip("torch")
    from demo.timing import one_thread

    with one_thread():
        yield
