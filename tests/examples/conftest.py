"""Run the example scripts as a user would."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests._support import torchvision_stub

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def missing():
    """Why examples that need timm and torchvision cannot run here, or None."""
    for name in ("timm", "sklearn", "tqdm", "PIL"):
        if importlib.util.find_spec(name) is None:
            return f"the examples need {name}"
    return None if torchvision_stub.importable() else "the examples need torchvision, which does not load"


@pytest.fixture(scope="session")
def libraries():
    """Skip without timm and torchvision."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def start(libraries):
    """Run a script in separate processes with one thread each, and return its output."""

    def run(script, *arguments, processes=1, ends=0, **environment):
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [
            str(ROOT / "tests" / "_support" / "run_example.py"),
            str(EXAMPLES / script),
            *map(str, arguments),
        ]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MPLBACKEND": "Agg",
                "PYTHONPATH": os.pathsep.join(paths),
                **environment,
            },
        )
        assert done.returncode == ends, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
