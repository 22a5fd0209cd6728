"""Under `make sanitize`, the sanitizers notice an out-of-bounds write of a kernel."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    "VT_FAST_SANITIZE" not in os.environ, reason="the kernels are built without sanitizers"
)

CALL = """
import torch
from vt_fast.backends import cpu
assert cpu.unavailable() is None
x, queries, tokens = torch.randn(1, 64, 32), torch.randn(4, 32), torch.empty(1, 4, 32)
torch.ops.vt_fast_cpu.tokenize(x, queries, None, None, None, 1, tokens, torch.empty(1, {room}))
print("done")
"""


@pytest.mark.parametrize("room", [4, 3])
def test_a_result_without_room_is_noticed(room):
    done = subprocess.run([sys.executable, "-c", CALL.format(room=room)], capture_output=True, text=True)
    if room == 4:
        assert done.stdout == "done\n", done.stderr
    else:
        assert done.returncode != 0
        assert "heap-buffer-overflow" in done.stderr
        assert "tokenize.h" in done.stderr
