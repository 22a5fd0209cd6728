"""The schemas of result files: what each must name, and a check of one.

They follow from the dataclasses that are written (:mod:`benchmarks.records`,
:mod:`benchmarks.networks.records`), so that no field can be added to the one and forgotten in the other; what
a machine and settings must name is said here. ``python -m benchmarks schema`` prints them.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import counter_records, records
from benchmarks.networks import records as networks
from benchmarks.schema import Schema, complaints, schema_of

CPU, GPU, NETWORKS, COMPILED, COUNTERS = "cpu", "gpu", "networks", "compiled", "counters"
KINDS = (CPU, GPU, NETWORKS, COMPILED, COUNTERS)

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = {"type": "array", "items": {"type": "number", "minimum": 0}}
_STATUS = (records.OK, records.WRONG, records.SKIPPED, records.UNAVAILABLE, records.FAILED)


def _either(*names: str) -> Schema:
    return {"anyOf": [{"type": name} for name in names]}


def _naming(properties: dict[str, Schema]) -> Schema:
    """An object that must have all of these, and may have more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


# What a result is worth without the rest depends on these; each may say that it could not be found out.
_COMMIT: Schema = {
    "anyOf": [_naming({"hash": _TEXT, "dirty": _either("boolean", "null")}), {"type": "null"}],
}
_VERSIONS = _naming(dict.fromkeys(("vt_fast", "python", "platform", "torch", "triton", "numpy"), _TEXT))
_DEVICES = _naming(
    {
        "cpu": _TEXT,
        "cores": _either("integer", "string"),
        "threads": _either("integer", "string"),
        "instructions": _TEXT,
        "gpu": _either("string", "array"),
    }
)
_GPU = _naming(
    {
        "name": _TEXT,
        "memory_bytes": _COUNT,
        "driver_version": _either("string", "null"),
        "cuda": _either("string", "null"),
        "hip": _either("string", "null"),
    }
)
_MACHINE = {"versions": _VERSIONS, "devices": _DEVICES, "commit": _COMMIT}
_NAMES: Schema = {"type": "array", "items": _TEXT}
_BUDGET: Schema = {"type": "object"}
_SETTINGS: dict[str, dict[str, Schema]] = {
    CPU: {
        "passes": _NAMES,
        "peers": _either("array", "null"),
        "budget": _BUDGET,
        "quick": {"type": "boolean"},
        "threads": {"anyOf": [{"type": "array", "items": _COUNT}, _COUNT]},
    },
    GPU: {
        "passes": _NAMES,
        "peers": _NAMES,
        "budget": _BUDGET,
        "quick": {"type": "boolean"},
        "device": _TEXT,
        "tf32": {"type": "boolean"},
    },
    NETWORKS: {
        "networks": {"type": "boolean"},
        "quick": {"type": "boolean"},
        "passes": _NAMES,
        "sides": _NAMES,
        "dtype": _NAMES,
        "layout": _NAMES,
        "device": _TEXT,
        "threads": _COUNT,
    },
    COUNTERS: {
        "counters": {"type": "boolean"},
        "device": _TEXT,
        "jobs": _COUNT,
        "elapsed_seconds": {"type": "number", "minimum": 0},
    },
}
# A wrong result has no figure, whoever wrote the file.
_NARROWER: dict[str, Schema] = {
    "Entry": {
        "anyOf": [
            {"properties": {"seconds": {"maxItems": 0}}},
            {"properties": {"status": {"enum": [records.OK]}}},
        ]
    },
    "Entry.status": {"enum": list(_STATUS)},
    "Entry.kind": {"enum": [records.OURS, records.BACKEND, records.PEER]},
    "Entry.seconds": _SECONDS,
    "Entry.eager_seconds": _SECONDS,
    "Floor.copy_seconds": _SECONDS,
    "Floor.matrix_seconds": _SECONDS,
    "Floor.read_seconds": _SECONDS,
    "Side": {
        "anyOf": [
            {"properties": {"seconds": {"maxItems": 0}}},
            {"properties": {"reason": {"type": "null"}}},
        ]
    },
    "Side.seconds": _SECONDS,
}
# No run was measured for it: what compilers make of the kernels is the same everywhere.
_COMPILED: Schema = _naming(
    {
        "triton": _TEXT,
        "rows": {
            "type": "array",
            "items": _naming(
                {
                    **dict.fromkeys(("label", "op", "target", "dtype", "layout", "shape", "setting"), _TEXT),
                    **dict.fromkeys(("registers", "spills", "shared"), _either("integer", "null")),
                    "error": _either("string", "null"),
                    "fault": _either("string", "null"),
                }
            ),
        },
    }
)


_RUNS: dict[str, tuple[type, int]] = {
    NETWORKS: (networks.NetworkRun, networks.SCHEMA),
    COUNTERS: (counter_records.CounterRun, counter_records.SCHEMA),
}


def kind_of(data: dict[str, Any]) -> str:
    """Which of the schemas is a file's."""
    if "rows" in data:
        return COMPILED
    settings = data.get("settings", {})
    if "networks" in settings:
        return NETWORKS
    if COUNTERS in settings:
        return COUNTERS
    return GPU if settings.get("device") is not None else CPU


def schema(kind: str, *, gpu: bool = False) -> Schema:
    """The schema of a kind of files; ``gpu``: of networks that were measured on one.

    Example:
        >>> schema("cpu")["properties"]["settings"]["required"]
        ['passes', 'peers', 'budget', 'quick', 'threads']
    """
    if kind == COMPILED:
        return _COMPILED
    run, number = _RUNS.get(kind, (records.Run, records.SCHEMA))
    machine = _MACHINE | ({"gpu": _GPU} if gpu or kind in (GPU, COUNTERS) else {})
    return schema_of(
        run,
        {
            **_NARROWER,
            f"{run.__name__}.machine": _naming(machine),
            f"{run.__name__}.settings": _naming(_SETTINGS[kind]),
            f"{run.__name__}.schema": {"enum": [number]},
        },
    )


def check(data: dict[str, Any], path: Path) -> None:
    """Hold a result against its schema.

    Raises:
        ValueError: it does not fit; the first complaints are in the message.
    """
    kind = kind_of(data)
    on_gpu = kind == NETWORKS and data["settings"].get("device") != "cpu"
    found = list(islice(complaints(data, schema(kind, gpu=on_gpu)), 4))
    if found:
        more = ", ..." if len(found) > 3 else ""
        raise ValueError(f"{path} must fit the schema of {kind} results: {'; '.join(found[:3])}{more}")


def read(path: Path) -> dict[str, Any]:
    """A result file that fits its schema, as plain data.

    Raises:
        ValueError: it is no JSON, or does not fit.
    """
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be a result file: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must be a result file, got a JSON of {type(data).__name__}")
    check(data, path)
    return data
