"""pytorch#121761: what a program was exported on is burnt in. Here: the backend's name, from compiled kernels."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import vt_fast
from vt_fast import backends
from vt_fast.nn import FilterTokenizer

if dict(backends.report())["cpu"] is not None:
    sys.exit("needs the compiled kernels")
folder = tempfile.mkdtemp()
torch.export.save(
    torch.export.export(FilterTokenizer(32, 4), (torch.randn(2, 32, 6, 6),)), f"{folder}/net.pt2"
)
shutil.copytree(
    Path(vt_fast.__file__).parent,
    f"{folder}/plain/vt_fast",
    ignore=shutil.ignore_patterns("*.so", "build.json"),
)
code = f"""
import torch, vt_fast.nn
x = torch.zeros(2, 32, 6, 6)
vt_fast.tokenize(x, torch.ones(4, 32))  # this installation works, in plain PyTorch
torch.export.load({folder + "/net.pt2"!r}).module()(x)
"""
done = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", code],
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": f"{folder}/plain"},
    cwd=folder,  # not the checkout, whose vt_fast would come first
)
sys.exit(done.stderr.strip().splitlines()[-1] if done.returncode else None)
