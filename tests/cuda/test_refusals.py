"""Python and C++ refuse the same calls, for the same reasons."""

import random

import pytest
import torch

from tests._support import cuda_emulator
from tests._support.cuda_emulator import OPS
from vt_fast.backends import contract, cuda

pytestmark = pytest.mark.skipif(cuda_emulator.REAL, reason="plans calls without running them")

RECORDS = {
    "tokenize": contract.Tokenize,
    "tokenize_backward": contract.TokenizeBackward,
    "project": contract.Project,
    "project_backward": contract.ProjectBackward,
    "project_tokenize": contract.ProjectTokenize,
    "project_tokenize_backward": contract.ProjectTokenizeBackward,
}


def record(op, x, *, heads=1, out_channels, tokens, queries, extra, **_):
    """A call on uninitialised operands."""
    shared = {"dtype": x.dtype}
    batch, pixels, channels = x.shape
    if op.startswith("tokenize"):
        tokens, queries, out_channels = 0, tokens, channels
    of_queries = heads if op.startswith("tokenize") else 1
    sums = torch.promote_types(x.dtype, torch.float32)
    operands = {
        "x": x,
        "keys": torch.empty(heads * tokens, channels, **shared),
        "values": torch.empty(tokens, out_channels, **shared),
        "queries": torch.empty(of_queries * queries, out_channels // of_queries, **shared),
        "extra_values": torch.empty(pixels, extra, **shared) if extra else None,
        "num_heads": heads,
        "residual_is_input": False,
        "keep_exact": True,
        "return_map": True,
        "grad_map": torch.empty(1, 1, 1, **shared).expand(batch, pixels, out_channels),
        "grad_tokens": torch.empty(1, 1, 1, **shared).expand(batch, queries, out_channels + extra),
        "tokens": torch.empty(1, 1, 1, dtype=sums).expand(batch, queries, out_channels + extra),
        "lse": torch.empty(1, 1, dtype=sums).expand(batch, of_queries * queries),
        "needs": [True] * {"tokenize": 7, "project": 5, "project_tokenize": 8}[op.removesuffix("_backward")],
    }
    operands["stats"] = operands["lse"]
    kind = RECORDS[op]
    if op.startswith("tokenize"):
        operands["values"] = None
    operands |= {name: value for name, value in kind._field_defaults.items() if name not in operands}
    return kind(*(operands.get(field) for field in kind._fields))


def refused(op, call):
    """Why C++ refuses a call, or None."""
    with (
        cuda_emulator.emulated(dry=True),
        pytest.raises(Exception, match=r"cannot do|planned alone|not built") as error,
    ):
        getattr(torch.ops.vt_fast_emulated, op)(*call)
    reason = str(error.value).partition("cannot do this call: ")[2].partition("\n")[0]
    return None if "does not fit on this GPU" in reason else reason or None


def check(op, call):
    """Compare both, and return the reason."""
    on_meta = type(call)(*(value.to("meta") if isinstance(value, torch.Tensor) else value for value in call))
    reason = cuda.refuses(on_meta)
    assert refused(op, call) == (reason and reason.replace("torch.", ""))
    return reason


@pytest.mark.parametrize("op", OPS)
def test_random_calls(op):
    choose = random.Random(op)
    reasons = set()
    for _ in range(300):
        heads = choose.choice([1, 2, 3]) if op != "project" else 1
        channels = [
            choose.choice([4, 6, 8, 16, 24, 2048, 2052, 2056]) * choose.choice([1, heads]) for _ in range(2)
        ]
        if any(each % heads for each in channels):
            continue
        dtype = choose.choice([torch.float32, torch.bfloat16, torch.float16, torch.float64])
        call = record(
            op,
            torch.empty(1, 1, 1, dtype=dtype).expand(2, 3, channels[0]),
            heads=heads,
            out_channels=channels[1],
            tokens=choose.choice([1, 21, 22, 32, 33, 64, 65]),
            queries=choose.choice([1, 64, 65]),
            extra=choose.choice([0, 64, 65])
            if op.startswith("project_tokenize") or (heads == 1 and "tokenize" in op)
            else 0,
        )
        reasons.add(check(op, call))
    assert None in reasons
    assert len(reasons) >= 5


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("batch", "pixels"), [(1, 2**31 - 64), (2**30, 1)])
def test_too_many_pixels_or_samples(op, batch, pixels):
    x = torch.empty(1, 1, 1, dtype=torch.bfloat16).expand(batch, pixels, 8)
    reason = check(op, record(op, x, out_channels=8, tokens=1, queries=1, extra=0))
    assert "fewer than 2^31 - 64 pixels" in reason


@pytest.mark.parametrize("op", OPS)
def test_operands_on_another_device(op):
    """Beside tensors without memory, those on a CPU reach the op as they do beside a GPU's."""
    x = torch.empty(2, 3, 8)
    call = record(op, x, out_channels=8, tokens=2, queries=2, extra=0)
    options = {
        "mask": torch.ones(2, 3, dtype=torch.bool),
        "pixel_bias": torch.empty(2, 3),
        "token_bias": torch.empty(2),
        "residual": x,
        "grad_lse": torch.empty(2, 2),
        "grad_stats": torch.empty(2, 2),
    }
    known = [name for name in call._fields if name != "token_bias" or "project" in op]
    call = call._replace(**{name: value for name, value in options.items() if name in known})
    operands = {name for name, value in call._asdict().items() if isinstance(value, torch.Tensor)}
    assert operands >= {"x", "mask" if "tokenize" in op else "token_bias"}
    for name in operands:
        moved = call._replace(**{name: getattr(call, name).to("meta")})
        expected = f"`{name}` must be on " + ("a CUDA device" if name == "x" else "the device of `x`")
        with cuda_emulator.emulated(dry=True), pytest.raises(RuntimeError, match=expected):
            getattr(torch.ops.vt_fast_emulated, op)(*moved)
