"""What was compiled ahead is what is launched: nothing is compiled again."""

import pytest
import torch

from vt_fast import tune
from vt_fast.backends.triton import ahead

pytestmark = pytest.mark.usefixtures("cuda")


def kernels(cache):
    """Triton's entries for kernels. A launch also compiles code of the host, for each signature."""
    return sorted(path.parent.name for path in cache.glob("*/*.ttir"))


@pytest.mark.parametrize("op", ["tokenize_backward", "project_tokenize"])
def test_tuning_compiles_nothing_again(op, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # Of no other test's size, so that nothing is in this process's memory.
    case = tune.Case(op, "fp16", "channels", (3, 112, 176, 16))
    with ahead.Ahead(ahead.current_target(), ahead.processes()) as compilers:
        ahead.finished(compilers.compile(tune.requests(case, torch.device("cuda", 0))))
    compiled = kernels(tmp_path)
    entry = tune.tune(case, tune.cuda_clock)
    assert sum("seconds" in each for each in entry["tried"]) >= 3
    assert compiled
    assert kernels(tmp_path) == compiled
