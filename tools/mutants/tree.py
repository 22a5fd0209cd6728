"""Copies of the working tree in which mutants are tried: never the tree itself."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.mutants.sampling import ROOT, Mutant

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "VT_FAST_BUILD": "require",
}
_LIBRARIES = Path("vt_fast") / "_native"
_OBJECTS = Path("build") / "native"


class Tree:
    """A copy of the working tree, with one mutant at a time in it."""

    def __init__(self, root: Path, native: bool) -> None:
        self.root = root
        self.native = native  # mutants are in C++

    @classmethod
    def copy(cls, to: Path, native: bool) -> Tree:
        """Copy what git tracks or would track, and the kernels, which are built anew where ``native``."""
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        answer = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
        built = [str(path.relative_to(ROOT)) for path in (ROOT / _LIBRARIES).iterdir()]
        for name in [*answer.split("\0"), *built]:
            if (ROOT / name).is_file():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, to / name)
        tree = cls(to, native)
        if native and not tree._build():
            raise SystemExit("error: the kernels do not build without a fault either")
        return tree

    def twin(self, to: Path) -> Tree:
        """Copy the copy, with all that was built in it."""
        shutil.copytree(self.root, to)
        return Tree(to, self.native)

    def attempt(self, mutant: Mutant, tests: tuple[str, ...], limit: float) -> tuple[str, str]:
        """Put a mutant in and run the tests; see :meth:`test`. Afterwards the copy is as it was."""
        path = self.root / mutant.file
        source, changed = path.read_bytes(), path.stat().st_mtime_ns
        kept = self.root / "build" / "kept"
        if self.native:
            shutil.copytree(self.root / _OBJECTS, kept)
        try:
            path.write_bytes(mutant.applied(source))
            return self.test(tests, limit) if self._compiles(mutant.file, kept) else ("did not compile", "")
        finally:
            # With the time of its last change, so that ninja builds no more than the next mutant needs.
            path.write_bytes(source)
            os.utime(path, ns=(changed, changed))
            if self.native:
                shutil.rmtree(self.root / _OBJECTS)
                kept.rename(self.root / _OBJECTS)

    def test(self, calls: tuple[str, ...], limit: float) -> tuple[str, str]:
        """Run pytest: "noticed" and the first failing test, or "survived"."""
        for call in calls:
            words = shlex.split(call)
            at = words.index("pytest")
            options = ["-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
            variables = dict(word.split("=", 1) for word in words[:at])
            begin = time.monotonic()
            command = [sys.executable, "-m", "pytest", *options, *words[at + 1 :]]
            code, output = self._run(command, variables, limit)
            limit -= time.monotonic() - begin
            if code is None:
                return "noticed", "the tests do not end"
            if code == 5:
                raise SystemExit(f"error: `{call}` chooses no test")
            if code != 0:
                failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
                return "noticed", failed[0].split(" - ")[0] if failed else f"pytest ended with {code}"
        return "survived", ""

    def _compiles(self, file: str, kept: Path) -> bool:
        """Whether the module imports, or the kernels build and differ from those without the fault."""
        if self.native:
            (library,) = kept.glob("lib*.so")
            return (
                self._build() and (self.root / _OBJECTS / library.name).read_bytes() != library.read_bytes()
            )
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return self._run([sys.executable, "-c", f"import vt_fast, {module}"], {}, 120)[0] == 0

    def _build(self) -> bool:
        return self._run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], {}, 900)[0] == 0

    def _run(self, command: list[str], variables: dict[str, str], limit: float) -> tuple[int | None, str]:
        """Exit status and output of a command in the copy; None if it had to be stopped."""
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": str(self.root), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its own children can be stopped with it
        )
        try:
            output, _ = process.communicate(timeout=max(limit, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]
        return process.returncode, output
