"""The registry as text: shapes and the models that they come from, peers, and which of them are absent."""

from __future__ import annotations

from benchmarks import cases, origins
from benchmarks.peers import PEERS
from benchmarks.peers_gpu import ABSENT, GPU_PEERS
from benchmarks.tables import table


def render() -> str:
    """All of it."""
    return "\n\n".join([_shapes(), _peers(), _absent()]).rstrip()


def _shapes() -> str:
    rows = []
    for shape in origins.REGISTRY:
        where = [name for name, those in (("cpu", cases.SHAPES), ("gpu", cases.GPU_SHAPES)) if shape in those]
        ops = dict.fromkeys(op for each in origins.ORIGINS if each.shape == shape for op in each.ops)
        row = [shape.label, f"{shape.height}x{shape.width}", ", ".join(where) or "-"]
        rows.append([*row, ", ".join(ops or cases.OPS), origins.origin(shape) or "-"])
    return table(["BxNxCxL", "HxW", "by default", "ops", "of"], rows)


def _peers() -> str:
    rows = []
    for op in cases.OPS:
        for peer in PEERS[op]:
            rows.append([op, peer.name, ", ".join(peer.layouts), "any"])
        rows += [[op, peer.name, ", ".join(peer.layouts), "gpu"] for peer in GPU_PEERS[op]]
    return table(["op", "peer", "layouts", "device"], rows)


def _absent() -> str:
    return "\n".join(["Absent:", *(f"  {name}: {reason}" for name, reason in ABSENT.items())])
