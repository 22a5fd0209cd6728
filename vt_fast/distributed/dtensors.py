"""The ops over DTensors: maps that are sharded over samples and pixels.

Importing this module tells PyTorch how the raw ops shard, by the experimental `register_sharding`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from vt_fast.backends.contract import Project, ProjectTokenize, Tokenize
from vt_fast.checks import flag, shape
from vt_fast.checks import ops as op_checks
from vt_fast.distributed import functions
from vt_fast.distributed.exchange import Exchange, share
from vt_fast.layout import empty_map_like, map_shape
from vt_fast.ops import PROJECT, PROJECT_TOKENIZE, TOKENIZE
from vt_fast.ops.library import Pass
from vt_fast.precision import autocast


class PlacedMap:
    """A map as DTensor: which of its dimensions is sharded along each dimension of the mesh."""

    def __init__(self, x: DTensor) -> None:
        self.x, self.mesh = x, x.device_mesh
        self.pixels = (1,) if x.dim() == 3 else (2, 3)
        self.dims = [self._dim(placement) for placement in x.placements]
        self.exchange = Exchange(
            [self.mesh.get_group(at) for at, dim in enumerate(self.dims) if dim in self.pixels]
        )
        self.local = x.to_local()

    def _dim(self, placement: Placement) -> int | None:
        if placement.is_replicate():
            return None
        dim = placement.dim if type(placement) is Shard else -1
        if dim in (0, *self.pixels):
            return dim
        raise ValueError(
            f"`x` must be sharded over its samples or its pixels (dimensions 0 and "
            f"{', '.join(map(str, self.pixels))}), or be replicated, got {self.x.placements}"
        )

    @property
    def shards_samples(self) -> bool:
        """Whether the samples are sharded."""
        return 0 in self.dims

    def placements(self, places: dict[int, int]) -> list[Placement]:
        """Of a tensor that has dimension ``places[d]`` for dimension d of the map."""
        return [Shard(places[dim]) if dim in places else Replicate() for dim in self.dims]

    def small(self, name: str, operand: Tensor | None, batched_dim: int) -> Tensor | None:
        """This process's part of an operand without pixels, whose gradient is summed over these processes.

        A plain tensor is what every process holds alike.
        """
        if operand is None:
            return None
        if not isinstance(operand, DTensor):
            if not self.shards_samples:
                return operand
            operand = DTensor.from_local(operand, self.mesh, self.placements({}))
        places = {0: 0} if operand.dim() == batched_dim else {}
        operand = self._on_mesh(name, operand)
        # Also where nothing moves: in the backward pass, it sums gradients over the samples.
        operand = operand.redistribute(placements=self.placements(places))
        return operand.to_local(grad_placements=self._of_gradients(places))

    def per_pixel(self, name: str, operand: Tensor | None, *dims: int | None) -> Tensor | None:
        """This process's part of an operand that has a number for each pixel.

        Args:
            name: for messages.
            operand: a DTensor that is placed as the map is; or a plain tensor without gradient, which every
                process holds in full.
            dims: the operand's dimensions, each as the dimension of the map that it is, -1 for one that
                counts all pixels, or None.
        """
        if operand is None:
            return None
        flat = -1 in dims
        if flat:
            at = dims.index(-1)
            if self.x.dim() == 3:
                dims = (*dims[:at], 1, *dims[at + 1 :])
            elif isinstance(operand, DTensor):
                if 3 in self.dims:
                    raise ValueError(
                        f"`{name}` must have dimensions H and W where `x` is a DTensor that is sharded over "
                        f"W, got {shape(operand)}"
                    )
                dims = (*dims[:at], 2, *dims[at + 1 :])
            else:
                dims = (*dims[:at], 2, 3, *dims[at + 1 :])
                operand = operand.unflatten(at, self.x.shape[2:])
        places = {dim: place for place, dim in enumerate(dims) if dim is not None}
        wanted = self.placements(places)
        if isinstance(operand, DTensor):
            operand = self._on_mesh(name, operand)
            if list(operand.placements) != wanted:
                raise ValueError(
                    f"`{name}` must be placed as `x` is, {tuple(wanted)}, got {operand.placements}"
                )
            if name == "extra_values":
                operand = operand.redistribute(placements=wanted)  # as in `small`
            return operand.to_local(grad_placements=self._of_gradients(places))
        if operand.requires_grad:
            raise ValueError(f"`{name}` must be a DTensor, placed as `x` is, where it requires a gradient")
        part = self.slice(operand, places)
        if flat and self.x.dim() == 4:
            part = part.flatten(at, at + 1)
        return part

    def slice(self, full: Tensor, places: dict[int, int]) -> Tensor:
        """This process's part of a tensor that every process holds in full; without gradient."""
        whole = DTensor.from_local(full.detach(), self.mesh, self.placements({}))
        return whole.redistribute(placements=self.placements(places)).to_local()

    def _on_mesh(self, name: str, operand: DTensor) -> DTensor:
        if operand.device_mesh != self.mesh:
            raise ValueError(
                f"`{name}` must be on the mesh of `x`, {self.mesh}, where it is a DTensor, got "
                f"{operand.device_mesh}"
            )
        return operand

    def _of_gradients(self, places: dict[int, int]) -> list[Placement]:
        """Samples that are elsewhere have parts of the gradient; what other pixels have is in the sum."""
        return [
            Partial() if dim == 0 and dim not in places else placement
            for dim, placement in zip(self.dims, self.placements(places), strict=True)
        ]

    def tokens(self, local: Tensor, rows: Tensor | None) -> Tensor:
        """Tokens or statistics: plain where the rows are, and every process has those of all samples."""
        plain = rows is not None and not isinstance(rows, DTensor)
        if plain and not self.shards_samples:
            return local
        size = torch.Size((self.x.shape[0], *local.shape[1:]))
        return self.whole(local, self.placements({0: 0}), size, torch.empty(size, device="meta").stride())

    def map(self, local: Tensor) -> DTensor:
        """A map of any number of channels, placed as this one."""
        channels = local.shape[1 if local.dim() == 4 else 2]
        like = torch.empty_strided(self.x.shape, self.x.stride(), dtype=self.x.dtype, device="meta")
        strides = empty_map_like(like, channels).stride()
        size = torch.Size(map_shape(self.x, channels))
        return self.whole(local, self.x.placements, size, strides)

    def whole(
        self, local: Tensor, placements: Sequence[Placement], size: torch.Size, strides: tuple[int, ...]
    ) -> DTensor:
        """The tensor of this size that the processes have parts of."""
        return DTensor.from_local(local, self.mesh, placements, run_check=False, shape=size, stride=strides)


