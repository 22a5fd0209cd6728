"""Several Visual Transformers in a row, in n + 1 passes over the map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from vt_fast import checks
from vt_fast.layout import is_dtensor
from vt_fast.nn.base import (
    REFERENCE,
    CompositeModule,
    PendingMap,
    autocast_map,
    set_backend,
)
from vt_fast.nn.build import TOKENIZERS, default_later_tokenizer
from vt_fast.nn.members import why_not_fused
from vt_fast.nn.options import BlockOptions, spelled_out
from vt_fast.nn.position import PositionCode
from vt_fast.nn.projector import Projector
from vt_fast.nn.traced import is_traced, leaf
from vt_fast.nn.visual_transformer import VisualTransformer


class VisualTransformerStack(CompositeModule):
    """n blocks in a row. Each projector and the tokenizer after it read the map once, together.

    Run one by one, n blocks read the map 2 n times and write it n times; here there are one `tokenize`,
    n - 1 `project_tokenize` and one `project`: n + 1 passes. Without the last projector there are n passes,
    the last of which does not write the map. Tokenizers that cannot be fused (clustering, pooling, and the
    dynamic one where it pools several heads) run on their own, and printing the stack says so.

    Where there is no last projector, and the first one has a shortcut to a much wider map, that map is never
    made on a CPU: the incoming one takes its place, with each pixel's weights of the tokens in more channels.
    Results differ by rounding alone, and fewer FLOPs are counted than on other devices.

    :meth:`from_parts` takes ready-made blocks.

    Args:
        channels: C of the incoming map.
        num_blocks: n.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        out_channels: D of the map from the first block on, by default `channels`.
        tokenizer: the first block's. "recurrent" and "dynamic" need tokens from outside.
        later_tokenizer: that of the other blocks, by default the paper's choice: "recurrent" after "filter"
            or "clustering", "dynamic" after "static", otherwise the same as the first.
        last_projector: False where only the tokens are wanted, as for classification.
        position: a position code for the first tokenizer; see :class:`VisualTransformer`.
        **options: of every block: `relation`, `num_heads`, `num_token_heads`, `token_groups`, `group_width`,
            `token_norm`, `bias`, `variant`, `projector_value`, `backend`, `device`, `dtype`: see
            :class:`VisualTransformer`.
            With backend="reference" the blocks run one by one, as the paper writes them.

    Raises:
        ValueError: an unknown name, or numbers that do not divide as they must.

    Example:
        >>> import torch
        >>> stack = VisualTransformerStack(64, 3, num_tokens=16)
        >>> y, tokens = stack(torch.randn(2, 64, 14, 14))
        >>> y.shape, tokens.shape, stack.passes
        (torch.Size([2, 64, 14, 14]), torch.Size([2, 16, 64]), 4)
        >>> stack = VisualTransformerStack(64, 2, token_channels=128, last_projector=False)
        >>> y, tokens = stack(torch.randn(2, 64, 14, 14))
        >>> y, tokens.shape, stack.passes
        (None, torch.Size([2, 16, 128]), 2)
    """

    @spelled_out(VisualTransformer.__init__, BlockOptions)
    def __init__(
        self,
        channels: int,
        num_blocks: int,
        *,
        num_tokens: int = 16,
        token_channels: int | None = None,
        out_channels: int | None = None,
        tokenizer: str = "filter",
        later_tokenizer: str | None = None,
        last_projector: bool = True,
        position: str | PositionCode | None = None,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        checks.count("num_blocks", num_blocks)
        checks.flag("last_projector", last_projector)
        checks.choice("tokenizer", tokenizer, TOKENIZERS)
        checks.choice("later_tokenizer", later_tokenizer, TOKENIZERS, optional=True)
        later_tokenizer = later_tokenizer or default_later_tokenizer(tokenizer)
        token_channels = channels if token_channels is None else token_channels
        out_channels = channels if out_channels is None else out_channels
        self._assemble(
            [
                VisualTransformer(
                    channels if index == 0 else out_channels,
                    num_tokens,
                    token_channels=token_channels,
                    out_channels=out_channels,
                    tokenizer=tokenizer if index == 0 else later_tokenizer,
                    position=position if index == 0 else None,
                    projector=last_projector or index < num_blocks - 1,
                    **options,
                )
                for index in range(num_blocks)
            ]
        )

    @classmethod
    def from_parts(cls, blocks: Iterable[VisualTransformer], *, backend: str | None = None) -> Self:
        """A stack of ready-made blocks.

        Args:
            blocks: in order. The first may need tokens from outside.
            backend: if given, set on all blocks; see :func:`vt_fast.nn.set_backend`.

        Raises:
            TypeError: a block is no VisualTransformer.
            ValueError: there is none, or the channels of consecutive blocks do not fit.

        Example:
            >>> blocks = [VisualTransformer(64), VisualTransformer(64, tokenizer="recurrent")]
            >>> VisualTransformerStack.from_parts(blocks).passes
            3
        """
        made = cls.__new__(cls)
        CompositeModule.__init__(made)
        made._assemble(list(blocks))
        if backend is not None:
            set_backend(made, backend)
        return made

    def _assemble(self, blocks: list[VisualTransformer]) -> None:
        if not blocks:
            raise ValueError("`blocks` must hold at least one VisualTransformer, got none")
        for index, block in enumerate(blocks):
            if not isinstance(block, VisualTransformer):
                raise TypeError(f"`blocks[{index}]` must be a VisualTransformer, got {type(block).__name__}")
        _check_channels(blocks)
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """The last map, in the form of `x` (None if the last module has no projector), and the last tokens.

        Args:
            x: (B, N, C), or (B, C, H, W) in any memory format.
            tokens: for a first tokenizer that needs them.
            mask: (B, N) or (B, H, W) bool, True where the tokens of all blocks may use a pixel; every pixel
                of the map is written. Not with backend="reference".

        Raises:
            ValueError: `x` or `tokens` has a wrong shape or is missing.
        """
        if is_traced(x):
            return cast("tuple[Tensor, Tensor]", leaf(self, x, tokens, mask=mask))
        current: Tensor | PendingMap = autocast_map(x, self)
        y: Any = None
        last = len(self.blocks) - 1
        plain = isinstance(x, Tensor) and not is_dtensor(x)
        weight_channels = self._weight_channels(x.device) if plain else 0
        for index, block in enumerate(self.blocks):
            options: dict[str, Any] = {} if mask is None else {"mask": mask}
            if why_not_fused(block, VisualTransformer) is None:
                # The next block computes the map with its tokens where the two can share a pass.
                options["defer"] = index < last
                if weight_channels and index == 0:
                    options["weight_channels"] = weight_channels
                if block.projector is None:
                    options["keep_map"] = self._reads_map_after(index)
            elif isinstance(current, PendingMap):
                current = current.run()
            before = () if tokens is None else (tokens,)
            y, tokens = block(current, *before, **options)
            current = current if y is None else y
        return y, cast(Tensor, tokens)

    def attention_maps(
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> list[Tensor]:
        """What the tokens of each block look at, one :meth:`Tokenizer.attention_maps` each."""
        maps = []
        for block in self:
            maps.append(block.attention_maps(x, tokens, mask=mask))
            y, tokens = block(x, tokens, mask=mask)
            x = x if y is None else y
        return maps

    @property
    def passes(self) -> int:
        """How often the ops read the map. The reads of k-means and of a resize are not counted.

        With backend="reference" no op runs and nothing is fused: it is then the number of tokenizers and
        projectors, each of which reads the map several times.
        """
        count = 0
        for index, block in enumerate(self):
            shared = (
                index > 0 and self[index - 1].projector is not None and self._why_not_fused(index) is None
            )
            count += (block.tokenizer is not None and not shared) + (block.projector is not None)
        return count

    def _why_not_fused(self, index: int) -> str | None:
        """Why block `index` does not share a pass with the projector before it; None where it can."""
        block, before = self[index], self[index - 1]
        for member, name in ((block, "it"), (before, "the block before it")):
            reason = why_not_fused(member, VisualTransformer)
            if reason is not None:
                return f"{name} {reason}"
        reason = block.why_not_fused()
        projector = before.projector
        if reason is not None or projector is None:
            return reason
        reason = why_not_fused(projector, Projector)
        if reason is None:
            reason = projector._why_query_not_folded()
            reason = None if reason is None else f"has a query projection that {reason}"
        if reason is not None:
            return f"the projector before it {reason}"
        backends = {block.tokenizer.backend, projector.backend}  # type: ignore[union-attr]
        if REFERENCE in backends:
            return 'backend="reference"'
        return None if len(backends) == 1 else "its backend differs from the projector's"

    def _weight_channels(self, device: torch.device) -> int:
        """How many channels hold weights of tokens, where the map is kept as factors; 0 where it is not.

        Where a stack ends in tokens and its first shortcut makes the map wider, the wide map is not needed,
        and the shortcut's product with all pixels is the largest one of the stack. The narrow map must be
        clearly narrower, and on a CPU: on GPUs it has not been measured.
        """
        *before, last = self
        if not before or device.type != "cpu" or getattr(last, "projector", None) is not None:
            return 0
        count = 0
        for index, block in enumerate(before):
            projector = getattr(block, "projector", None)
            if projector is None or block.tokenizer is None:
                return 0
            if index > 0 and projector._modules.get("shortcut") is not None:
                return 0
            reason = projector.why_no_factors() if index == 0 else projector.why_not_added()
            if reason is not None or self._why_not_fused(index + 1) is not None:
                return 0
            count += block.tokenizer.num_tokens
        first = cast(Projector, before[0].projector)
        return count if first.channels + count <= 3 * first.out_channels // 4 else 0

    def _reads_map_after(self, index: int) -> bool:
        """Whether a block after this one reads a map."""
        later = list(self)[index + 1 :]
        # A block of an unknown class does.
        parts = (getattr(block, name, block) for block in later for name in ("tokenizer", "projector"))
        return any(part is not None for part in parts)

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[VisualTransformer]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> VisualTransformer:
        return self.blocks[index]  # type: ignore[return-value]

    def extra_repr(self) -> str:
        """The number of passes, and which blocks do not share one and why, for printing."""
        if self.backend == REFERENCE:
            return "as the paper writes it: nothing is fused"
        lines = [f"{self.passes} passes over the map"]
        count = self._weight_channels(torch.device("cpu"))
        if count:
            first = cast(Projector, self[0].projector)
            narrow = f"{first.channels} channels and {count} weights of tokens"
            lines.append(f"on a CPU, {narrow} in place of {first.out_channels} channels")
        for index in range(1, len(self)):
            reason = self._why_not_fused(index)
            if reason is not None and self[index - 1].projector is not None:
                lines.append(f"blocks.{index} runs on its own: {reason}")
        return "\n".join(lines)


def _check_channels(blocks: list[VisualTransformer]) -> None:
    channels = token_channels = None
    for index, block in enumerate(blocks):
        for name in ("tokenizer", "transformer", "projector"):
            member = getattr(block, name)
            here, here_tokens = getattr(member, "channels", None), getattr(member, "token_channels", None)
            if None not in (channels, here) and here != channels:
                raise ValueError(
                    f"`blocks[{index}].{name}` must have channels = {channels}, those of its map, got {here}"
                )
            if None not in (token_channels, here_tokens) and here_tokens != token_channels:
                raise ValueError(
                    f"`blocks[{index}].{name}` must have token_channels = {token_channels}, those of its "
                    f"tokens, got {here_tokens}"
                )
            channels = here if channels is None else channels
            token_channels = here_tokens if token_channels is None else token_channels
        if block.projector is not None:
            channels = block.projector.out_channels
