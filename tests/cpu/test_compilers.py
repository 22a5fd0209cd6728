"""The kernels compile with clang, for x86-64 and for ARM.

`make compilers` installs the compiler, that of the package ziglang, and runs this.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "native_build").exists(), reason="runs in a source tree only"),
    pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("ninja") is None, reason="ninja is not installed"),
]

# machine -> the compiler's target, the flag for the baseline processor, and the instruction sets
TARGETS = {
    "x86_64": ("x86_64-linux-gnu", "-march=x86_64", ["baseline", "avx2", "avx512", "avx512_bf16"]),
    "aarch64": ("aarch64-linux-gnu", "-mcpu=generic", ["baseline"]),
}


@pytest.mark.parametrize("machine", TARGETS)
def test_kernels_compile_with_clang_without_a_warning(machine, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    import ninja

    from native_build import rules, toolchain

    target, baseline, instruction_sets = TARGETS[machine]
    tools = toolchain.Toolchain(
        compiler=[sys.executable, "-m", "ziglang", "c++", "-target", target, "-Werror"],
        compiler_name="clang",
        machine=machine,
        baseline=[baseline],
        ninja="",
        torch_version="",  # kernels include neither torch nor Python
        torch_include=Path("none"),
        torch_lib=Path("none"),
    )
    (tmp_path / "build.ninja").write_text(rules.ninja_file(tools, None, tmp_path))
    objects = [f"isa_{name}.o" for name in instruction_sets] + ["instruction_sets.o"]
    command = [Path(ninja.BIN_DIR) / "ninja", "-f", tmp_path / "build.ninja"]
    done = subprocess.run(
        [*command, *(tmp_path / name for name in objects)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((tmp_path / name).stat().st_size > 0 for name in objects)
