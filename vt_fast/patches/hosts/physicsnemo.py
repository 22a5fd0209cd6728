"""physicsnemo: Transolver's attention through slices of a mesh, and FLARE's through global queries."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vt_fast import functional
from vt_fast.layout import unflatten
from vt_fast.patches.absorbed import fits, sums_may_overflow
from vt_fast.patches.base import Patch, own_forward, why_not_plain

_MODULE = "physicsnemo.nn.module"


class PhysicsAttention(Patch):
    """Points are assigned to slices, slices attend to each other, and each point takes its slices back.

    The weights of the points, as large as points times heads times slices, are never written.
    """

    hosts = tuple(
        f"{_MODULE}.physics_attention.PhysicsAttention{mesh}"
        for mesh in ("IrregularMesh", "StructuredMesh2D", "StructuredMesh3D")
    )
    members = (
        "softmax dropout temperature in_project_slice in_project_x in_project_fx qkv_project out_linear "
        "out_dropout proj_temperature attn_fn"
    )
    note = "sharded meshes and float16 run its own forward"

    @staticmethod
    def why_not(module: Any) -> str | None:
        if module.use_te:
            return "it calls Transformer Engine"
        if module.plus:
            return "it adds noise to the logits (Transolver++)"
        return why_not_plain(module, nn.Linear, "in_project_slice")

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        unfit = not _is_map(x, self.dim) or sums_may_overflow(x)
        if unfit or PhysicsAttention.why_not(self) is not None:
            return own_forward(self, x)  # type: ignore[no-any-return]
        heads, part = self.heads, self.in_project_slice
        logits, features = (each.flatten(2) for each in self.project_input_onto_slices(x))
        inverse = 1 / self.temperature.clamp(min=0.5, max=5).to(part.weight.dtype).view(heads, 1)
        rows = (inverse[..., None] * part.weight).flatten(0, 1)
        token_bias = None if part.bias is None else (inverse * part.bias).flatten()
        sums, mass = functional.tokenize(
            logits,
            rows,
            num_heads=heads,
            values=features,
            token_bias=token_bias,
            normalize="tokens",
            return_stats=True,
        )
        mass = unflatten(mass, 1, (heads, -1))[..., None].to(sums.dtype)
        slices = unflatten(sums, 2, (heads, -1)).transpose(1, 2) / (mass + 1e-2)
        slices = self._compute_slice_attention_sdpa(slices).transpose(1, 2).flatten(2)
        found = functional.project(logits, rows, slices, num_heads=heads, token_bias=token_bias)
        return self.out_dropout(self.out_linear(found))  # type: ignore[no-any-return]


class Flare(Patch):
    """Global queries look at all points, and each point looks at what they found."""

    hosts = (f"{_MODULE}.flare_attention.FLARE",)
    members = "q_global in_project_x self_k self_v out_linear out_dropout attn_fn"
    note = "sharded meshes run its own forward"

    @staticmethod
    def why_not(module: Any) -> str | None:
        if module.use_te:
            return "it calls Transformer Engine"
        return why_not_plain(module, nn.Linear, "self_k", "self_v")

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        if not _is_map(x) or Flare.why_not(self) is not None:
            return own_forward(self, x)  # type: ignore[no-any-return]
        heads, key = self.heads, self.self_k
        points = self.in_project_x(x)
        queries = self.scale * self.q_global[0].to(points.dtype)
        rows = (queries @ key.weight).flatten(0, 1)
        pooled = unflatten(functional.tokenize(points, rows, num_heads=heads), 2, (heads, -1))
        # The bias of the keys is the same for all points, but not for all queries.
        token_bias = None if key.bias is None else (queries @ key.bias).flatten()
        values = self.self_v(pooled).flatten(2)
        found = functional.project(points, rows, values, num_heads=heads, token_bias=token_bias)
        return self.out_dropout(self.out_linear(found))  # type: ignore[no-any-return]


def _is_map(x: Tensor, channels: int | None = None) -> bool:
    sharded = hasattr(x, "redistribute")  # as the host tells
    return not sharded and fits(x, channels)
