"""Report on this machine: versions, devices, and whether each backend can run, with the reason if not.

Users run this when something is broken, so a failing probe must not hide the others: each is guarded and
reports its own error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "triton", "numpy", "fvcore")


def cause(error: BaseException) -> str:
    """The error in one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _guarded(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except Exception as error:  # any error belongs in the report
        return f"not known ({cause(error)})"


def _package_version(name: str) -> str:
    """The version, and the error if the package is installed but cannot be imported."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{version}, but it does not import ({cause(error)})"
    return version


def _own_version() -> str:
    from vt_fast.version import __version__

    return __version__


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware", "cpu model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "not known"


def _cores() -> int:
    """The number of cores this process may use; containers and taskset can restrict it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _instruction_set() -> str:
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())


def _gpus() -> list[str] | str:
    import torch

    if not torch.cuda.is_available():
        built_for = "CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else None
        if built_for is None:
            return "none: this torch is built without CUDA and ROCm"
        return f"none: torch is built for {built_for} but finds no usable device or driver"
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        found.append(
            f"{properties.name}, {memory}, {properties.multi_processor_count} units, sm {capability}"
        )
    return found


def _backends() -> list[dict[str, Any]]:
    from vt_fast import backends

    return [
        {"name": name, "available": reason is None, "reason": reason} for name, reason in backends.report()
    ]


def _kernels() -> dict[str, str]:
    from vt_fast.backends.cpu import library

    return library.facts()


def _cuda_kernels() -> dict[str, str]:
    from vt_fast.backends.cuda import library

    return library.facts()


def collect() -> dict[str, Any]:
    """Collect the report as plain data for JSON; never raises.

    Returns a dictionary with ``versions`` (name -> text), ``devices`` (name -> value), ``kernels`` and
    ``cuda_kernels`` (name -> text, about the compiled libraries) and ``backends``: a list of ``{"name",
    "available", "reason"}``. The last three are a text with the error if they could not be determined.

    Example:
        >>> sorted(collect())
        ['backends', 'cuda_kernels', 'devices', 'kernels', 'versions']
    """
    versions: dict[str, Any] = {
        "vt_fast": _guarded(_own_version),
        "python": f"{platform.python_version()} ({sys.implementation.name})",
        "platform": _guarded(platform.platform),
    }
    for name in _PACKAGES:
        versions[name] = _guarded(partial(_package_version, name))
    devices = {
        "cpu": _guarded(_cpu_model),
        "cores": _guarded(_cores),
        "threads": _guarded(_threads),
        "instructions": _guarded(_instruction_set),
        "gpu": _guarded(_gpus),
    }
    return {
        "versions": versions,
        "devices": devices,
        "kernels": _guarded(_kernels),
        "cuda_kernels": _guarded(_cuda_kernels),
        "backends": _guarded(_backends),
    }


def _section(title: str, rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [title, *(f"  {name:<{width}}  {value}" for name, value in rows), ""]


def render(report: dict[str, Any]) -> str:
    """Format the report for a terminal.

    >>> print(render({"versions": {"torch": "2"}, "devices": {}, "kernels": {"runs": "avx2"}, "backends": [
    ...     {"name": "cpu", "available": False, "reason": "not built"}]}))
    versions
      torch  2
    <BLANKLINE>
    devices
    <BLANKLINE>
    kernels
      runs  avx2
    <BLANKLINE>
    backends
      cpu  no: not built
    """
    devices: list[tuple[str, str]] = []
    for name, value in report["devices"].items():
        if isinstance(value, list):
            devices += [(f"{name} {index}", str(item)) for index, item in enumerate(value)]
        else:
            devices.append((name, str(value)))
    backends = report["backends"]
    if isinstance(backends, list):
        rows = [(b["name"], "yes" if b["available"] else f"no: {b['reason']}") for b in backends]
    else:
        rows = [("all", str(backends))]
    lines = _section("versions", [(name, str(value)) for name, value in report["versions"].items()])
    lines += _section("devices", devices)
    for key, title in (("kernels", "kernels"), ("cuda_kernels", "CUDA kernels")):
        kernels = report.get(key, {})
        facts = kernels if isinstance(kernels, dict) else {"library": kernels}
        if facts:
            lines += _section(title, [(name, str(value)) for name, value in facts.items()])
    lines += _section("backends", rows)
    return "\n".join(lines).rstrip()


def main(*, as_json: bool = False) -> int:
    """Print the report and return exit status 0, also if backends are unavailable."""
    report = collect()
    print(json.dumps(report, indent=2) if as_json else render(report))
    return 0
