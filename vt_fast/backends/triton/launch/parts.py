"""What programs leave behind of tokens and their statistics, and how it becomes one."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.triton import library
from vt_fast.backends.triton.arithmetic import ceil_div, power_of_two
from vt_fast.backends.triton.launcher import launch
from vt_fast.backends.triton.plan import Cut
from vt_fast.kernels.combine import combine
from vt_fast.precision import compute_dtype


class Tokens:
    """Tokens (B, rows, num_heads * channels + columns) and lse (B, num_heads * rows), and the parts of them."""

    def __init__(
        self, x: Tensor, num_heads: int, rows: int, channels: int, columns: int, cut: Cut, *, exact: bool
    ) -> None:
        sums = compute_dtype(x.dtype)
        self.num_heads, self.rows, self.channels, self.columns, self.parts = (
            num_heads,
            rows,
            channels,
            columns,
            cut.parts,
        )
        self.tokens = x.new_empty(
            (x.shape[0], rows, num_heads * channels + columns), dtype=sums if exact else x.dtype
        )
        self.lse = x.new_empty((x.shape[0], num_heads * rows), dtype=sums)
        self.limit = library.limit(x.dtype)
        self._pieces: tuple[Tensor, ...] = ()
        if not cut.direct:
            shape = (x.shape[0] * num_heads, cut.parts, rows)
            self._pieces = (
                x.new_empty((*shape, channels + columns), dtype=sums),
                *(x.new_empty(shape, dtype=sums) for _ in range(3)),
                x.new_empty(shape[:2], dtype=torch.int32),
            )

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What a kernel writes: tokens, lse, and four statistics, which a single part does not need."""
        if not self._pieces:
            return (self.tokens, self.lse, self.lse, self.lse, self.lse, self.lse)
        sums, *statistics = self._pieces
        return (sums, self.lse, *statistics)

    def combined(self) -> tuple[Tensor, Tensor]:
        """Tokens and lse, after the kernel."""
        if self._pieces:
            width = self.channels + self.columns
            block = min(256, power_of_two(width, 16))
            launch(
                combine,
                (ceil_div(width, block) * self.rows * self._pieces[0].shape[0],),
                *self._pieces,
                self.tokens,
                self.lse,
                self.parts,
                HEADS=self.num_heads,
                TOKENS=self.rows,
                CHANNELS=self.channels,
                COLUMNS=self.columns,
                AT_ONCE=min(16, power_of_two(self.parts)),
                BLOCK=block,
                LIMIT=self.limit,
            )
        return self.tokens, self.lse
