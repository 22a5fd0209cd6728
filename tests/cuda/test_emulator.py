"""The emulator itself: planted faults that it must notice, and PTX's fragments."""

import subprocess

from native_build import toolchain
from tests._support.cuda_emulator import ROOT


def test_emulator(tmp_path):
    program = tmp_path / "emulator_test"
    source = "tests/cuda/emulator/emulator_test.cpp"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Icsrc/cuda", "-Itests/cuda/emulator"]
    subprocess.run([*toolchain.find().compiler, *flags, source, "-o", str(program)], cwd=ROOT, check=True)
    found = subprocess.run([program], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
