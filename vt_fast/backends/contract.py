"""What a backend implements, and with which arguments.

The records hold the arguments of the ops in the order of their schemas, which go on with arguments that do
not work yet and with the backend's name. They have been checked. A map is (B, N, C) or (B, C, H, W) with any
strides; an operand that the batch shares lacks its first dimension.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor


class Tokenize(NamedTuple):
    """A call of tokenize. ``keep_exact``: keep the unrounded tokens, which the backward starts from."""

    x: Tensor
    queries: Tensor
    mask: Tensor | None
    pixel_bias: Tensor | None
    extra_values: Tensor | None
    num_heads: int
    keep_exact: bool


class TokenizeBackward(NamedTuple):
    """Its backward. ``tokens`` are unrounded where those were kept; ``needs``: which gradients to compute."""

    grad_tokens: Tensor
    grad_lse: Tensor | None
    x: Tensor
    queries: Tensor
    mask: Tensor | None
    pixel_bias: Tensor | None
    extra_values: Tensor | None
    tokens: Tensor
    lse: Tensor
    num_heads: int
    needs: list[bool]


class Project(NamedTuple):
    """A call of project. The residual is x if ``residual_is_input``, else the map ``residual``, else none."""

    x: Tensor
    keys: Tensor
    values: Tensor
    token_bias: Tensor | None
    residual: Tensor | None
    residual_is_input: bool
    num_heads: int


class ProjectBackward(NamedTuple):
    """Its backward."""

    grad_map: Tensor
    x: Tensor
    keys: Tensor
    values: Tensor
    token_bias: Tensor | None
    residual_is_input: bool
    num_heads: int
    needs: list[bool]


class ProjectTokenize(NamedTuple):
    """A call of project_tokenize."""

    x: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    token_bias: Tensor | None
    residual: Tensor | None
    mask: Tensor | None
    pixel_bias: Tensor | None
    extra_values: Tensor | None
    residual_is_input: bool
    num_heads: int
    return_map: bool
    keep_exact: bool


class ProjectTokenizeBackward(NamedTuple):
    """Its backward. ``grad_map`` is None where the map was not returned or not used."""

    grad_map: Tensor | None
    grad_tokens: Tensor
    grad_lse: Tensor | None
    x: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    token_bias: Tensor | None
    residual: Tensor | None
    mask: Tensor | None
    pixel_bias: Tensor | None
    extra_values: Tensor | None
    tokens: Tensor
    lse: Tensor
    residual_is_input: bool
    num_heads: int
    needs: list[bool]


Call: TypeAlias = (
    Tokenize | TokenizeBackward | Project | ProjectBackward | ProjectTokenize | ProjectTokenizeBackward
)


class CannotRunError(RuntimeError):
    """A backend cannot run a call that it does not refuse, for a reason that only an attempt shows."""


class TokenizeGradients(NamedTuple):
    """Gradients of tokenize, None where not needed."""

    x: Tensor | None
    queries: Tensor | None
    pixel_bias: Tensor | None
    extra_values: Tensor | None


class ProjectGradients(NamedTuple):
    """Gradients of project, None where not needed. That of a residual map is the map's gradient itself."""

    x: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    token_bias: Tensor | None


class ProjectTokenizeGradients(NamedTuple):
    """Gradients of project_tokenize, None where not needed."""

    x: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    queries: Tensor | None
    token_bias: Tensor | None
    residual: Tensor | None
    pixel_bias: Tensor | None
    extra_values: Tensor | None


class Backend(Protocol):
    """A module with these functions. Callers ask :meth:`refuses` first.

    One in C++ has only the first two: its own ops ``vt_fast::<op>_<backend>`` return what the public ops do.

    Pixels that are masked, or have a bias of -inf, must not be used, whatever they hold. In
    project_tokenize's backward such a pixel counts only where a gradient of the map arrives that is not 0.

    Maps are returned in x's dtype, strided like ``torch.empty_like``. Sums, lse and gradients are computed in
    float32 (float64 for float64). lse is returned so; tokens too where the call keeps exact ones, otherwise
    they may be rounded to x's dtype, and gradients of small operands to the operand's.
    """

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or None if it can."""

    def refuses(self, call: Call) -> str | None:
        """Why it cannot do this call, or None if it can; the same for a forward and its backward.

        By what is known without data: devices, dtypes, sizes and strides. It is traced by compilers.
        """

    def tokenize(self, call: Tokenize) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, C + P) and lse (B, num_heads * L)."""

    def tokenize_backward(self, call: TokenizeBackward) -> TokenizeGradients:
        """The gradients that are needed."""

    def project(self, call: Project) -> Tensor:
        """The map."""

    def project_backward(self, call: ProjectBackward) -> ProjectGradients:
        """The gradients that are needed."""

    def project_tokenize(self, call: ProjectTokenize) -> tuple[Tensor | None, Tensor, Tensor]:
        """The map (None unless ``return_map``), tokens (B, Lq, D + P) and lse (B, Lq)."""

    def project_tokenize_backward(self, call: ProjectTokenizeBackward) -> ProjectTokenizeGradients:
        """The gradients that are needed."""
