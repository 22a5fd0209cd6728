"""The compiled library: its symbols, the choice of an instruction set, and the reasons for its absence."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import vt_fast
from tests._support.symbols import TORCH_SYMBOLS, needed_of_torch, symbols
from vt_fast.backends.cpu import library
from vt_fast.reference import ops as reference

ROOT = Path(__file__).resolve().parents[1]
OBJECTS = ROOT / "build" / "native"

not_built = library.load(library.FOLDER)
SUPPORTED = [] if not_built else library.instruction_sets(supported=True)

built = pytest.mark.skipif(not_built is not None, reason=str(not_built))
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")


def run(code, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )


def large_pages_wanted(tensor):
    """Whether the kernel was asked for large pages in the middle of a tensor's memory."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(each, 16) for each in match.groups())
            inside = begin <= middle < end
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("the tensor is in no mapping")


@built
@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs a Linux with large pages"
)
def test_large_results_ask_for_large_pages():
    x, rows = torch.randn(1, 1 << 17, 64), torch.randn(1, 2, 64)
    mapped = vt_fast.project(x, rows, rows, backend="cpu")
    assert large_pages_wanted(mapped)
    torch.testing.assert_close(mapped, vt_fast.project(x, rows, rows, backend="torch"))


def test_it_is_built_where_that_is_required():
    # `make test` requires it, so that no test below is skipped there.
    if os.environ.get("VT_FAST_BUILD") == "require":
        assert not_built is None


@built
@needs_nm
def test_the_library_needs_only_stable_symbols_of_torch():
    assert needed_of_torch(library.FOLDER / library._LIBRARY) <= TORCH_SYMBOLS


@built
@needs_nm
def test_the_library_exports_only_what_python_asks():
    exported = symbols(library.FOLDER / library._LIBRARY, "-D", "--defined-only", "-C")
    assert set(exported) == {
        "vt_fast_cpu_instruction_sets",
        "vt_fast_cpu_chosen",
        "vt_fast_cpu_choose",
    }


@built
@needs_nm
def test_the_library_knows_no_python_and_no_place_of_its_build():
    path = library.FOLDER / library._LIBRARY
    assert not [name for name in symbols(path, "-D", "--undefined-only") if name.startswith(("Py", "_Py"))]
    for folder in (ROOT, Path.home(), Path(torch.__file__).parent, Path(sys.prefix)):
        assert str(folder).encode() not in path.read_bytes()


@needs_nm
@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_instruction_sets_share_no_symbol(name):
    """Of equal weak functions the linker keeps one, perhaps one that this processor cannot run."""
    path = OBJECTS / f"isa_{name}.o"
    if not path.exists():
        pytest.skip("not built in this source tree, or not for this processor")
    seen = set(symbols(path, "--defined-only", "--extern-only", "-C"))
    assert seen - {"DW.ref.__gxx_personality_v0"} == {f"vt::{name}::kernels"}


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
def test_code_outside_the_kernels_runs_on_any_processor():
    paths = [OBJECTS / f"{name}.o" for name in ("isa_baseline", "instruction_sets", "cpu_ops", "cpu_raw_ops")]
    if not all(path.exists() for path in paths):
        pytest.skip("not built in this source tree")
    code = subprocess.run(["objdump", "-d", *map(str, paths)], capture_output=True, text=True, check=True)
    assert not re.search(r"%[yz]mm|\bv[a-z0-9]+ +.*%xmm", code.stdout)


@built
def test_facts():
    facts = library.facts()
    compiled = library.instruction_sets()
    assert compiled[0] == SUPPORTED[0] == "baseline"
    assert set(SUPPORTED) <= set(compiled)
    assert facts["compiled for"] == ", ".join(compiled)
    assert re.search(r"(GCC|Clang) \d+", facts["compiler"])
    assert re.fullmatch(r"torch 2\.\d+\.\d+, for 2\.11 and later", facts["built with"])


@built
def test_any_supported_instruction_set_can_be_chosen_and_computes_the_same():
    x, queries = torch.randn(2, 12, 5, 7, dtype=torch.float64), torch.randn(3, 12, dtype=torch.float64)
    expected = reference.tokenize(x, queries)
    first = library.chosen()
    try:
        for name in SUPPORTED:
            assert library.choose(name)
            assert library.chosen() == name
            torch.testing.assert_close(
                vt_fast.tokenize(x, queries, backend="cpu"), expected, rtol=1e-10, atol=1e-10
            )
        assert not library.choose("pdp11")
        assert library.chosen() == SUPPORTED[-1]
    finally:
        assert library.choose(None)
    assert library.chosen() == first


