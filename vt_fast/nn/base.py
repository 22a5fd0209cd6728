"""What all modules share: the choice of backend, and the two forms of a feature map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vt_fast import checks, functional
from vt_fast.backends.contract import Project
from vt_fast.layout import as_pixels, channel_count, shards_pixels, unflatten
from vt_fast.nn.frozen import Freezable
from vt_fast.nn.products import linear, matmul
from vt_fast.precision import any_autocast, autocast, autocast_enabled

REFERENCE = "reference"


class BackendModule(Freezable, nn.Module):
    """Base class of the modules that compute something: an `nn.Module` with a choice of backend.

    Args:
        backend: see :func:`set_backend`.

    Raises:
        TypeError: `backend` is neither a string nor None.
        ValueError: there is no backend of that name.
    """

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    @property
    def backend(self) -> str | None:
        """The chosen backend; "mixed" where the members of a composite module differ."""
        return self._backend

    @backend.setter
    def backend(self, backend: str | None) -> None:
        checks.backend(backend, REFERENCE)
        self._backend = backend

    def _shown_backend(self) -> str:
        """The end of `extra_repr`: the backend, unless it is the default."""
        return "" if self.backend is None else f", backend={self.backend!r}"


class CompositeModule(BackendModule):
    """Base class of the modules that consist of others: its backend is theirs."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    @property
    def backend(self) -> str | None:
        """The backend of all members, or "mixed" where they differ."""
        found = {leaf.backend for leaf in _leaves(self)}
        return found.pop() if len(found) == 1 else "mixed" if found else None

    @backend.setter
    def backend(self, backend: str | None) -> None:
        checks.backend(backend, REFERENCE)
        for member in self.children():
            set_backend(member, backend)


def set_backend(module: nn.Module, backend: str | None) -> None:
    """Set the backend of every `vt_fast` module inside `module`, itself included.

    The choice is no part of the state dict. Setting the attribute `backend` of one module has the same
    effect on it and its members.

    Args:
        module: any module, for example a whole network.
        backend: None lets `vt_fast.functional` choose; a name it knows ("torch", ...) is passed to it;
            "reference" runs the paper's equations as written, through `vt_fast.reference`, with the same
            parameters. Whether a backend can run here is checked when it runs.

    Raises:
        TypeError: `backend` is neither a string nor None.
        ValueError: there is no backend of that name.

    Example:
        >>> import torch, vt_fast
        >>> net = torch.nn.Sequential(vt_fast.nn.FilterTokenizer(8, 4))
        >>> set_backend(net, "reference")
        >>> net[0].backend
        'reference'
    """
    checks.backend(backend, REFERENCE)
    for leaf in _leaves(module):
        leaf.backend = backend


def _leaves(module: nn.Module) -> Iterator[BackendModule]:
    return (
        part
        for part in module.modules()
        if isinstance(part, BackendModule) and not isinstance(part, CompositeModule)
    )


class FactoredMap(NamedTuple):
    """A map as factors: the one that came in, and each pixel's weights of the tokens that were added to it.

    A projector adds to each pixel a sum of L rows. So the map after k of them is ``X_0 S + P_1 V_1 + ... +
    P_k V_k``, where S is the first one's shortcut. With ``M = [S; V_1; ...; V_k]`` it is ``[X_0, P_1, ...,
    P_k] M``, and the narrow map in brackets does in its place: its products with rows r are those with
    ``r M^T``, and what is pooled from it times M is what is pooled from the map.
    """

    narrow: Tensor  # [X_0, P_1, ..., P_k, 0], with channels for the weights of later projectors
    shortcut: Tensor  # S^T, (D, C)
    values: Tensor  # [V_1; ...; V_k], (B, rows, D)

    @property
    def used(self) -> int:
        """The channels of the narrow map that are not 0."""
        return self.shortcut.shape[1] + self.values.shape[1]

    def rows(self, rows: Tensor) -> Tensor:
        """Rows (L, D) or (B, L, D) for the map as rows (B, L, ...) for the narrow one."""
        given = rows.expand(self.values.shape[0], -1, -1)
        parts = torch.cat((matmul(given, self.shortcut), given @ self.values.transpose(1, 2)), -1)
        return F.pad(parts, (0, channel_count(self.narrow) - self.used))

    def pooled(self, pooled: Tensor) -> Tensor:
        """What is pooled from the narrow map, and extra values behind it, as what is pooled from the map."""
        channels, width = self.shortcut.shape[1], channel_count(self.narrow)
        of_map = linear(pooled[..., :channels], self.shortcut)
        of_map = of_map + pooled[..., channels : self.used] @ self.values
        return of_map if pooled.shape[-1] == width else torch.cat((of_map, pooled[..., width:]), -1)

    def wide(self) -> Tensor:
        """The map itself."""
        shortcut = self.shortcut.transpose(0, 1).expand(self.values.shape[0], -1, -1)
        pixels = as_pixels(self.narrow)[..., : self.used]
        return like_map(pixels @ torch.cat((shortcut, self.values), 1), self.narrow)


