"""Building the kernels: errors name what is missing and what to do, and no stale library is left."""

import importlib.machinery
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="runs in a source tree only")

AGAIN = "run `pip install --no-build-isolation .` in the source tree again"


@pytest.fixture
def toolchain(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("CXX", raising=False)
    from native_build import toolchain

    monkeypatch.setattr(toolchain.sys, "platform", "linux")
    return toolchain


def refusal(toolchain):
    with pytest.raises(toolchain.CannotBuildError) as caught:
        toolchain.find()
    text = str(caught.value)
    assert "\n" not in text
    return text


def hide(monkeypatch, toolchain, hidden):
    real = toolchain.importlib.util.find_spec
    monkeypatch.setattr(
        toolchain.importlib.util, "find_spec", lambda name: None if name == hidden else real(name)
    )


def test_a_build_in_isolation_has_no_torch(toolchain, monkeypatch):
    hide(monkeypatch, toolchain, "torch")
    text = refusal(toolchain)
    assert text.startswith("torch was not found when the package was built (pip isolates builds by default)")
    assert text.endswith(AGAIN)


def test_an_old_torch_is_named(toolchain, monkeypatch, tmp_path):
    header = tmp_path / "include" / "torch" / "headeronly" / "version.h"
    header.parent.mkdir(parents=True)
    spec = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: spec)
    assert "has no version in version.h" in refusal(toolchain)
    header.write_text('#define TORCH_VERSION \\\n  "2.9.1"\n')
    assert (
        refusal(toolchain)
        == f"the kernels need torch 2.11 or later, but this is 2.9.1; upgrade it, then {AGAIN}"
    )


def test_no_compiler(toolchain, monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    text = refusal(toolchain)
    assert text.startswith("no C++ compiler was found (g++, c++ and clang++ were looked for); install one")
    assert text.endswith(AGAIN)


@pytest.mark.parametrize("compiler", ["/nowhere/c++ -v", "false"])
def test_a_compiler_that_does_not_work_is_named(toolchain, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    text = refusal(toolchain)
    assert f"the C++ compiler `{compiler}` does not" in text
    assert text.endswith(AGAIN)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_no_ninja(toolchain, monkeypatch):
    hide(monkeypatch, toolchain, "ninja")
    which = shutil.which
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None if name == "ninja" else which(name))
    assert refusal(toolchain) == f"ninja was not found; run `pip install ninja`, then {AGAIN}"


def test_other_systems_are_refused(toolchain, monkeypatch):
    monkeypatch.setattr(toolchain.sys, "platform", "win32")
    assert refusal(toolchain) == "the kernels are built on Linux only, and this is win32"


@pytest.fixture
def rules(toolchain):
    from native_build import rules

    return rules


def tools(toolchain, **changes):
    values = {
        "compiler": ["c++"],
        "compiler_name": "Clang 1",
        "machine": "x86_64",
        "baseline": ["-march=x86-64"],
        "ninja": "ninja",
        "torch_version": "2.11.0",
        "torch_include": Path("/a folder/$include"),
        "torch_lib": Path("/lib"),
    }
    return toolchain.Toolchain(**{**values, **changes})


def flags(text, target):
    """The flags of one target in a file for ninja."""
    lines = text.splitlines()
    (index,) = (index for index, line in enumerate(lines) if line.startswith(f"build out/{target}:"))
    return lines[index + 1]


def test_only_kernels_are_compiled_for_an_instruction_set(toolchain, rules):
    text = rules.ninja_file(tools(toolchain), None, Path("out"))
    assert "native" not in text
    assert "fast-math" not in text
    assert "openmp" not in text
    assert "-mavx512bf16" in flags(text, "isa_avx512_bf16.o")
    assert "-mavx512" not in flags(text, "isa_avx2.o")
    assert "-mf16c" in flags(text, "isa_avx2.o")
    for name in ("isa_baseline", "instruction_sets", "cpu_ops"):
        assert "-mavx" not in flags(text, f"{name}.o")
        assert "-march=x86-64" in flags(text, f"{name}.o")


def test_other_processors_get_the_baseline_kernels(toolchain, rules):
    text = rules.ninja_file(
        tools(toolchain, machine="aarch64", baseline=["-mcpu=generic"]), None, Path("out")
    )
    assert "isa_baseline.o" in text
    assert "avx" not in text


def test_the_library_of_another_machine_links_without_its_torch(toolchain, rules, monkeypatch):
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    texts = {
        machine: rules.ninja_file(tools(toolchain, machine=machine), None, Path("out"))
        for machine in ("x86_64", "aarch64", "other")
    }
    assert {machine: "build out/libtorch_cpu.so: link" in text for machine, text in texts.items()} == {
        "x86_64": False,
        "aarch64": True,
        "other": False,
    }
    assert "/lib/libtorch_cpu.so" not in texts["aarch64"]


def test_odd_folders_survive_ninja_and_the_shell(toolchain, rules):
    assert "'-isystem/a folder/$$include'" in rules.ninja_file(tools(toolchain), None, Path("out"))


@pytest.mark.parametrize("required", [False, True])
def test_a_failing_nvcc_leaves_the_cpu_kernels(toolchain, rules, tmp_path, monkeypatch, required):
    ninja = pytest.importorskip("ninja")
    pytest.importorskip("setuptools")
    from native_build import command, cuda

    def ninja_file(tools, cuda_tools, directory):
        lines = ["rule touch", "  command = touch $out", "rule fail", "  command = false"]
        lines += [f"build {directory / rules.LIBRARY}: touch"]
        return "\n".join([*lines, f"build {directory / rules.CUDA_LIBRARY}: fail", ""])

    found = tools(toolchain, ninja=str(Path(ninja.BIN_DIR) / "ninja"))
    nvcc = cuda.CudaToolchain("/a folder/nvcc", (13, 0), Path("/include"), Path("/cudart.a"), ["80", "90a"])
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command.toolchain, "find", lambda: found)
    monkeypatch.setattr(command.cuda, "find", lambda: nvcc)
    monkeypatch.setattr(command.rules, "ninja_file", ninja_file)
    target = tmp_path / "package"
    target.mkdir()
    if required:
        with pytest.raises(toolchain.CannotBuildError, match=r"did not compile with nvcc 13\.0 and Clang 1"):
            command.build(target, required=True)
        assert not list(target.iterdir())
        return
    record = command.build(target)
    assert "did not compile with nvcc 13.0" in record["cuda"]["reason"]
    assert {path.name for path in target.iterdir()} == {rules.LIBRARY}


