"""Results do not depend on how a call is cut into programs, tiles and chunks."""

import importlib

import pytest
import torch
from comparing import assert_solved
from problems import OPS, make

from vt_fast.backends.triton import plan

OPTIONS = {
    "tokenize": ("mask", "log_weights", "position", "shared"),
    "project": ("residual", "wide", "heads", "bias", "shared"),
    "project_tokenize": ("heads", "bias"),
}


@pytest.fixture
def launches():
    """The modules that choose settings."""
    names = ("tokenize", "project", "project_tokenize")
    return [importlib.import_module(f"vt_fast.backends.triton.launch.{name}") for name in names]


def check(problem):
    assert_solved(problem)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nchw, sliced"])
@pytest.mark.parametrize(("tile", "chunk", "own"), [(16, 16, 1), (16, 16, 2), (32, 16, 9), (64, 128, 1)])
@pytest.mark.parametrize("op", OPS)
def test_settings_change_nothing(op, tile, chunk, own, layout, launches, monkeypatch):
    def setting(channels, sums, dtype, *, backward):
        return plan.Setting(tile, chunk, min(own, plan.ceil_div(channels, chunk)), 4, 2)

    for module in launches:
        monkeypatch.setattr(module, "setting", setting)
    check(make(op, OPTIONS[op], layout, channels=48, height=9, width=7))


@pytest.mark.parametrize("splits", [1, 2, 63])
@pytest.mark.parametrize("op", OPS)
def test_splits_change_nothing(op, splits, launches, monkeypatch):
    def cut(x, pixels, items, tile, part_bytes):
        each = plan.ceil_div(plan.ceil_div(pixels, splits), tile) * tile
        return plan.ceil_div(pixels, each), each

    for module in launches:
        if hasattr(module, "splits"):
            monkeypatch.setattr(module, "splits", cut)
    options = OPTIONS[op]
    problem = make(op, options, "nchw", height=37, width=29, batch=2)
    if "mask" in options:
        problem.operands["mask"][0, :600] = False  # whole parts without a valid pixel
    check(problem)


@pytest.mark.parametrize("op", OPS)
def test_offsets_of_64_bits_change_nothing(op, launches, monkeypatch):
    for module in launches:
        monkeypatch.setattr(module, "_INT32", 0)
    check(make(op, OPTIONS[op], "nchw"))


@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_each_time(op):
    problem = make(op, OPTIONS[op], "nchw", height=37, width=29)
    first = problem.solve(torch.float32)
    for name, value in problem.solve(torch.float32).items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sums", [16, 48, 256])
@pytest.mark.parametrize("channels", [16, 64, 192, 320, 768, 1536, 2048])
@pytest.mark.parametrize("backward", [False, True])
def test_a_setting_covers_all_channels(channels, sums, dtype, backward):
    chosen = plan.setting(channels, sums, dtype, backward=backward)
    blocks = chosen.blocks(channels)
    assert blocks * chosen.own * chosen.chunk >= channels
    assert (blocks - 1) * chosen.own * chosen.chunk < channels
    assert chosen.chunk & (chosen.chunk - 1) == 0
    assert chosen.chunk >= 16


def test_parts_stay_small(monkeypatch):
    monkeypatch.setattr(plan, "processors", lambda device: 132)
    x = torch.empty(1, 1 << 20, 64, dtype=torch.bfloat16, device="meta")
    count, each = plan.splits(x, 1 << 20, 1, 32, 4 * 16 * 64)
    assert count * each >= 1 << 20
    assert each % 32 == 0
    assert count * 4 * 16 * 64 <= 0.05 * x.numel() * 2
