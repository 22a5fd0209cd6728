"""What is mutated, and which of all possible mutants are tried."""

from __future__ import annotations

import collections
import hashlib
import random
from pathlib import Path
from typing import NamedTuple

from tools.mutants.edits import edits_of
from tools.mutants.planted import PLANTED

ROOT = Path(__file__).resolve().parents[2]


class Target(NamedTuple):
    """Sources by pattern but for some names, and the pytest calls that test them.

    ``NAME=value`` words before ``pytest`` set environment variables. Files that soon notice much come first.
    """

    sources: tuple[str, ...]
    without: tuple[str, ...]
    tests: tuple[str, ...]
    build: str = ""  # what is compiled from the sources: see tree.py


TARGETS = {
    "ops": Target(
        (
            "vt_fast/*.py",
            "vt_fast/ops/**/*.py",
            "vt_fast/backends/*.py",
            "vt_fast/backends/eager/**/*.py",
            "vt_fast/backends/cpu/*.py",
        ),
        ("__main__", "info", "measure", "testing", "tune", "version"),  # not part of the ops
        (
            "pytest tests/ops/test_values.py tests/ops/test_contracts.py tests/ops/test_errors.py",
            "pytest tests/test_public_api.py tests/test_backends.py tests/test_native.py tests/ops"
            " --ignore=tests/ops/test_values.py --ignore=tests/ops/test_contracts.py"
            " --ignore=tests/ops/test_errors.py",
        ),
    ),
    "cpu": Target(
        ("csrc/cpu/*.h", "csrc/torch/*.cpp"),
        ("processor",),  # tests see one processor only, the one that they run on
        (
            "pytest tests/ops/test_values.py tests/ops/test_contracts.py tests/ops/test_errors.py"
            " tests/ops/test_family_contracts.py tests/cpu -k 'cpu and not threads_do_not_matter'",
        ),
        "native",
    ),
    "cuda": Target(
        ("csrc/cuda/*.h", "csrc/torch/cuda_calls.h", "csrc/torch/cuda_ops.h"),
        ("device", "launch"),  # the first is for nvcc in parts; the other holds no code
        (
            "pytest tests/cuda"
            " --deselect tests/cuda/test_emulator.py::test_program[emulator/emulator_test.cpp]",
        ),
        "emulator",
    ),
    "triton": Target(
        ("vt_fast/backends/triton/*.py",),
        ("ahead", "samples", "settings"),  # about times, or about compiling alone
        (
            "TRITON_INTERPRET=1 pytest tests/ops/test_values.py tests/ops/test_contracts.py tests/triton"
            " -k triton",
            "pytest tests/test_launch_settings.py",
        ),
    ),
    "modules": Target(
        ("vt_fast/nn/**/*.py", "vt_fast/models/**/*.py"), (), ("pytest tests/nn tests/models",)
    ),
}


class Mutant(NamedTuple):
    """One fault: ``after`` in place of the bytes ``start`` to ``end`` of a file."""

    id: str
    file: str
    line: int
    operator: str
    before: str
    after: str
    start: int
    end: int
    variables: str = ""  # of the environment for its build and tests, NAME=value

    def applied(self, source: bytes) -> bytes:
        """The file with the fault in it."""
        return source[: self.start] + self.after.encode() + source[self.end :]


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """All mutants of one file, in the order of their places."""
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for start, end, operator, after in sorted(set(edits_of(file, source))):
        begin = source.rfind(b"\n", 0, start) + 1
        text = source[begin:].split(b"\n", 1)[0].decode()
        # Not the number of the line, which changes with the lines above.
        key = "|".join([file, operator, text, str(start - begin), str(end - begin), after])
        seen[key] += 1
        name = hashlib.sha256(f"{key}|{seen[key]}".encode()).hexdigest()[:8]
        line = source.count(b"\n", 0, start) + 1
        found.append(Mutant(name, file, line, operator, source[start:end].decode(), after, start, end))
    return found


def planted(target: str, root: Path = ROOT) -> list[Mutant]:
    """The faults in a target's kernels that were written by hand; ids are their names."""
    found = []
    of_target = {file: faults for file, faults in PLANTED.items() if f"/{target}" in file}
    for file, faults in of_target.items():
        source = (root / file).read_text()
        for fault in faults:
            span = fault.span(source)
            start, end = (len(source[:at].encode()) for at in span)
            line = source.count("\n", 0, span[0]) + 1
            operator = "harmless" if fault.harmless else "planted"
            variables = f"VT_FAST_EMULATED={fault.kernels}" if target == "cuda" else ""
            before = source[slice(*span)]
            found.append(Mutant(fault.name, file, line, operator, before, fault.after, start, end, variables))
    return found


def candidates(target: str, root: Path = ROOT) -> list[Mutant]:
    """All mutants of a target."""
    sources, without, *_ = TARGETS[target]
    paths = {path for pattern in sources for path in root.glob(pattern) if path.stem not in without}
    return [
        mutant
        for path in sorted(paths)
        for mutant in mutants_of(path.relative_to(root).as_posix(), path.read_bytes())
    ]


def sample(found: list[Mutant], target: str, seed: int, count: int) -> list[list[Mutant]]:
    """For each of ``count`` equal parts of the sources its mutants, in the order in which to try them.

    The operators take turns in a random order: some are much more frequent than others.
    """
    parts = []
    for index in range(count):
        part = found[index * len(found) // count : (index + 1) * len(found) // count]
        generator = random.Random(f"{seed} {target} {index}")
        generator.shuffle(part)
        turns = sorted({mutant.operator for mutant in part})
        generator.shuffle(turns)
        rounds: collections.Counter[str] = collections.Counter()
        order = []
        for mutant in part:
            rounds[mutant.operator] += 1
            order.append((rounds[mutant.operator], turns.index(mutant.operator), mutant))
        parts.append([mutant for _, _, mutant in sorted(order)])
    return parts
