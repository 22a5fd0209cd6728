"""The examples of maps that do not fit into one place find what one process finds with all pixels."""

import importlib
import re

import numpy as np
import pytest
import torch

from vt_fast import functional


def losses(output):
    return [float(found) for found in re.findall(r"loss ([-\d.e]+)", output)]


def test_points_in_processes(start):
    flags = ["--double", "--points", 3001, "--steps", 3, "--channels", 16, "--slices", 8]
    one = losses(start("sharded_points.py", *flags))
    assert len(set(one)) == 3
    for processes in (2, 3):
        assert losses(start("sharded_points.py", *flags, processes=processes)) == one


def test_slides_in_processes(start, tmp_path):
    pytest.importorskip("h5py")
    flags = [tmp_path, "--double", "--epochs", 6, "--bags", 4]
    one = losses(start("ragged_slides.py", *flags, "--make", 12))
    assert one[-1] < one[0]
    assert losses(start("ragged_slides.py", *flags, processes=2)) == one
    refused = start("ragged_slides.py", tmp_path, "--bags", 3, processes=2, ends=1)
    assert "--bags must be a multiple of 2 processes, got 3" in refused


def test_a_streamed_slide(tmp_path, capsys):
    stream_slide = importlib.import_module("stream_slide")
    path = tmp_path / "features.bin"
    flags = [str(path), "--channels", "64", "--pixels", "3000", "--queries", "4"]
    run = stream_slide.main([*flags, "--make", "0.001", "--steps", "3", "--measure"])
    assert run.seconds.keys() == {"reading", "computing", "both"}
    assert "both / the larger one" in capsys.readouterr().out
    x = torch.from_numpy(np.fromfile(path, np.float16).reshape(1, -1, 64)).float()
    assert x.shape[1] == 7812
    torch.manual_seed(0)
    queries, head = torch.nn.Parameter(torch.randn(4, 64)), torch.nn.Linear(64, 1)
    optimizer = torch.optim.Adam([queries, *head.parameters()], 1e-3)
    for loss in run.losses:
        tokens = functional.tokenize(x, queries, scale=1 / 8)
        expected = torch.nn.functional.softplus(head(tokens).mean())
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
