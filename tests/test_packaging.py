"""Wheels and source archives: their files, the kernels or why there are none, version and requirements."""

import email
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import vt_fast

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
SOURCES += ["Makefile", "constraints.txt", ".clang-format", ".ci"]
SOURCES += ["csrc", "native_build", "benchmarks", "examples", "tests", "tools", "vt_fast"]
# What a build needs, with kernels or without. The build itself looks for a compiler.
PACKAGES = ("setuptools", "torch", "ninja")

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="runs in a source tree only"),
    pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="needs setuptools to build"),
]


def copy_tree(directory):
    """A copy to build in, because a build writes into its tree. It has the objects, which compile slowly."""
    tree = directory / "tree"
    tree.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            # Without the libraries: those in a wheel must have been built for it.
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy2(source, tree / name)
    objects = ROOT / "build" / "native"
    if objects.exists():
        shutil.copytree(objects, tree / "build" / "native")
    return tree


def build(tree, hook, **environment):
    out = tree.parent / "out"
    out.mkdir()
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(
        command, cwd=tree, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing or not sys.platform.startswith("linux"):
        pytest.skip(f"kernels cannot be built here, without {missing} or on {sys.platform}")
    tree = copy_tree(tmp_path_factory.mktemp("wheel"))
    with zipfile.ZipFile(build(tree, "build_wheel", VT_FAST_BUILD="require")) as archive:
        yield archive


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory):
    """Built without a compiler, in a tree with the leftovers of earlier builds."""
    tree = copy_tree(tmp_path_factory.mktemp("pure"))
    library = tree / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for folder in (tree, library):
        stale = folder / "vt_fast" / "_native" / "libvt_fast_cpu.so"
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_bytes(b"stale")
    return build(tree, "build_wheel", VT_FAST_BUILD="", CXX="/nowhere/c++")


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_wheel_has_the_library_alone(wheel):
    """Every module of vt_fast, its data and its kernels; no demo, examples, tools, benchmarks or tests."""
    data = {
        "vt_fast/py.typed",
        *sources("backends/*/settings*.json"),
        *sources("backends/triton/settings_data/*.json"),
    }
    about = f"vt_fast-{vt_fast.__version__}.dist-info/"
    names = {name for name in wheel.namelist() if not name.startswith((about, "vt_fast/_native/"))}
    assert names | {"vt_fast/_native/__init__.py"} == sources("*.py") | data
    parts = {part for name in wheel.namelist() for part in name.split("/")}
    assert not parts & {"demo", "paper", "examples", "tools", "benchmarks", "tests"}


def sources(pattern):
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "vt_fast").rglob(pattern)}


