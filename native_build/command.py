"""The setuptools commands: `build_ext` builds the kernels or records why not, `bdist_wheel` names wheels."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

from native_build import cuda, rules, toolchain
from native_build.toolchain import RETRY, CannotBuildError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("vt_fast") / "_native"
RECORD = "build.json"
# Objects stay here, so that the next build in this tree is incremental.
OBJECTS = Path("build") / "native"

_MODES = ("", "require", "skip")


class BuildNative(build_ext):
    """Builds the libraries with ninja, and writes a record of the build next to them.

    The environment variable VT_FAST_BUILD decides what happens if they cannot be built. Unset: the package
    works without them, and the record has the reason; "require": an error; "skip": they are not built.
    The CUDA kernels are built where nvcc and a GPU, or VT_FAST_CUDA_ARCH, are found. If there are none, or
    the kernels do not compile with nvcc, the record says so; the latter is an error with "require".
    """

    built = built_cuda = False
    machine = ""

    def run(self) -> None:
        """Put the libraries and the record, or only the record, into the package."""
        target = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib)) / PACKAGE
        remove(target)
        mode = os.environ.get("VT_FAST_BUILD", "")
        if mode not in _MODES:
            raise SystemExit(f'error: VT_FAST_BUILD must be unset, "require" or "skip", got "{mode}"')
        target.mkdir(parents=True, exist_ok=True)
        try:
            if mode == "skip":
                raise CannotBuildError(
                    "the package was built with VT_FAST_BUILD=skip, as is the wheel for any system: install "
                    f"one for this system; or unset it, then {RETRY}"
                )
            record = build(target, required=mode == "require")
        except CannotBuildError as error:
            if mode == "require":
                raise SystemExit(f"error: the kernels cannot be built: {error}") from error
            print(f"warning: the package is built without its kernels: {error}", file=sys.stderr)
            record = {"reason": str(error)}
        self.built = "reason" not in record
        self.machine = record.get("machine", "")
        self.built_cuda = "reason" not in record.get("cuda", record)
        (target / RECORD).write_text(json.dumps(record, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        """The files of a build."""
        return [str(Path(self.build_lib) / PACKAGE / name) for name in self._names()]

    def get_output_mapping(self) -> dict[str, str]:
        """The same files, mapped to those in the source tree if they were built there."""
        if not self.inplace:
            return {}
        return {str(Path(self.build_lib) / PACKAGE / name): str(PACKAGE / name) for name in self._names()}

    def get_source_files(self) -> list[str]:
        """None: MANIFEST.in lists the sources."""
        return []

    def _names(self) -> list[str]:
        if not self.built:
            return [RECORD]
        cuda_library = [rules.CUDA_LIBRARY] if self.built_cuda else []
        return [rules.LIBRARY, *cuda_library, RECORD]


class NativeWheel(bdist_wheel):
    """A wheel for any Python, and for this platform if it has kernels."""

    def run(self) -> None:
        """Build the kernels first, as the wheel's name depends on them."""
        if not self.skip_build:
            self.run_command("build_ext")
            if not self.get_finalized_command("build_ext").built:
                self.distribution.ext_modules = []
                self.root_is_pure = True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """The parts of the wheel's name that say what it fits."""
        python, abi, system = super().get_tag()
        if self.root_is_pure:
            return python, abi, system
        machine = self.get_finalized_command(
            "build_ext"
        ).machine  # "" before the build, as for editable wheels
        if machine not in ("", platform.machine()) and not self.plat_name_supplied:
            system = f"linux_{machine}"
        return "py3", "none", system


def remove(target: Path) -> None:
    """Remove an earlier build from ``target``, so that no stale kernels are left if this one fails."""
    for path in [*target.glob("*.so"), target / RECORD]:
        path.unlink(missing_ok=True)


def build(target: Path, *, required: bool = False) -> dict[str, Any]:
    """Build the libraries into ``target`` and return the record of the build.

    Where the CUDA kernels cannot be built, the record says why.

    Raises:
        CannotBuildError: a part of the toolchain is missing, or a source does not compile. With ``required``
            also where there is nvcc, and the CUDA kernels do not compile.
    """
    tools = toolchain.find()
    cuda_tools, cuda_record = None, {}
    try:
        if tools.is_cross:
            raise CannotBuildError(f"the library is for another machine, {tools.machine}")
        cuda_tools = cuda.find()
        cuda_record = cuda_tools.record
    except CannotBuildError as error:
        cuda_record = {"reason": str(error)}
    (ROOT / OBJECTS).mkdir(parents=True, exist_ok=True)
    (ROOT / OBJECTS / "build.ninja").write_text(rules.ninja_file(tools, cuda_tools, OBJECTS))
    names = [rules.LIBRARY]
    _compile(tools.ninja, names, f"the kernels did not compile with {tools.compiler_name}")
    if cuda_tools is not None:
        compilers = f"{cuda_record['compiler']} and {tools.compiler_name}"
        try:
            _compile(tools.ninja, [rules.CUDA_LIBRARY], f"the CUDA kernels did not compile with {compilers}")
            names.append(rules.CUDA_LIBRARY)
        except CannotBuildError as error:
            if required:
                raise
            print(f"warning: the package is built without its CUDA kernels: {error}", file=sys.stderr)
            cuda_record = {"reason": str(error)}
    for name in names:
        shutil.copy2(ROOT / OBJECTS / name, target / name)
    return {
        "compiler": tools.compiler_name,
        "machine": tools.machine if tools.is_cross else platform.machine(),
        "torch": tools.torch_version,
        "oldest_torch": _oldest_torch(),
        "cuda": cuda_record,
    }


def _compile(ninja: str, names: list[str], failure: str) -> None:
    files = [str(OBJECTS / name) for name in names]
    command = [ninja, "-f", str(OBJECTS / "build.ninja"), *_jobs(), *files]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise CannotBuildError(
            f"{failure}; `VT_FAST_BUILD=require pip install -v --no-build-isolation .` in the source tree "
            "shows why"
        )


def _jobs() -> list[str]:
    jobs = os.environ.get("MAX_JOBS", "")
    return ["-j", jobs] if jobs else []


def _oldest_torch() -> str:
    return ".".join(map(str, toolchain.OLDEST_TORCH))
