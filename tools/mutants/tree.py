"""Copies of the working tree in which mutants are tried: never the tree itself."""

from __future__ import annotations

import copy
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

# Of a target whose mutants are in C++: the Python call that compiles it, and the folder of objects.
_BUILDS = {
    "native": (("setup.py", "-q", "build_ext", "--inplace"), Path("build") / "native"),
    "emulator": (("-m", "tests._support.cuda_emulator"), Path("build") / "emulator"),
}


class Tree:
    """A copy of the working tree, with one mutant at a time in it."""

    def __init__(self, root: Path, build: str) -> None:
        self.root = root
        self.command, self.objects = _BUILDS.get(build, ((), Path()))

    @classmethod
    def copied(cls, to: Path, build: str) -> Tree:
        """Copy what git tracks or would track, and the CPU's kernels, and build what mutants are in."""
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        answer = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
        built = [str(path.relative_to(ROOT)) for path in (ROOT / _LIBRARIES).iterdir()]
        for name in [*answer.split("\0"), *built]:
            if (ROOT / name).is_file():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, to / name)
        tree = cls(to, build)
        if build == "emulator" and (ROOT / tree.objects).is_dir():
            shutil.copytree(ROOT / tree.objects, to / tree.objects)  # ninja knows what is out of date
        if tree.command and not tree._build({}):
            raise SystemExit("error: the kernels do not build without a fault either")
        return tree

    def twin(self, to: Path) -> Tree:
        """Copy the copy, with all that was built in it."""
        shutil.copytree(self.root, to)
        tree = copy.copy(self)
        tree.root = to
        return tree

    def attempt(self, mutant: Mutant, tests: tuple[str, ...], limit: float) -> tuple[str, str]:
        """Put a mutant in and run the tests; see :meth:`test`. Afterwards the copy is as it was."""
        path = self.root / mutant.file
        source, changed = path.read_bytes(), path.stat().st_mtime_ns
        variables = dict(word.split("=", 1) for word in mutant.variables.split())
        kept = self.root / "build" / "kept"
        if self.command:
            shutil.copytree(self.root / self.objects, kept)
        try:
            path.write_bytes(mutant.applied(source))
            if not self._compiles(mutant.file, kept, variables):
                return "did not compile", ""
            return self.test(tests, limit, variables)
        finally:
            # With the time of its last change, so that ninja builds no more than the next mutant needs.
            path.write_bytes(source)
            os.utime(path, ns=(changed, changed))
            if self.command:
                shutil.rmtree(self.root / self.objects)
                kept.rename(self.root / self.objects)

    def test(
        self, calls: tuple[str, ...], limit: float, variables: dict[str, str] | None = None
    ) -> tuple[str, str]:
        """Run pytest: "noticed" and the first failing test, or "survived"."""
        for call in calls:
            words = shlex.split(call)
            at = words.index("pytest")
            options = ["-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
            of_call = dict(word.split("=", 1) for word in words[:at]) | (variables or {})
            begin = time.monotonic()
            command = [sys.executable, "-m", "pytest", *options, *words[at + 1 :]]
            code, output = self._run(command, of_call, limit)
            limit -= time.monotonic() - begin
            if code is None:
                return "noticed", "the tests do not end"
            if code == 5:
                raise SystemExit(f"error: `{call}` chooses no test")
            if code != 0:
                failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
                return "noticed", failed[0].split(" - ")[0] if failed else f"pytest ended with {code}"
        return "survived", ""

    def _compiles(self, file: str, kept: Path, variables: dict[str, str]) -> bool:
        """Whether the module imports, or the kernels build and differ from those without the fault."""
        if self.command:
            if not self._build(variables):
                return False
            objects = [path.relative_to(kept) for path in kept.rglob("*.o")]
            return any(
                (self.root / self.objects / name).read_bytes() != (kept / name).read_bytes()
                for name in objects
            )
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return self._run([sys.executable, "-c", f"import vt_fast, {module}"], {}, 120)[0] == 0

    def _build(self, variables: dict[str, str]) -> bool:
        return self._run([sys.executable, *self.command], variables, 900)[0] == 0

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