@pytest.mark.parametrize(
    ("architectures", "ptx"), [(["100", "80"], "100"), (["80", "90a"], "80"), (["90a"], None)]
)
def test_which_ptx_is_included(architectures, ptx):
    from native_build import cuda

    tools = cuda.CudaToolchain("/a folder/nvcc", (13, 0), Path("/include"), Path("/cudart.a"), architectures)
    assert tools.ptx == ptx
    assert any("'/a folder/nvcc' -std=c++17" in line for line in cuda.ninja_lines(tools, Path("out")))


HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*/*.h"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
@pytest.mark.parametrize("header", HEADERS)
def test_headers_compile_on_their_own(header, toolchain, rules):
    tools = toolchain.find()
    text = rules.ninja_file(tools, None, Path("out"))
    # The last instruction set has most of the code.
    kernels = re.findall(r"build out/(isa_\w+\.o)", text)[-1]
    command = shlex.split(flags(text, "cpu_ops.o" if "/torch/" in header else kernels).partition("=")[2])
    # Without nvcc, the CUDA kernels are compiled for the emulator.
    done = subprocess.run(
        [*tools.compiler, *command, "-Itests/cuda/emulator", "-Werror", "-fsyntax-only", "-x", "c++", "-"],
        input=f'#include "{header}"\n#include "{header}"\n',
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def build_in_place(tree, **environment):
    shutil.copy2(ROOT / "setup.py", tree)
    for name in ("pyproject.toml", "README.md", "LICENSE", "native_build"):
        source = ROOT / name
        if not (tree / name).exists():
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, tree / name)
    package = tree / "vt_fast" / "_native"
    package.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT / "vt_fast" / "version.py", package.parent)
    for name in ("libvt_fast_cpu.so", "libvt_fast_cuda.so"):
        (package / name).write_text("stale")
    (package / "build.json").write_text("{}")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=tree, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    return done, sorted(path.name for path in package.iterdir())


def test_a_failed_build_leaves_the_reason_and_nothing_stale(tmp_path):
    pytest.importorskip("setuptools")
    done, left = build_in_place(tmp_path, CXX="/nowhere/c++", VT_FAST_BUILD="")
    assert done.returncode == 0, done.stderr
    assert left == ["build.json"]
    reason = json.loads((tmp_path / "vt_fast/_native/build.json").read_text())["reason"]
    assert f"warning: the package is built without its kernels: {reason}" in done.stderr
    assert reason.endswith(AGAIN)


def test_a_required_build_that_fails_is_an_error_and_leaves_nothing_stale(tmp_path):
    pytest.importorskip("setuptools")
    done, left = build_in_place(tmp_path, CXX="/nowhere/c++", VT_FAST_BUILD="require")
    assert done.returncode != 0
    assert "error: the kernels cannot be built: " in done.stderr
    assert "/nowhere/c++" in done.stderr
    assert left == []


def test_a_build_can_be_skipped(tmp_path):
    pytest.importorskip("setuptools")
    done, left = build_in_place(tmp_path, VT_FAST_BUILD="skip")
    assert done.returncode == 0, done.stderr
    assert left == ["build.json"]
    assert "VT_FAST_BUILD=skip" in (tmp_path / "vt_fast/_native/build.json").read_text()


def test_an_unknown_mode_is_an_error(tmp_path):
    pytest.importorskip("setuptools")
    done, _ = build_in_place(tmp_path, VT_FAST_BUILD="no")
    assert done.returncode != 0
    assert 'VT_FAST_BUILD must be unset, "require" or "skip", got "no"' in done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_source_that_does_not_compile_is_a_reason(tmp_path):
    for name in ("ninja", "setuptools"):
        pytest.importorskip(name)
    done, left = build_in_place(tmp_path, VT_FAST_BUILD="")  # this tree has no csrc
    assert done.returncode == 0, done.stderr
    assert left == ["build.json"]
    assert "the kernels did not compile with" in (tmp_path / "vt_fast/_native/build.json").read_text()
