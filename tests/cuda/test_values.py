"""Results and gradients of the CUDA kernels against plain PyTorch in float64."""

import pytest
import torch

from tests._support import cuda_emulator, judging
from tests._support.emulated_cases import DTYPES, LAYOUTS, check, conditions, problem
from tests._support.judging import short
from tests._support.pairs import pairs
from tests._support.problems import CASES, OPS
from tests._support.problems import LAYOUTS as ANY_LAYOUTS

OPTIONS_OF_EVERY_KIND = [
    ("tokenize", ("mask", "pixel_bias", "extra_values", "shared")),
    ("tokenize", ("num_heads", "shared", "pixel_bias", "scale")),
    ("project", ("residual", "wide", "num_heads", "token_bias", "shared")),
    ("project_tokenize", ("mask", "pixel_bias", "extra_values", "residual", "wide", "shared")),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=short)
def test_every_option_layout_and_dtype(case, layout, dtype):
    index = CASES.index(case) * 9 + LAYOUTS.index(layout) * 3 + DTYPES.index(dtype)
    check(problem(*case, layout, channels=48, height=5, width=7), dtype, **conditions(index))


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", ANY_LAYOUTS)
@pytest.mark.parametrize("case", OPTIONS_OF_EVERY_KIND, ids=short)
def test_any_strides(case, layout, dtype):
    check(problem(*case, layout, channels=32, height=6, width=8), dtype, seed=7)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
def test_values_of_zero(layout, dtype):
    """No gradient reaches the weights; those of values count masked pixels all the same."""
    found = problem("project_tokenize", ("mask",), layout, channels=48, height=5, width=7)
    found.operands["values"].zero_()
    check(found, dtype, seed=7)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", OPTIONS_OF_EVERY_KIND, ids=short)
def test_shares_that_end_one_sample_and_begin_another(case, layout, dtype):
    found = problem(*case, layout, batch=3, channels=32, height=5, width=14)  # three or five tiles a sample
    check(found, dtype, seed=3, clusters=4, split=True)


