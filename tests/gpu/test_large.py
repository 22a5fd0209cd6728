"""Maps of more than 2^31 elements, and small ones with offsets of more, against the reference."""

import pytest
import torch

import vt_fast
from tests._support import devices
from tests._support.large_maps import InParts, pixels_of
from tests._support.problems import OPS
from vt_fast.reference import ops as reference
from vt_fast.testing import assert_as_accurate

pytestmark = pytest.mark.usefixtures("own_allocation")
CHANNELS, TOKENS = (4, 3) if devices.PRETENDED else (256, 16)
# Many samples, or one that is large itself: in NCHW its last channel then begins after 2^31 elements.
SHAPES = {"many samples": (2700, 56, 56), "one sample": (1, 3000, 3000)}
if devices.PRETENDED:
    SHAPES = {"many samples": (9, 5, 4), "one sample": (1, 11, 9)}
LAYOUTS = ("bnc", "nchw", "channels_last")
PART = 40 if devices.PRETENDED else 1 << 17  # pixels


def empty_map(batch, height, width, layout):
    if layout == "bnc":
        return torch.empty(batch, height * width, CHANNELS, dtype=torch.bfloat16)
    if layout == "nchw":
        return torch.empty(batch, CHANNELS, height, width, dtype=torch.bfloat16)
    return torch.empty(batch, height, width, CHANNELS, dtype=torch.bfloat16).permute(0, 3, 1, 2)


def need(maps, shape):
    """Skip where so many maps of the shape, and some parts in float64, do not fit."""
    if devices.PRETENDED:
        return
    torch.cuda.empty_cache()
    batch, height, width = shape
    assert batch * height * width * CHANNELS > 2**31
    wanted = maps * 2 * batch * height * width * CHANNELS + 60 * 8 * PART * CHANNELS
    free, _ = torch.cuda.mem_get_info()
    if free < wanted:
        pytest.skip(f"needs {wanted / 2**30:.0f} GiB of a GPU's memory, {free / 2**30:.0f} GiB are free")


def operands_of(op):
    def rows(size):
        return torch.randn(TOKENS, CHANNELS, dtype=torch.bfloat16) * size

    names = {"tokenize": ("queries",), "project": ("keys", "values")}.get(op, ("keys", "values", "queries"))
    return {name: rows(1 if name == "values" else CHANNELS**-0.5).requires_grad_() for name in names}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("op", OPS)
def test_maps_of_more_than_2_to_the_31_elements(op, kind, layout):
    shape = SHAPES[kind]
    need(2 if op == "tokenize" else 4, shape)
    x, small = empty_map(*shape, layout).normal_().requires_grad_(), operands_of(op)
    skip = {} if op == "tokenize" else {"residual": x}
    results = getattr(vt_fast, op)(x, **small, **skip, backend="triton")
    results = results if isinstance(results, tuple) else (results,)
    names = {"tokenize": ["tokens"], "project": ["y"]}.get(op, ["y", "tokens"])
    found = dict(zip(names, results, strict=False))
    arriving = {name: torch.empty_like(value).normal_() for name, value in found.items()}
    dx, *grads = torch.autograd.grad(list(found.values()), [x, *small.values()], list(arriving.values()))
    found = {name: value.detach() for name, value in found.items()}
    del results

    pixels = shape[1] * shape[2]
    step = (max(1, PART // pixels), min(pixels, PART))
    exact = InParts(op, x.detach(), small, arriving, torch.float64)
    plain = InParts(op, x.detach(), small, arriving, torch.bfloat16)
    lse, terms = 2 * torch.tensor(float(pixels)).log().item(), shape[0] * pixels
    for truth, other in zip(exact.parts(*step), plain.parts(*step), strict=True):
        at = (truth.samples, truth.pixels)
        assert_as_accurate(pixels_of(dx)[at], truth.dx, other.dx, f"dx {at}", lse=lse)
        if truth.y is not None:
            assert_as_accurate(pixels_of(found["y"])[at], truth.y, other.y, f"y {at}")
    if "tokens" in found:
        tokens = torch.cat(exact.tokens), torch.cat(plain.tokens)
        assert_as_accurate(found["tokens"], *tokens, "tokens", lse=lse, terms=terms)
    for name, grad in zip(small, grads, strict=True):
        truth, other = exact.gradients[name], plain.gradients[name]
        assert_as_accurate(grad, truth, other, f"d{name}", lse=lse, terms=terms)


# Strides that lead further than 2^31 elements: between samples, pixels, rows or channels.
FAR = 2**31 + 16
STRIDED = {
    "samples": ((2, 40, 32), (FAR, 32, 1)),
    "pixels": ((2, 40, 32), (64, FAR // 39 // 16 * 16 + 16, 1)),
    "rows": ((2, 32, 5, 8), (4096, 1, FAR // 4 // 16 * 16 + 16, 64)),
    "channels": ((2, 32, 5, 8), (64, FAR // 31 // 16 * 16 + 16, 8, 1)),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("far", STRIDED)
def test_strides_of_more_than_2_to_the_31_elements(far, op):
    shape, stride = STRIDED[far]
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    assert extent > 2**31
    if not devices.PRETENDED:
        torch.cuda.empty_cache()
        if torch.cuda.mem_get_info()[0] < 3 * extent:
            pytest.skip(f"needs {3 * extent / 2**30:.0f} GiB of a GPU's memory")
    memory = torch.empty(extent, dtype=torch.bfloat16)
    x = torch.as_strided(memory, shape, stride).normal_()
    channels = shape[2] if len(shape) == 3 else shape[1]
    small = {
        name: torch.randn(4, channels, dtype=torch.bfloat16) * channels**-0.5
        for name in ({"tokenize": ("queries",), "project": ("keys", "values")}).get(
            op, ("keys", "values", "queries")
        )
    }

    def solve(function, x, dtype, **options):
        leaves = [x.to(dtype).detach().requires_grad_() if dtype != x.dtype else x.detach().requires_grad_()]
        leaves += [value.to(dtype).detach().requires_grad_() for value in small.values()]
        results = function(leaves[0], **dict(zip(small, leaves[1:], strict=True)), **options)
        results = results[:2] if isinstance(results, tuple) else (results,)
        generator = torch.Generator().manual_seed(1)
        arriving = [
            (torch.randint(-4, 5, result.shape, generator=generator, device="cpu") / 4).to(result)
            for result in results
        ]
        return [*(result.detach() for result in results), *torch.autograd.grad(results, leaves, arriving)]

    found = solve(getattr(vt_fast, op), x, torch.bfloat16, backend="triton")
    dense = x.contiguous()
    exact = solve(getattr(reference, op), dense, torch.float64)
    plain = solve(getattr(reference, op), dense, torch.bfloat16)
    for index, values in enumerate(zip(found, exact, plain, strict=True)):
        assert_as_accurate(*values, f"{index}", lse=10.0, terms=100)
