"""What is built is what the source says: all subpackages, the type marker, one version and no pins."""

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
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
SOURCES += ["Makefile", "constraints.txt", "csrc", "benchmarks", ".ci", "tests", "vt_fast"]

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="runs in a source tree only"),
    pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="needs setuptools to build"),
]


def build(directory, hook):
    """Build in a copy: a build writes into the tree it runs in."""
    tree, out = directory / "tree", directory / "out"
    tree.mkdir()
    out.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tree / name)
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(
        command, cwd=tree, capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(build(tmp_path_factory.mktemp("wheel"), "build_wheel")) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_wheel_has_every_module_and_the_type_marker(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vt_fast").rglob("*.py")}
    inside = {name for name in wheel.namelist() if name.startswith("vt_fast/")}
    assert modules <= inside
    assert "vt_fast/py.typed" in inside


def test_wheel_has_nothing_else(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"vt_fast", f"vt_fast-{vt_fast.__version__}.dist-info"}


def test_version_agrees(metadata):
    assert metadata["Version"] == vt_fast.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", vt_fast.__version__)


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


def test_source_archive_can_build_and_test(tmp_path):
    with tarfile.open(build(tmp_path, "build_sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "csrc/README.md", "constraints.txt", "Makefile", "vt_fast/py.typed"} <= names
    assert {"benchmarks/README.md", "benchmarks/peers.py", ".ci/run"} <= names
    assert "tests/test_packaging.py" in names


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
    assert needed - {"vt-fast", "triton"} <= pinned