class PendingMap(NamedTuple):
    """The map of a projector that has not run yet.

    The next tokenizer may compute the map and its tokens in one pass. The call says whether the residual is
    its ``x``, since wrappers may make new tensors of all of them. With ``factors``, the call is about the
    narrow map, and they are those of the result.
    """

    call: Project
    backend: str | None
    factors: FactoredMap | None = None

    @property
    def channels(self) -> int:
        """D of the map."""
        values = self.call.values if self.factors is None else self.factors.values
        return values.shape[-1]

    def run(self) -> Tensor:
        """The map."""
        call = self.call
        y = functional.project(
            call.x,
            call.keys,
            call.values,
            num_heads=call.num_heads,
            token_bias=call.token_bias,
            residual=call.x if call.residual_is_input else call.residual,
            backend=self.backend,
        )
        return y if self.factors is None else self.factors._replace(narrow=y).wide()

    def tokenize(
        self, queries: Tensor, *, mask: Tensor | None, extra_values: Tensor | None, return_map: bool
    ) -> tuple[Tensor | FactoredMap | None, Tensor]:
        """The map, or None, and what `vt_fast.functional.tokenize` pools from it, in one pass."""
        call, factors = self.call, self.factors
        y, pooled = functional.project_tokenize(
            call.x,
            cast(Tensor, call.keys),
            call.values,
            queries if factors is None else factors.rows(queries),
            num_heads=call.num_heads,
            token_bias=call.token_bias,
            residual=call.x if call.residual_is_input else call.residual,
            mask=mask,
            extra_values=extra_values,
            return_map=return_map,
            backend=self.backend,
        )
        if factors is None:
            return y, pooled
        return (None if y is None else factors._replace(narrow=y)), factors.pooled(pooled)


def check_map(x: Tensor, module: nn.Module, channels: int) -> None:
    """Raise unless `x` is a feature map of `channels` channels in the dtype of the module's parameters."""
    dtype = _first_dtype(module)
    # The op checks the rest. These questions take a tenth of the careful ones' time.
    if type(x) is Tensor and x.dtype == dtype and x.dim() == 4 and x.shape[1] == channels:
        return
    checks.module_map(x, channels, dtype)


def refuse_pixel_shards(x: Tensor, where: str) -> None:
    """Raise ValueError for a DTensor whose pixels are sharded, all of which would have to be gathered."""
    if type(x) is not Tensor and shards_pixels(x):
        raise ValueError(f"`x` must not be sharded over its pixels {where}, got {x.placements}")  # type: ignore[attr-defined]


def _first_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the first parameter, None where a wrapper may cast it.

    `next(module.parameters())` takes as long as a small op.
    """
    if type(module).__module__.startswith("torch.distributed."):
        return None
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter.dtype
    for member in module._modules.values():
        dtype = None if member is None else _first_dtype(member)
        if dtype is not None:
            return dtype
    return None


def autocast_map(x: Tensor, module: CompositeModule) -> Tensor:
    """The map as the ops of `module` take it under autocast, so that one copy serves all of them.

    Otherwise each op would make a copy and keep it for the backward pass. Where a member runs the reference
    the map stays as it is.
    """
    if not torch.compiler.is_compiling() and not any_autocast():
        return x
    if not isinstance(x, Tensor) or not autocast_enabled(x.device.type):
        return x
    if any(leaf.backend == REFERENCE for leaf in _leaves(module)):
        return x
    cast: Tensor = autocast(x)[0]
    return cast


def like_map(rows: Tensor, x: Tensor) -> Tensor:
    """The rows (B, N, D) in the form of `x`: (B, D, H, W) where that is 4-D, and in its memory format."""
    if x.dim() == 3:
        return rows
    return unflatten(rows.transpose(1, 2), 2, x.shape[2:]).contiguous(memory_format=memory_format(x))


def pixel_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of (B, ..., N) over the pixels. Masked ones, of (B, N) or (B, H, W), have a weight of 0."""
    if mask is None:
        return logits.softmax(-1)
    kept = mask.reshape(mask.shape[0], *[1] * (logits.dim() - 2), -1)
    # Where all pixels of a sample are masked, the softmax is NaN.
    return torch.where(kept, torch.where(kept, logits, -torch.inf).softmax(-1), 0)


def maps_like(weights: Tensor, x: Tensor) -> Tensor:
    """Attention with pixels last, (..., N), as (..., H, W) where `x` is a 4-D map."""
    return unflatten(weights, -1, x.shape[2:]) if x.dim() == 4 else weights


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of a result that matches the 4-D map `x`."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