def pixelwise(
    function: Callable[..., Tensor], x: Any, out_channels: int, *parameters: Tensor | None
) -> DTensor:
    """A map whose pixels are functions of x's pixels, each of one alone, and of parameters.

    Every process holds the parameters alike, and gets their gradients summed over the processes.

    Args:
        function: takes this process's part of x and the parameters.
        x: the map, a DTensor.
        out_channels: of the result.
        parameters: those of the function.
    """
    placed = PlacedMap(x)
    own = share(placed.exchange, *(placed.small("weight", each, 0) for each in parameters))
    if placed.local.numel():
        return placed.map(function(placed.local, *own))
    # Convolutions refuse maps without pixels. The graph must reach x and the parameters all the same, since
    # other processes wait for their sums.
    y = placed.local.new_empty(map_shape(placed.local, out_channels)) + placed.local.sum()
    for parameter in own:
        y = y if parameter is None else y + parameter.sum()
    return placed.map(y)


def position_table(cells: Tensor, rows: Tensor, columns: Tensor, x: Any) -> DTensor:
    """A position code's table (N, P) for a map that is sharded over its rows; each process has its own part.

    Args:
        cells: (S, S, P), of the code; the same on every process.
        rows: (S, H), without gradient.
        columns: (S, W), without gradient.
        x: the map (B, C, H, W), a DTensor.
    """
    placed = PlacedMap(x)
    if 3 in placed.dims:
        raise ValueError(
            "`x` must be sharded over its rows (dimension 2) where a position code is used, got "
            f"{x.placements}"
        )
    (own,) = share(placed.exchange, placed.small("cells", cells, 0))
    stretched = torch.einsum("sh,stp->htp", placed.slice(rows, {2: 1}), cast(Tensor, own))
    table = torch.einsum("tw,htp->hwp", columns, stretched)
    size = torch.Size((x.shape[2] * x.shape[3], cells.shape[2]))
    return placed.whole(table.flatten(0, 1), placed.placements({2: 0}), size, (size[1], 1))


def _check_map(x: DTensor) -> None:
    """Raise unless x is a map of samples of one size."""
    if x.dim() not in (3, 4):
        raise ValueError(
            f"`x` must be (B, N, C) or (B, C, H, W) where it is a DTensor, got {shape(x)}; for bags, "
            "call vt_fast.distributed.tokenize with the offsets of each process's instances"
        )
    op_checks.bags(x, None)


