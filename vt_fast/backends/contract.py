"""What a backend implements, and with which arguments.

The records hold the arguments of the ops in the order of their schemas, which end with the backend's name.
They have been checked. A map is (B, N, C) or (B, C, H, W) with any strides; an operand that the batch shares
lacks its first dimension.

Rows are ``queries`` or ``keys``; where they are None, ``scores`` are the logits. There are R = num_heads * L
of them, head-major. Their width tells what a head sees (:func:`sees_block`): C / num_heads is a block of the
channels, C all of them.

With ``offsets`` (B + 1,), int32 or int64, the samples are bags of different sizes, one after the other: maps
are (total, C), ``mask`` and ``pixel_bias`` (total,), ``scores`` (R, total). A bag may be empty.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from vt_fast.layout import channel_count


class Tokenize(NamedTuple):
    """A call of tokenize. ``keep_exact``: keep the unrounded tokens, which the backward starts from.

    ``values`` is a map like x with D channels, pooled in place of x. ``normalize``: "pixels", "tokens" or
    None. With ``layer_norm_eps``, x is normalised over its channels where it is read, for logits and sums.
    """

    x: Tensor
    queries: Tensor | None
    mask: Tensor | None
    pixel_bias: Tensor | None
    extra_values: Tensor | None
    num_heads: int
    keep_exact: bool
    values: Tensor | None = None
    scores: Tensor | None = None
    token_bias: Tensor | None = None
    offsets: Tensor | None = None
    normalize: str | None = "pixels"
    layer_norm_eps: float | None = None


class TokenizeBackward(NamedTuple):
    """Its backward. ``tokens`` are unrounded where those were kept; ``needs``: which gradients to compute.

    Only ``normalize="pixels"`` reads ``tokens`` and ``stats``. Otherwise they may hold anything.
    """

    grad_tokens: Tensor
    grad_stats: Tensor | None
    x: Tensor
    queries: Tensor | None
    mask: Tensor | None
    pixel_bias: Tensor | None
    extra_values: Tensor | None
    tokens: Tensor
    stats: Tensor
    num_heads: int
    needs: list[bool]
    values: Tensor | None = None
    scores: Tensor | None = None
    token_bias: Tensor | None = None
    offsets: Tensor | None = None
    normalize: str | None = "pixels"
    layer_norm_eps: float | None = None


class Project(NamedTuple):
    """A call of project. The residual is x if ``residual_is_input``, else the map ``residual``, else none.

    ``values`` of L rows write channel blocks, one a head; of num_heads * L rows they have full width, and the
    heads are summed (:func:`sums_heads`). ``normalize``: "tokens", "exp" or None.
    """

    x: Tensor
    keys: Tensor | None
    values: Tensor
    token_bias: Tensor | None
    residual: Tensor | None
    residual_is_input: bool
    num_heads: int
    scores: Tensor | None = None
    offsets: Tensor | None = None
    normalize: str | None = "tokens"


class ProjectBackward(NamedTuple):
    """Its backward."""

    grad_map: Tensor
    x: Tensor
    keys: Tensor | None
    values: Tensor
    token_bias: Tensor | None
    residual_is_input: bool
    num_heads: int
    needs: list[bool]
    scores: Tensor | None = None
    offsets: Tensor | None = None
    normalize: str | None = "tokens"


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


def row_count(rows: Tensor | None, scores: Tensor | None, offsets: Tensor | None = None) -> int:
    """R = num_heads * L of a call."""
    if rows is not None:
        return rows.shape[-2]
    if scores is None:
        raise ValueError("rows or `scores` must be given, got None for both")
    return scores.shape[0] if offsets is not None else scores.shape[1]


def sees_block(rows: Tensor | None, channels: int, num_heads: int) -> bool:
    """Whether each head sees its own block of a map's channels, not all of them. False with one head."""
    return num_heads > 1 and rows is not None and rows.shape[-1] != channels


def sums_heads(values: Tensor, rows: int, num_heads: int) -> bool:
    """Whether project's values have a row of full width for each of the keys. False with one head."""
    return num_heads > 1 and values.shape[-2] == rows


def switches(call: Call) -> list[str]:
    """What a call has of the op family, by name, beyond the first form of the ops. For :func:`not_taken`."""
    of_tokenize = isinstance(call, Tokenize | TokenizeBackward)
    names = ["scores", "offsets", "layer_norm_eps", *(["values", "token_bias"] if of_tokenize else [])]
    found = [f"`{name}`" for name in names if getattr(call, name, None) is not None]
    usual = "pixels" if of_tokenize else "tokens"
    normalize = getattr(call, "normalize", usual)
    if normalize != usual:
        found.append("`normalize=" + ("None`" if normalize is None else f'"{normalize}"`'))
    channels, num_heads = channel_count(call.x), call.num_heads
    if isinstance(call, Tokenize | TokenizeBackward):
        if num_heads > 1 and not sees_block(call.queries, channels, num_heads):
            found.append("several heads of full width")
        return found
    if sees_block(call.keys, channels, num_heads):
        found.append("keys for channel blocks")
    if sums_heads(
        call.values,
        row_count(call.keys, getattr(call, "scores", None), getattr(call, "offsets", None)),
        num_heads,
    ):
        found.append("values that are summed over the heads")
    return found


def not_taken(call: Call, *taken: str) -> str | None:
    """Why a backend refuses a call, of whose :func:`switches` it takes these; None if it has no others."""
    return next((f"it does not take {name}" for name in switches(call) if name not in taken), None)


class CannotRunError(RuntimeError):
    """A backend cannot run a call that it does not refuse, for a reason that only an attempt shows."""


class TokenizeGradients(NamedTuple):
    """Gradients of tokenize, None where not needed."""

    x: Tensor | None
    queries: Tensor | None
    pixel_bias: Tensor | None
    extra_values: Tensor | None
    values: Tensor | None = None
    scores: Tensor | None = None
    token_bias: Tensor | None = None


class ProjectGradients(NamedTuple):
    """Gradients of project, None where not needed. That of a residual map is the map's gradient itself."""

    x: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    token_bias: Tensor | None
    scores: Tensor | None = None


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
    Rows whose ``token_bias`` is -inf must not be used either. Tokenize returns 0 for them, lse -inf or mass
    0, and gradients of 0; the same for an empty bag, and where no pixel takes part.

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
        """Tokens and statistics (B, num_heads * L): lse for "pixels", otherwise the mass.

        Tokens are (B, L, D + P) where heads see blocks, else (B, num_heads * L, D + P); D is C without
        ``values``.
        """

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