def test_installed_package_says_what_needs_a_checkout(pure_wheel, tmp_path):
    with zipfile.ZipFile(pure_wheel) as archive:
        archive.extractall(tmp_path)
    for command, message in {
        "demo": "(examples/demo): clone the repository and run `make demo` there",
        "paper": "(tools/paper): clone the repository and run `python -m vt_fast paper` there",
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "vt_fast", command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
        assert done.returncode == 2
        assert done.stderr == f"error: `{command}` needs a source checkout of vt_fast {message}\n"


def test_wheel_has_the_kernels_and_is_for_any_python(wheel):
    inside = {name.removeprefix("vt_fast/_native/") for name in wheel.namelist() if "/_native/" in name}
    assert inside == {"__init__.py", "build.json", "libvt_fast_cpu.so"}
    assert re.fullmatch(r"vt_fast-.*-py3-none-linux_\w+\.whl", Path(wheel.filename).name)
    (about,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/WHEEL"))
    assert "Root-Is-Purelib: false" in about
    assert re.findall(r"Tag: (\S+)", about) == [f"py3-none-{Path(wheel.filename).stem.split('-')[-1]}"]


def test_wheel_works(wheel, tmp_path):
    wheel.extractall(tmp_path)
    rows = info(tmp_path)
    assert rows["backends"]["cpu"] == "yes"
    assert Path(rows["kernels"]["library"]) == tmp_path / "vt_fast" / "_native" / "libvt_fast_cpu.so"


def test_wheel_without_a_compiler_is_for_all_pythons_and_says_why(pure_wheel, tmp_path):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(pure_wheel) as archive:
        names = {name for name in archive.namelist() if "/_native/" in name}
        archive.extractall(tmp_path)
    assert names == {"vt_fast/_native/__init__.py", "vt_fast/_native/build.json"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "vt_fast",
        f"vt_fast-{vt_fast.__version__}.dist-info",
    }
    rows = info(tmp_path)
    assert rows["backends"]["torch"] == "yes"
    assert rows["backends"]["cpu"].startswith(
        "no: the kernels are not built: the C++ compiler `/nowhere/c++` does not run"
    )
    assert "pip install --no-build-isolation ." in rows["backends"]["cpu"]


def info(folder):
    """The report of `python -m vt_fast info` on the package in ``folder``: section -> name -> text."""
    code = """
import json, torch, vt_fast
from vt_fast.info import collect
x = torch.randn(1, 4, 3)
assert vt_fast.tokenize(x, x).shape == (1, 4, 3)
found = collect()
rows = {b["name"]: "yes" if b["available"] else "no: " + b["reason"] for b in found["backends"]}
print(json.dumps({"kernels": found["kernels"], "backends": rows}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(folder), "VT_FAST_CPU_ISA": ""},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_version_agrees(metadata):
    assert metadata["Version"] == vt_fast.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", vt_fast.__version__)


def test_the_citation_is_of_this_version():
    (version,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert version == vt_fast.__version__


def test_metadata_has_lower_bounds_only(metadata):
    requirements = metadata.get_all("Requires-Dist")
    assert any(requirement.startswith("torch") for requirement in requirements)
    for requirement in requirements:
        bounds = requirement.partition(";")[0]
        assert not re.search(r"==|<|~=|!=|@", bounds), requirement


def test_torch_is_no_build_requirement():
    # With it, an isolated build would fetch a second torch.
    text = (ROOT / "pyproject.toml").read_text()
    (requires,) = re.findall(r"^requires = \[(.*)\]$", text, flags=re.MULTILINE)
    assert "torch" not in requires


def test_what_make_installs_for_the_build_is_what_the_build_needs():
    text = (ROOT / "Makefile").read_text()
    (installed,) = re.findall(r"install -c constraints.txt (.*)$", text, flags=re.MULTILINE)
    assert set(installed.split()) == set(PACKAGES)


def test_source_archive_can_build_and_test(tmp_path):
    tree = copy_tree(tmp_path)
    # Build results in the tree belong to this machine.
    (tree / "vt_fast" / "_native" / "libvt_fast_cpu.so").write_bytes(b"")
    (tree / "vt_fast" / "_native" / "build.json").write_text("{}")
    with tarfile.open(build(tree, "build_sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "csrc/README.md", "constraints.txt", "Makefile", "vt_fast/py.typed"} <= names
    for folder in ("csrc", "native_build"):
        paths = (path for path in (tree / folder).rglob("*") if path.is_file())
        assert {
            path.relative_to(tree).as_posix() for path in paths if "__pycache__" not in path.parts
        } <= names
    assert not any(name.endswith((".so", ".o", "build.json")) for name in names)
    assert {"benchmarks/README.md", "benchmarks/peers.py", ".ci/run"} <= names
    assert {"tests/test_packaging.py", "examples/demo/__init__.py", "tools/paper/__init__.py"} <= names


def test_constraints_pin_every_requirement(metadata):
    """A new dependency without a pin would make `make test` depend on the day it runs."""

    def plain(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(; python_version (<|>=) \"3\.\d+\")?", pin) for pin in pins)
    pinned = {plain(pin.partition("==")[0]) for pin in pins}
    needed = {
        plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in metadata.get_all("Requires-Dist")
    }
    assert needed - {"vt-fast"} <= pinned
