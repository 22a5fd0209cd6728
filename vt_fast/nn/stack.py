"""Several Visual Transformers in a row, in n + 1 passes over the map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from vt_fast.nn.base import REFERENCE, Container, autocast_map, set_backend
from vt_fast.nn.module import VisualTransformer
from vt_fast.nn.position import PositionCode


class VisualTransformerStack(Container):
    """n modules in a row. Each projector and the tokenizer after it read the map once, together.

    Written plainly, n modules read the map 2 n times and write it n times; here there is one `tokenize`,
    n - 1 `project_tokenize` and one `project`: n + 1 passes. Without the last projector it is n passes,
    the last of which does not write the map. Tokenizers that cannot be fused (clustering, pooling, the
    dynamic one where it pools several heads) run on their own, and printing the stack says so.

    Args:
        blocks: the modules, in order. The first may need tokens from outside.
        backend: if given, set on all members; see :class:`vt_fast.nn.Module`. With "reference" the
            modules run one by one, as the paper writes them.

    Raises:
        TypeError: a member is no VisualTransformer.
        ValueError: there is none, or the channels of two that follow each other do not fit.

    Example:
        >>> import torch
        >>> stack = VisualTransformerStack.build(3, 64, num_tokens=16)
        >>> y, tokens = stack(torch.randn(2, 64, 14, 14))
        >>> y.shape, tokens.shape, stack.passes
        (torch.Size([2, 64, 14, 14]), torch.Size([2, 16, 64]), 4)
    """

    def __init__(self, blocks: Iterable[VisualTransformer], *, backend: str | None = None) -> None:
        super().__init__()
        members = list(blocks)
        if not members:
            raise ValueError("`blocks` must hold at least one VisualTransformer, got none")
        for index, block in enumerate(members):
            if not isinstance(block, VisualTransformer):
                raise TypeError(f"`blocks[{index}]` must be a VisualTransformer, got {type(block).__name__}")
        _check_channels(members)
        self.blocks = nn.ModuleList(members)
        if backend is not None:
            set_backend(self, backend)

    @classmethod
    def build(
        cls,
        depth: int,
        channels: int,
        *,
        num_tokens: int = 16,
        token_channels: int | None = None,
        out_channels: int | None = None,
        last_projector: bool = True,
        first: str = "filter",
        later: str = "recurrent",
        position: PositionCode | None = None,
        **options: Any,
    ) -> VisualTransformerStack:
        """Make the paper's arrangement: a filter-based tokenizer first, recurrent ones later.

        Args:
            depth: n modules.
            channels: C of the incoming map.
            num_tokens: L.
            token_channels: CT, by default `channels`.
            out_channels: D of the map from the first module on, by default `channels`.
            last_projector: False where only the tokens are wanted, as for classification.
            first: the first module's tokenizer.
            later: the tokenizer of the others.
            position: a position code for the first tokenizer.
            **options: passed to :meth:`VisualTransformer.build` for every module.

        Example:
            >>> import torch
            >>> stack = VisualTransformerStack.build(2, 64, token_channels=128, last_projector=False)
            >>> y, tokens = stack(torch.randn(2, 64, 14, 14))
            >>> y, tokens.shape, stack.passes
            (None, torch.Size([2, 16, 128]), 2)
        """
        if depth < 1:
            raise ValueError(f"`depth` must be at least 1, got {depth}")
        token_channels = channels if token_channels is None else token_channels
        out_channels = channels if out_channels is None else out_channels
        return cls(
            VisualTransformer.build(
                channels if index == 0 else out_channels,
                num_tokens=num_tokens,
                token_channels=token_channels,
                out_channels=out_channels,
                tokenizer=first if index == 0 else later,
                position=position if index == 0 else None,
                project=last_projector or index < depth - 1,
                **options,
            )
            for index in range(depth)
        )

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """The last map, in the form of `x` (None if the last module has no projector), and the last tokens.

        Args:
            x: (B, N, C), or (B, C, H, W) in any memory format.
            tokens: for a first tokenizer that needs them.
            mask: (B, N) or (B, H, W) bool, True where a pixel may be looked at by the tokens of every module;
                every pixel of the map is written. Not with backend="reference".

        Raises:
            ValueError: `x` or `tokens` has a wrong shape or is missing.
        """
        x = autocast_map(x, self)
        tokens = self[0].tokenize(x, tokens, mask=mask)
        # A projector that has not run yet: it waits for a tokenizer to share its pass.
        waiting = self[0].projector
        for index in range(1, len(self)):
            block = self[index]
            if waiting is not None and block.tokenizer is not None and self._reason(index) is None:
                keep = self._needs_map(index)
                y, tokens = waiting.project_tokenize(x, tokens, block.tokenizer, mask=mask, return_map=keep)
                x = x if y is None else y
                tokens = block.transformer(tokens)
            else:
                x = x if waiting is None else waiting(x, tokens)
                tokens = block.tokenize(x, tokens, mask=mask)
            waiting = block.projector
        return (None if waiting is None else waiting(x, tokens)), tokens

    def attention_maps(self, x: Tensor, tokens: Tensor | None = None) -> list[Tensor]:
        """What the tokens of each module look at, one :meth:`Tokenizer.attention_maps` each."""
        maps = []
        for block in self:
            maps.append(block.attention_maps(x, tokens))
            y, tokens = block(x, tokens)
            x = x if y is None else y
        return maps

    @property
    def passes(self) -> int:
        """How often the map is read by an op of the package (k-means and a resize come on top).

        With backend="reference" no op runs and nothing is fused: the number is then that of the tokenizers
        and projectors, each of which goes over the map several times.
        """
        count = 0
        for index, block in enumerate(self):
            shared = index > 0 and self[index - 1].projector is not None and self._reason(index) is None
            count += (block.tokenizer is not None and not shared) + (block.projector is not None)
        return count

    def _reason(self, index: int) -> str | None:
        """Why module `index` does not share a pass with the projector before it; None where it can."""
        tokenizer, projector = self[index].tokenizer, self[index - 1].projector
        if tokenizer is None:
            return "it has no tokenizer"
        if tokenizer.unfusable is not None:
            return f"its tokenizer {tokenizer.unfusable}"
        backends = {tokenizer.backend, None if projector is None else projector.backend}
        if REFERENCE in backends:
            return 'backend="reference"'
        return None if len(backends) == 1 else "its backend is another"

    def _needs_map(self, index: int) -> bool:
        """Whether anyone reads the map that module `index` gets, once its tokens are known."""
        later = list(self)[index + 1 :]
        return self[index].projector is not None or any(
            block.tokenizer is not None or block.projector is not None for block in later
        )

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[VisualTransformer]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> VisualTransformer:
        return self.blocks[index]  # type: ignore[return-value]

    def extra_repr(self) -> str:
        """The number of passes, and which modules do not share one and why, for printing."""
        if self.backend == REFERENCE:
            return "as the paper writes it: nothing is fused"
        lines = [f"{self.passes} passes over the map"]
        for index in range(1, len(self)):
            reason = self._reason(index)
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
