"""The reference on maps that do not fit into memory in float64: by parts of samples and of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import vt_fast
from vt_fast.reference import ops as reference


@dataclass
class Part:
    """Some samples and pixels, and what the reference has for them."""

    samples: slice
    pixels: slice
    y: Tensor | None
    dx: Tensor


class InParts:
    """An op's results and gradients by the reference in a dtype.

    Tokens of parts are put together by vt_fast.merge, whose gradients are those that arrive at the parts.
    Small operands are (rows, channels), shared by all samples.
    """

    def __init__(
        self, op: str, x: Tensor, small: dict[str, Tensor], arriving: dict[str, Tensor], dtype: torch.dtype
    ) -> None:
        self.op, self.x, self.arriving, self.dtype = op, x, arriving, dtype
        self.small = {name: value.detach().to(dtype).requires_grad_() for name, value in small.items()}
        self.gradients = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in small.items()}
        self.tokens: list[Tensor] = []

    def results(self, pixels: Tensor) -> dict[str, Tensor]:
        """The reference's results for pixels (B, n, C), by name."""
        if self.op == "tokenize":
            tokens, lse = reference.tokenize(pixels, **self.small, return_stats=True)
            return {"tokens": tokens, "lse": lse}
        if self.op == "project":
            return {"y": reference.project(pixels, **self.small, residual=pixels)}
        y, tokens, lse = reference.project_tokenize(pixels, **self.small, residual=pixels, return_stats=True)
        return {"y": y, "tokens": tokens, "lse": lse}

    def parts(self, samples: int, pixels: int) -> Iterator[Part]:
        """Go through the map once, ``samples`` and ``pixels`` at a time; sums are complete after that."""
        whole = pixels_of(self.x)
        for first in range(0, whole.shape[0], samples):
            some = whole[first : first + samples]
            rows = slice(first, first + some.shape[0])
            columns = [
                slice(start, min(start + pixels, some.shape[1])) for start in range(0, some.shape[1], pixels)
            ]
            pooled = self.pool(some, rows, columns) if "tokens" in self.arriving else None
            for index, column in enumerate(columns):
                yield self.part(
                    some, rows, column, None if pooled is None else (pooled[0][index], pooled[1][index])
                )

    def pool(self, some: Tensor, rows: slice, columns: list[slice]) -> tuple[Tensor, Tensor]:
        """Tokens of these samples, and the gradients that arrive at the tokens and lse of their parts."""
        with torch.no_grad():
            each = [self.results(some[:, column].to(self.dtype)) for column in columns]
        tokens = torch.stack([part["tokens"] for part in each]).requires_grad_()
        lse = torch.stack([part["lse"] for part in each]).requires_grad_()
        merged, _ = vt_fast.merge(tokens, lse)
        self.tokens.append(merged.detach())
        return torch.autograd.grad(merged, (tokens, lse), self.arriving["tokens"][rows].to(self.dtype))

    def part(self, some: Tensor, rows: slice, column: slice, pooled: tuple[Tensor, Tensor] | None) -> Part:
        """The map, its gradient, and what the part adds to the others."""
        x = some[:, column].to(self.dtype).detach().requires_grad_()
        found = self.results(x)
        grads = []
        for name in found:
            if name == "y":
                grads.append(pixels_of(self.arriving["y"])[rows, column].to(self.dtype))
            else:
                grads.append(pooled[["tokens", "lse"].index(name)])
        dx, *small = torch.autograd.grad(list(found.values()), [x, *self.small.values()], grads)
        for name, grad in zip(self.small, small, strict=True):
            self.gradients[name] += grad
        y = found["y"].detach() if "y" in found else None
        return Part(rows, column, y, dx)


def pixels_of(feature_map: Tensor) -> Tensor:
    """(B, N, C), a view."""
    return feature_map if feature_map.dim() == 3 else feature_map.flatten(2).transpose(1, 2)
