"""Random calls of the CUDA kernels; `VT_FAST_FUZZ=10000 make emulated` runs more of them."""

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests._support.emulated_cases import DTYPES, LAYOUTS, check, pooling, spreading
from tests._support.fuzzing import options_of
from tests._support.judging import short
from tests._support.problems import LAYOUTS as ANY_LAYOUTS
from tests._support.problems import OPS

# The number of calls for each test; a call is one forward and one backward.
EXAMPLES = int(os.environ.get("VT_FAST_FUZZ", "0"))


@st.composite
def calls(draw, op, dtype):
    """Any problem of an op that these kernels take, and how it is run."""
    options = options_of(draw, op)
    normalize = "pixels" if op == "tokenize" else "tokens"
    if op != "project_tokenize" and draw(st.booleans()):
        others = ["tokens", None] if op == "tokenize" else [None] if dtype == torch.float16 else ["exp", None]
        normalize = draw(st.sampled_from(others))
    # Often: of sets of options, hypothesis draws mostly small ones.
    form = draw(st.sampled_from(["one", "blocks", "full"]))
    heads = 1 if form == "one" else 2
    options = tuple({*options} - {"num_heads"})
    tokens = draw(st.integers(1, 64 // heads))
    sizes = {
        "batch": draw(st.integers(1, 4)),
        "channels": 8 * heads * draw(st.integers(1, 20)),
        "height": draw(st.integers(1, 12)),
        "width": draw(st.integers(1, 20)),
        "tokens": tokens,
        "queries": draw(st.integers(1, 64)),
    }
    layout = draw(st.sampled_from([*LAYOUTS, *LAYOUTS, *ANY_LAYOUTS]))
    seed = draw(st.integers(1, 2**30))
    torch.manual_seed(seed)
    if op == "tokenize":
        if form == "full":
            sizes["tokens"] *= 2
        if heads == 2 or normalize != "pixels":
            options = tuple({*options} - {"extra_values"})
        if normalize != "pixels" and heads * tokens > 1:
            options += (draw(st.sampled_from(["token_bias", "shared bias", ""])),)
        found = pooling(form, normalize, options, layout, **sizes)
    else:
        values = draw(st.sampled_from(["summed", "blocks"]))
        if heads == 2:
            options += ("num_heads",)
        found = spreading(op, form, values, normalize, options, layout, **sizes)
    conditions = {
        "seed": seed,
        "copies": draw(st.integers(0, 2)),
        "clusters": draw(st.integers(1, 9)),
        "max_ranks": draw(st.sampled_from([1, 8, 16])),
        "shared_bytes": 1024 * draw(st.sampled_from([99, 163, 227])),
    }
    return found, conditions


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("op", OPS)
def test_random_calls(op, dtype, part):
    tried, refused = 0, 0

    @settings(
        deadline=None,
        max_examples=EXAMPLES or 60,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=calls(op, dtype))
    def run(case):
        nonlocal tried, refused
        found, conditions = case
        tried += 1
        try:
            check(found, dtype, any_numbers=True, **conditions)
        except RuntimeError as error:
            if "this kernel is not built" in str(error):
                pytest.skip("VT_FAST_EMULATED leaves out its kernels")
            if "does not fit on this GPU" not in str(error):
                raise
            refused += 1

    random.seed(part)
    if not EXAMPLES:
        run = seed(part)(run)
    run()
    assert refused < tried / 2