def tokenize(x: Any, queries: Any, **options: Any) -> Any:
    """:func:`vt_fast.functional.tokenize` of a DTensor."""
    given = dict(options)
    backend, return_stats, scale = (given.pop(name) for name in ("backend", "return_stats", "scale"))
    flag("return_stats", return_stats)
    _check_map(x)
    x, queries, *cast_operands = autocast(x, queries, given["extra_values"], given["values"])
    given["extra_values"], given["values"] = cast_operands
    placed = PlacedMap(x)
    op_checks.tokenize(Tokenize(x, queries, keep_exact=True, **given))
    channels = 1 if x.dim() == 4 else 2
    of_values = (0, None, 2, 3) if channels == 1 else (0, 1, None)
    given |= {
        "mask": placed.per_pixel("mask", given["mask"], *_of_pixels(given["mask"])),
        "pixel_bias": placed.per_pixel("pixel_bias", given["pixel_bias"], *_of_pixels(given["pixel_bias"])),
        "extra_values": placed.per_pixel("extra_values", given["extra_values"], -1, None),
        "values": placed.per_pixel("values", given["values"], *of_values),
        "scores": placed.per_pixel("scores", given["scores"], *_of_scores(given["scores"])),
        "token_bias": placed.small("token_bias", given["token_bias"], 2),
    }
    tokens, stats = functions.tokenize(
        placed.local,
        placed.small("queries", queries, 3),
        group=placed.exchange.groups,
        scale=scale,
        return_stats=True,
        backend=backend,
        **given,
    )
    tokens = placed.tokens(tokens, queries)
    return (tokens, placed.tokens(stats, queries)) if return_stats else tokens


def _of_pixels(operand: Tensor | None) -> tuple[int, ...]:
    """Dimensions of a mask or a bias of pixels, as :meth:`PlacedMap.per_pixel` takes them."""
    return (0, 2, 3) if operand is not None and operand.dim() == 3 else (0, -1)


def _of_scores(operand: Tensor | None) -> tuple[int | None, ...]:
    return (0, None, 2, 3) if operand is not None and operand.dim() == 4 else (0, None, -1)


def _residual(placed: PlacedMap, is_input: bool, residual: Tensor | None) -> Tensor | None:
    if is_input:
        return placed.local
    dims = (0, None, 2, 3) if placed.x.dim() == 4 else (0, 1, None)
    return placed.per_pixel("residual", residual, *dims)


def project(x: Any, keys: Any, values: Any, **options: Any) -> DTensor:
    """:func:`vt_fast.functional.project` for a DTensor."""
    given = dict(options)
    backend, scale, residual = (given.pop(name) for name in ("backend", "scale", "residual"))
    _check_map(x)
    is_input = residual is x
    x, keys, values, other = autocast(x, keys, values, None if is_input else residual)
    placed = PlacedMap(x)
    op_checks.project(Project(x, keys, values, residual=other, residual_is_input=is_input, **given))
    given |= {
        "scores": placed.per_pixel("scores", given["scores"], *_of_scores(given["scores"])),
        "token_bias": placed.small("token_bias", given["token_bias"], 2),
    }
    y = functions.project(
        placed.local,
        placed.small("keys", keys, 3),
        cast(Tensor, placed.small("values", values, 3)),
        group=placed.exchange.groups,
        scale=scale,
        residual=_residual(placed, is_input, other),
        backend=backend,
        **given,
    )
    return placed.map(y)


def project_tokenize(x: Any, keys: Any, values: Any, queries: Any, **options: Any) -> tuple[Any, ...]:
    """:func:`vt_fast.functional.project_tokenize` of a DTensor."""
    given = dict(options)
    names = ("backend", "scale", "query_scale", "residual", "return_map", "return_stats")
    backend, scale, query_scale, residual, return_map, return_stats = (given.pop(name) for name in names)
    _check_map(x)
    is_input, other = residual is x, None if residual is x else residual
    x, keys, values, queries, other, given["extra_values"] = autocast(
        x, keys, values, queries, other, given["extra_values"]
    )
    placed = PlacedMap(x)
    op_checks.project_tokenize(
        ProjectTokenize(
            x,
            keys,
            values,
            queries,
            residual=other,
            residual_is_input=is_input,
            return_map=return_map,
            keep_exact=True,
            **given,
        )
    )
    given |= {
        "mask": placed.per_pixel("mask", given["mask"], *_of_pixels(given["mask"])),
        "pixel_bias": placed.per_pixel("pixel_bias", given["pixel_bias"], *_of_pixels(given["pixel_bias"])),
        "extra_values": placed.per_pixel("extra_values", given["extra_values"], -1, None),
        "token_bias": placed.small("token_bias", given["token_bias"], 2),
    }
    rows = (("keys", keys), ("values", values), ("queries", queries))
    y, tokens, *stats = functions.project_tokenize(
        placed.local,
        *(cast(Tensor, placed.small(name, operand, 3)) for name, operand in rows),
        group=placed.exchange.groups,
        scale=scale,
        query_scale=query_scale,
        residual=_residual(placed, is_input, other),
        return_map=return_map,
        return_stats=return_stats,
        backend=backend,
        **given,
    )
    whole = None if y is None else placed.map(y)
    return (whole, placed.tokens(tokens, queries), *(placed.tokens(each, queries) for each in stats))