@built
def test_calls_from_many_threads_are_independent():
    problems = [(torch.randn(2, 500, 16), torch.randn(3, 16)) for _ in range(8)]

    def solve(problem):
        return [vt_fast.tokenize(*problem, backend="cpu") for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for problem, results in zip(problems, pool.map(solve, problems), strict=True):
            expected = vt_fast.tokenize(*problem, backend="cpu")
            assert all(torch.equal(result, expected) for result in results)


CHOSEN = """
from vt_fast import backends
from vt_fast.backends.cpu import library
assert dict(backends.report())["cpu"] is None
print(library.chosen())
"""


@built
def test_the_environment_names_the_instruction_set():
    for name in SUPPORTED:
        done = run(CHOSEN, VT_FAST_CPU_ISA=name)
        assert done.stdout.strip() == name, done.stderr


@built
def test_without_a_name_the_best_runs():
    done = run(CHOSEN, VT_FAST_CPU_ISA="")
    assert done.stdout.strip() == SUPPORTED[-1], done.stderr


USE_WRONG_NAME = """
import torch, vt_fast
from vt_fast.info import main
x = torch.randn(1, 4, 3)
assert main() == 0
assert torch.equal(vt_fast.tokenize(x, x), vt_fast.tokenize(x, x, backend="torch"))
for use in (lambda: vt_fast.tokenize(x, x, backend="cpu"),
            lambda: torch.ops.vt_fast_cpu.tokenize(x, x, None, None, None, 1, x.clone(), x[..., 0].clone())):
    try:
        use()
    except RuntimeError as error:
        print("RAISED", error)
"""


@built
def test_an_unknown_instruction_set_in_the_environment_is_an_error():
    done = run(USE_WRONG_NAME, VT_FAST_CPU_ISA="pdp11")
    assert done.returncode == 0, done.stderr
    reason = "VT_FAST_CPU_ISA=pdp11 names no instruction set that the kernels are compiled for (" + ", ".join(
        library.instruction_sets()
    )
    (report, *raised) = done.stdout.split("RAISED ")
    assert f"cpu no: {reason}" in " ".join(report.split())
    assert raised[0].startswith(f'`backend="cpu"` is not available here: {reason}')
    assert raised[1].startswith(reason)


@built
def test_it_is_the_first_choice_on_a_cpu():
    from vt_fast import backends
    from vt_fast.backends.contract import Tokenize

    x = torch.randn(2, 5, 8)
    assert backends.choose(None, Tokenize(x, x, None, None, None, 1, False)) == "cpu"


def test_other_devices_are_refused():
    from types import SimpleNamespace

    from vt_fast.backends import cpu
    from vt_fast.backends.contract import Tokenize

    def refusal(x):
        return cpu.refuses(Tokenize(x, x, None, None, None, 1, False))

    elsewhere = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    assert refusal(elsewhere) == "the tensors are on cuda:0; this backend is for the CPU"
    assert "not in torch.int32" in refusal(torch.zeros(1, 1, 1, dtype=torch.int32))
    assert refusal(torch.zeros(1, 1, 1, device="meta")) is None


def test_a_missing_library_is_explained(tmp_path):
    assert library.load(tmp_path) == "the kernels are not built; run `make native` in vt_fast's source tree"
    record = tmp_path / library._RECORD
    record.write_text(json.dumps({"reason": "no compiler; install one"}))
    assert library.load(tmp_path) == "the kernels are not built: no compiler; install one"
    record.write_text(json.dumps({"compiler": "GCC 12", "torch": "2.99.0", "oldest_torch": "2.98"}))
    assert "libvt_fast_cpu.so is missing" in library.load(tmp_path)
    record.write_text("{")
    assert "the kernels are not built" in library.load(tmp_path)


def test_a_library_that_does_not_load_is_explained_by_what_it_was_built_for(tmp_path):
    record = {"compiler": "GCC 12", "torch": "2.99.0", "oldest_torch": "2.98"}
    (tmp_path / library._RECORD).write_text(json.dumps(record))
    (tmp_path / library._LIBRARY).write_bytes(b"not a library")
    reason = library.load(tmp_path)
    assert "they were built with torch 2.99.0 and GCC 12, for torch 2.98 or later" in reason
    assert f"this is torch {torch.__version__}" in reason
    assert f"{library._LIBRARY}: file too short" in reason
    assert "pip install --no-build-isolation" in reason


@built
@pytest.mark.parametrize("kept", [10, 1_000_000, -1])
def test_a_library_that_is_cut_off_is_explained(tmp_path, kept):
    """Loading it would end the process."""
    (tmp_path / library._LIBRARY).write_bytes((library.FOLDER / library._LIBRARY).read_bytes()[:kept])
    assert "is damaged: its end is missing; install the package again" in library.load(tmp_path)


def test_a_package_in_an_archive_is_explained(tmp_path):
    assert "do not load from an archive" in library.load(tmp_path / "vt_fast.whl" / "vt_fast" / "_native")


@built
def test_a_library_of_other_sources_is_explained(tmp_path, monkeypatch):
    compiler = shutil.which("g++") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a compiler")
    (tmp_path / "other.cpp").write_text("")
    command = [compiler, "-shared", "-o", tmp_path / library._LIBRARY, tmp_path / "other.cpp"]
    subprocess.run(command, check=True)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.setattr(library, "_functions", library._functions.__wrapped__)
    message = r"is of another version \(.*undefined symbol.*\); run `pip install"
    with pytest.raises(ImportError, match=message):
        library.chosen()
    assert re.search(message, library.facts()["library"])
    assert re.search(message, str(library.unavailable.__wrapped__()))


def test_info_reports_on_the_library(monkeypatch, tmp_path):
    if not_built is None:
        shown = library.facts()
        assert {"library", "compiled for", "supported", "runs", "compiler", "built with"} == set(shown)
        assert shown["runs"] in shown["supported"]
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert library.facts() == {
        "library": "none: the kernels are not built; run `make native` in vt_fast's source tree"
    }