# Of project_tokenize, the bias is of the keys.
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(
    ("op", "shared"),
    [
        ("tokenize", "queries"),
        *[("project", name) for name in ("keys", "values", "token_bias")],
        *[("project_tokenize", name) for name in ("keys", "values", "token_bias", "queries")],
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_operands_that_the_batch_shares(op, shared, alone, dtype):
    """One operand, or all but one. One block takes all samples in turn."""
    found = problem(
        op, () if op == "tokenize" else ("token_bias",), "bnc", batch=3, channels=32, height=3, width=7
    )
    for name in {"keys", "values", "token_bias", "queries"} & found.operands.keys():
        if (name == shared) == alone:
            found.operands[name] = found.operands[name][1]
    check(found, dtype, seed=2, clusters=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("op", ["tokenize", "project_tokenize"])
def test_samples_with_far_smaller_logits_than_the_one_before(op, dtype):
    found = problem(op, (), "bnc", batch=3, channels=32, height=3, width=7)
    found.operands["x"] *= torch.tensor([64.0, 1.0, 1.0])[:, None, None]
    check(found, dtype, seed=2, clusters=1)


# One pixel, a part of a tile, whole tiles, one pixel more; 49 and 196 are not multiples of 8.
SIZES = [(1, 1), (1, 13), (4, 4), (1, 17), (7, 7), (8, 8), (5, 13), (14, 14), (1, 211)]
ROWS = [1, 7, 8, 9, 16, 17, 31, 32, 33, 64]
CHANNELS = [8, 16, 40, 64, 96, 136, 200, 264]


@pytest.mark.parametrize(
    ("op", "dtype", "layout", "size", "rows", "channels"),
    pairs(OPS, DTYPES, LAYOUTS, SIZES, ROWS, CHANNELS),
    ids=short,
)
def test_sizes(op, dtype, layout, size, rows, channels, request):
    height, width = size
    options = ("token_bias",) if op == "project" else ("shared",) if rows % 2 else ()
    found = problem(
        op,
        options,
        layout,
        channels=channels,
        height=height,
        width=width,
        tokens=rows,
        queries=min(64, rows + 3),
    )
    check(found, dtype, **conditions(len(request.node.name)))


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(
    ("op", "channels", "rows"),
    [(op, c, r) for op in OPS for c, r in ((2048, 16), (2048, 64), (1024, 32), (768, 16))],
)
def test_many_channels_in_a_cluster_of_blocks(op, channels, rows, dtype):
    if (op, channels, rows, dtype) == ("project_tokenize", 2048, 64, torch.float32):
        pytest.skip("four banks of so many rows do not fit into 16 blocks; see csrc/cuda/README.md")
    found = problem(op, (), "nchw", batch=1, channels=channels, height=3, width=11, tokens=rows, queries=rows)
    for report in check(found, dtype, seed=5, copies=cuda_emulator.RANDOM).values():
        assert report.ranks * report.warps * report.mt * 16 >= channels


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("case", OPTIONS_OF_EVERY_KIND, ids=short)
@pytest.mark.parametrize("shared_bytes", [163 * 1024, 99 * 1024, 60 * 1024])
def test_gpus_with_less_shared_memory(case, shared_bytes, dtype):
    reports = check(
        problem(*case, "channels_last", channels=64, height=9, width=5), dtype, shared_bytes=shared_bytes
    )
    assert all(report.shared_bytes <= shared_bytes for report in reports.values())


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=short)
@pytest.mark.parametrize(
    "case", [case for case in CASES if any("bias" in option for option in case[1])], ids=short
)
def test_biases_may_be_float32(case, dtype):
    check(problem(*case, "nchw", channels=48), dtype, bias_dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("case", CASES, ids=short)
def test_the_same_bits_whatever_the_order_of_warps_and_copies(case, dtype):
    found = problem(*case, "nchw", channels=64, height=7, width=11, tokens=9)
    judging.round_operands(found, dtype)
    solutions = []
    for seed in range(3):
        with cuda_emulator.emulated(seed=seed + 1, copies=seed, clusters=4):
            solutions.append(found.solve(dtype))
    for other in solutions[1:]:
        for name, value in other.items():
            assert torch.equal(value.nan_to_num(), solutions[0][name].nan_to_num()), name


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("op", OPS)
def test_only_needed_gradients(op, dtype):
    options = (
        ("pixel_bias", "extra_values", "shared") if op == "tokenize" else ("token_bias", "residual", "wide")
    )
    found = problem(op, options, "nchw", channels=48)
    judging.round_operands(found, dtype)
    with cuda_emulator.emulated():
        everything = found.solve(dtype)
        for wanted in [name for name, value in found.operands.items() if value.is_floating_point()]:
            leaves = {name: value.detach() for name, value in found.leaves(dtype).items()}
            leaves[wanted].requires_grad_()
            results = found.call(leaves, plain=False)
            generator = torch.Generator().manual_seed(1)
            arriving = [
                torch.randint(-4, 5, each.shape, generator=generator, device="cpu") / 4 for each in results
            ]
            loss = sum(
                (each.double() * grad.to(each.device)).sum()
                for each, grad in zip(results, arriving, strict=True)
            )
            (grad,) = torch.autograd.grad(loss, leaves[wanted])
            assert torch.equal(grad, everything[f"d{wanted}"]), wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("case", CASES, ids=short)
def test_batches_of_zero(case, dtype):
    found = problem(*case, "nchw", channels=48)
    found.operands = {
        name: value[:0] if value.shape[0] == 2 and value.dim() > 1 else value
        for name, value in found.operands.items()
    }
    if (
        any(value.shape[0] != 0 and value.dim() == 3 for value in found.operands.values())
        and "shared" not in case[1]
    ):
        pytest.skip("rows of another batch")
    expected = found.solve(plain=True)
    with cuda_emulator.emulated():
        for name, value in found.solve(dtype).items():
            assert value.shape == expected[name].shape, name
            assert not value.any(), name