# ---- the raw ops ----

# Operands of an op by how many dimensions they have where each sample has its own; 0: always, None: never.
_BATCHED = {
    "extra_values": None,
    "offsets": None,
    "keys": 3,
    "queries": 3,
    "token_bias": 2,
}
_MAPS = ("x", "residual", "grad_map")


def _has_samples(op: Pass, name: str, spec: Any) -> bool:
    rank = _BATCHED.get(name, 3 if name == "values" and "project" in op.name else 0)
    return rank is not None and rank in (0, spec.ndim)


def _rules(op: Pass) -> Any:
    """The function that `register_sharding` wants: samples may be sharded, and rows without joint softmax."""
    arguments = op.op()._schema.arguments
    results = [result.name for result in op.op()._schema.returns]

    def rules(*args: Any, **options: Any) -> list[tuple[list[Any], list[Any]]]:
        given = dict(zip((argument.name for argument in arguments), args, strict=False))
        specs = {name: value if hasattr(value, "placements") else None for name, value in given.items()}
        _refuse_pixel_shards(op, specs)
        wanted = [True] * len(results)
        if "needs" in given:
            wanted = [
                need and given.get(name[1:]) is not None
                for need, name in zip(given["needs"], results, strict=True)
            ]
        everywhere = [None if spec is None else Replicate() for spec in specs.values()]
        found: list[tuple[list[Any], list[Any]]] = [
            ([Replicate() if each else None for each in wanted], everywhere)
        ]
        if specs.get("offsets") is not None:
            return found
        by_sample = {
            name: None if spec is None else Shard(0) if _has_samples(op, name, spec) else Replicate()
            for name, spec in specs.items()
        }
        of_results: list[Any] = []
        for name, each in zip(results, wanted, strict=True):
            whole = "needs" in given and each and by_sample[name[1:]] == Replicate()
            of_results.append(None if not each else Partial() if whole else Shard(0))
        found.append((of_results, list(by_sample.values())))
        if op.name.startswith("tokenize") and given["num_heads"] == 1 and given.get("normalize") != "tokens":
            found.append(
                _by_row(specs, [name if each else None for name, each in zip(results, wanted, strict=True)])
            )
        return found

    return rules


def _by_row(specs: dict[str, Any], results: list[str | None]) -> tuple[list[Any], list[Any]]:
    """The rule where each process has some of the rows, such as heads, and all pixels."""
    places = dict.fromkeys(("scores", "grad_tokens", "grad_stats", "tokens", "stats"), 1)
    for name, from_end in (("queries", 2), ("token_bias", 1)):
        if specs.get(name) is not None:
            places[name] = specs[name].ndim - from_end
    if "tokens" in results and specs["x"].tensor_meta.dtype.itemsize == 2:
        places["exact"] = 1  # of other dtypes it has no elements

    def of_result(name: str | None) -> Placement | None:
        if name is None:
            return None
        gradient = "tokens" not in results
        place = places.get(name[1:] if gradient else name)
        if place is not None:
            return Shard(place)
        return Partial() if gradient else Replicate()

    operands = [
        None if spec is None else Shard(places[name]) if name in places else Replicate()
        for name, spec in specs.items()
    ]
    return [of_result(name) for name in results], operands


def _refuse_pixel_shards(op: Pass, specs: dict[str, Any]) -> None:
    """PyTorch would gather such a map without a word."""
    maps = [*_MAPS, *(["values"] if op.name.startswith("tokenize") else [])]
    for name in maps:
        spec = specs.get(name)
        if spec is None:
            continue
        for placement, size in zip(spec.placements, spec.mesh.shape, strict=True):
            if placement.is_replicate():
                continue
            if placement != Shard(0):
                raise RuntimeError(
                    f"vt_fast::{op.name} takes maps that are replicated or sharded over their samples, got "
                    f"`{name}` with {spec.placements}: call vt_fast.{op.name.removesuffix('_backward')}, "
                    "which exchanges tokens and gathers no map"
                )
            if spec.shape[0] % size:
                raise RuntimeError(
                    f"vt_fast::{op.name} takes maps whose samples are sharded evenly, got `{name}` with "
                    f"{spec.shape[0]} samples for {size} processes: call "
                    f"vt_fast.{op.name.removesuffix('_backward')}"
                )


for _op in (TOKENIZE, PROJECT, PROJECT_TOKENIZE):
    for _pass in _op.passes:
        register_sharding(_pass.op())(_rules(_pass))
