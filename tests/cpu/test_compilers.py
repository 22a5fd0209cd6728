"""The library compiles with clang and an old C library, for x86-64 and for ARM.

`make compilers` installs the compiler, that of the package ziglang, and runs this.
"""

import dataclasses
import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests._support.symbols import TORCH_SYMBOLS, needed_of_torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "native_build").exists(), reason="runs in a source tree only"),
    pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("ninja") is None, reason="ninja is not installed"),
]

# machine -> the flag for the baseline processor, and the instruction sets
TARGETS = {
    "x86_64": ("-march=x86_64", ["baseline", "avx2", "avx512", "avx512_bf16"]),
    "aarch64": ("-mcpu=generic", ["baseline"]),
}


@pytest.mark.parametrize("machine", TARGETS)
def test_the_library_compiles_with_clang_without_a_warning(machine, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    import ninja

    from native_build import rules, toolchain

    baseline, instruction_sets = TARGETS[machine]
    here = toolchain.find()
    target = f"{machine}-linux-gnu.2.28"
    tools = dataclasses.replace(
        here,
        compiler=[sys.executable, "-m", "ziglang", "c++", "-target", target, "-Werror"],
        compiler_name="clang",
        machine=machine,
        baseline=[baseline],
    )
    assert tools.is_cross == (machine != platform.machine())
    (tmp_path / "build.ninja").write_text(rules.ninja_file(tools, None, tmp_path))
    command = [Path(ninja.BIN_DIR) / "ninja", "-f", tmp_path / "build.ninja", tmp_path / rules.LIBRARY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.glob("isa_*.o")} == {f"isa_{name}.o" for name in instruction_sets}
    library = tmp_path / rules.LIBRARY
    code = {"x86_64": 62, "aarch64": 183}[machine]
    assert int.from_bytes(library.read_bytes()[18:20], "little") == code  # e_machine of its ELF header
    assert needed_of_torch(library) <= TORCH_SYMBOLS
