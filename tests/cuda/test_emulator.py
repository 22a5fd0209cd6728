"""The emulator itself: planted faults that it must notice, and PTX's fragments. And numbers in TF32."""

import subprocess

import pytest

from native_build import toolchain
from tests._support.cuda_emulator import ROOT

FLAGS = ["-std=c++17", "-Og", "-Wall", "-Wextra", "-Icsrc/cuda", "-Itests/cuda/emulator"]


@pytest.mark.parametrize("source", ["emulator/emulator_test.cpp", "numbers_test.cpp"])
def test_program(source, tmp_path):
    program = tmp_path / "program"
    compiler = toolchain.find().compiler
    subprocess.run([*compiler, *FLAGS, f"tests/cuda/{source}", "-o", str(program)], cwd=ROOT, check=True)
    found = subprocess.run([program], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
