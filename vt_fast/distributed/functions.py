"""The three ops over maps whose pixels are shared out among the processes of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from vt_fast import checks
from vt_fast.backends.contract import Project, ProjectTokenize, Tokenize
from vt_fast.checks import ops as op_checks
from vt_fast.distributed.exchange import Exchange, Group, first_derivative_only, share
from vt_fast.operands import autocast_unread, effective_heads, scaled
from vt_fast.ops import PROJECT, PROJECT_TOKENIZE, TOKENIZE
from vt_fast.ops.library import DifferentiableOp, plain_eager
from vt_fast.ops.tokenize import round_tokens
from vt_fast.precision import autocast

Results = tuple[Tensor, ...]


class _ShardedOp(NamedTuple):
    """An op, and what it needs from the other processes.

    Args:
        op: run on this process's pixels.
        replicated: places of the arguments that all processes hold alike.
        pool: from the op's results for some pixels to those for all.
        empty: fills the results of a process without pixels.
        check: of the arguments but x.
    """

    op: DifferentiableOp
    replicated: tuple[int, ...]
    pool: Callable[[Any, Results, Exchange], Results]
    empty: Callable[[Any, Results], None]
    check: Callable[[Any], None]


def _pool_tokens(call: Tokenize, results: Results, exchange: Exchange) -> Results:
    tokens, exact, stats = results
    exact = exact if exact.dtype != tokens.dtype else tokens
    pooled, stats = exchange.pool(exact, stats, call.normalize)
    return (*round_tokens(pooled, call.x.dtype, True), stats)


def _pool_projected(call: ProjectTokenize, results: Results, exchange: Exchange) -> Results:
    y, tokens, exact, lse = results
    exact = exact if exact.dtype != tokens.dtype else tokens
    pooled, lse = exchange.pool(exact, lse, "pixels")
    return (y, *round_tokens(pooled, call.x.dtype, True), lse)


def _no_tokens(call: Tokenize, results: Results) -> None:
    tokens, exact, stats = results
    tokens.zero_()
    exact.zero_()
    stats.fill_(-torch.inf if call.normalize == "pixels" else 0)


def _no_projected_tokens(call: ProjectTokenize, results: Results) -> None:
    _, tokens, exact, lse = results
    tokens.zero_()
    exact.zero_()
    lse.fill_(-torch.inf)


_TOKENIZE = _ShardedOp(TOKENIZE, (1, 9), _pool_tokens, _no_tokens, op_checks.tokenize)
_PROJECT = _ShardedOp(
    PROJECT,
    (1, 2, 3),
    lambda call, results, exchange: results,
    lambda call, results: None,
    op_checks.project,
)
_PROJECT_TOKENIZE = _ShardedOp(
    PROJECT_TOKENIZE,
    (1, 2, 3, 4),
    _pool_projected,
    _no_projected_tokens,
    op_checks.project_tokenize,
)


class _Sharded(torch.autograd.Function):
    """An op on the pixels of this process, with the tokens of all; see :class:`_ShardedOp`.

    The backward op takes the tokens and statistics of all pixels where it would take those of its own, so
    that it reads its part of the map once and gives the exact gradient of it.
    """

    @staticmethod
    def forward(ctx: Any, sharded: _ShardedOp, exchange: Exchange, backend: str | None, *args: Any) -> Any:
        op = sharded.op
        call = op.passes[0].record(*args)
        exchange.label += f" {call.x.dtype}"
        ctx.is_empty = _is_empty(call)
        if ctx.is_empty:
            results = op.passes[0].fake(call)
            sharded.empty(call, results)
        else:
            results = op(args, backend, plain=True, differentiable=False)
        results = sharded.pool(call, results, exchange)
        op.save(ctx, args, results)
        ctx.sharded, ctx.exchange, ctx.backend = sharded, exchange, backend
        ctx.sizes = [(arg.shape, arg.dtype, arg.device) if isinstance(arg, Tensor) else None for arg in args]
        # The rows of a softmax over all pixels sum to what arrives for their lse, whatever their bias is.
        biased = isinstance(call, Tokenize) and call.normalize == "pixels" and call.token_bias is not None
        ctx.emptied = results[2] == -torch.inf if biased else None
        return results

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        sharded, needs = ctx.sharded, ctx.needs_input_grad[3:]
        found: list[Any] = [None] * len(needs)
        if not ctx.is_empty:
            of_op = sharded.op.derivative(ctx, needs, *grads)
            found[: len(of_op)] = of_op
        else:
            # Checkpoints compute the forward pass again when this is asked for, as the other processes do.
            _ = ctx.saved_tensors
        summed = [place for place in sharded.replicated if place < len(needs) and needs[place]]
        if ctx.emptied is not None and 9 in summed:
            summed.remove(9)
            found[9] = _bias_gradient(ctx, grads[2])
        for place, needed in enumerate(needs):
            if needed and found[place] is None and (ctx.is_empty or place in summed):
                shape, dtype, device = ctx.sizes[place]
                found[place] = torch.zeros(shape, dtype=dtype, device=device)
        sums = ctx.exchange.total([found[place] for place in summed])
        for place, total in zip(summed, sums, strict=True):
            found[place] = total
        return (None, None, None, *found)


_apply: Callable[..., Any] = _Sharded.apply


def _bias_gradient(ctx: Any, grad_lse: Tensor | None) -> Tensor | None:
    """Of tokenize's ``token_bias``, which is added to lse. All processes know it without a sum."""
    if grad_lse is None:
        return None
    shape, dtype, _ = ctx.sizes[9]
    grad = grad_lse.masked_fill(ctx.emptied, 0)
    return (grad if len(shape) == 2 else grad.sum(0)).to(dtype)


def _is_empty(call: Any) -> bool:
    """Whether this process has no pixels, of a map without offsets; bags may be empty by themselves."""
    return getattr(call, "offsets", None) is None and 0 in call.x.shape[1:]


def _check_x(x: Any, offsets: Any) -> None:
    """:func:`vt_fast.checks.ops.bags`, but a map may have no pixels.

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another shape or device.
    """
    if offsets is None and isinstance(x, Tensor) and not x.is_nested and x.dim() in (3, 4):
        at = 1 if x.dim() == 4 else 2
        if x.shape[at] != 0 and 0 in x.shape[1:]:
            checks.floating("x", x)
            return
    op_checks.bags(x, offsets)


def _check(sharded: _ShardedOp, call: Any, backend: str | None) -> None:
    if not plain_eager():
        raise RuntimeError(
            "functions of vt_fast.distributed run in eager mode only, not within torch.compile, a tracer, "
            "torch.func or forward-mode AD"
        )
    if not _is_empty(call):
        sharded.op.check(call, backend)
        return
    sharded.check(call)
    checks.backend(backend)


def shared(*operands: Tensor, group: Group = None) -> tuple[Tensor, ...]:
    """Tensors that every process holds alike, for use with pixels that it does not share.

    The functions of this module do so with their own rows. Other layers that run on the pixels, such as
    linear ones, take their parameters through this, so that every process gets the whole gradient.

    Args:
        operands: for example parameters.
        group: see :func:`tokenize`.

    Returns:
        The tensors. Backward, their gradients are summed over the processes, all of them by one collective.

    Raises:
        RuntimeError: in the backward pass as in :func:`tokenize`.

    Example:
        >>> import tempfile, torch
        >>> path = "file://" + tempfile.mkstemp()[1]
        >>> torch.distributed.init_process_group("gloo", init_method=path, rank=0, world_size=1)
        >>> layer, x = torch.nn.Linear(8, 6), torch.randn(2, 100, 8)
        >>> torch.nn.functional.linear(x, *shared(layer.weight, layer.bias)).shape
        torch.Size([2, 100, 6])
        >>> torch.distributed.destroy_process_group()
    """
    found: tuple[Tensor, ...] = share(_exchange(group, "shared"), *operands)
    return found


def _exchange(group: Group, call: str, **settings: Any) -> Exchange:
    groups = list(group) if isinstance(group, Sequence) else [group]
    return Exchange(groups, f"{call} {settings}")


@overload
def tokenize(
    x: Tensor,
    queries: Tensor | None = ...,
    *,
    group: Group = ...,
    num_heads: int = ...,
    scale: float = ...,
    mask: Tensor | None = ...,
    pixel_bias: Tensor | None = ...,
    extra_values: Tensor | None = ...,
    values: Tensor | None = ...,
    scores: Tensor | None = ...,
    token_bias: Tensor | None = ...,
    normalize: str | None = ...,
    offsets: Tensor | None = ...,
    layer_norm_eps: float | None = ...,
    return_stats: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def tokenize(
    x: Tensor,
    queries: Tensor | None = ...,
    *,
    group: Group = ...,
    num_heads: int = ...,
    scale: float = ...,
    mask: Tensor | None = ...,
    pixel_bias: Tensor | None = ...,
    extra_values: Tensor | None = ...,
    values: Tensor | None = ...,
    scores: Tensor | None = ...,
    token_bias: Tensor | None = ...,
    normalize: str | None = ...,
    offsets: Tensor | None = ...,
    layer_norm_eps: float | None = ...,
    return_stats: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def tokenize(
    x: Tensor,
    queries: Tensor | None = None,
    *,
    group: Group = None,
    num_heads: int = 1,
    scale: float = 1.0,
    mask: Tensor | None = None,
    pixel_bias: Tensor | None = None,
    extra_values: Tensor | None = None,
    values: Tensor | None = None,
    scores: Tensor | None = None,
    token_bias: Tensor | None = None,
    normalize: str | None = "pixels",
    offsets: Tensor | None = None,
    layer_norm_eps: float | None = None,
    return_stats: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`vt_fast.functional.tokenize` of a map whose pixels are shared out among processes.

    Forward, the processes exchange tokens and statistics; backward, the gradients of the queries.

    Args:
        x: this process's pixels (B, N, C) or (B, C, H, W); N, H and W may differ between processes, and may
            be 0.
        queries: as in :func:`vt_fast.functional.tokenize`; the same on every process.
        group: the processes that share out the map: a process group of ``torch.distributed``, None for all,
            or a sequence of groups along which it is shared out, such as those of a machine and across.
        num_heads: see :func:`vt_fast.functional.tokenize`, as for ``scale``, ``normalize``,
            ``layer_norm_eps`` and ``return_stats``; the same on every process.
        scale: see there.
        mask: of this process's pixels, as are ``pixel_bias``, ``extra_values``, ``values`` and ``scores``.
        pixel_bias: see there.
        extra_values: see there.
        values: see there.
        scores: see there.
        token_bias: see there; the same on every process.
        normalize: see there.
        offsets: bounds of the bags among this process's pixels, where the instances of a bag may lie on
            several processes.
        layer_norm_eps: see there.
        return_stats: see there.
        backend: of this process.

    Returns:
        What :func:`vt_fast.functional.tokenize` returns for all pixels at once, the same bits on every
        process.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape, value or device, or a backend that is unknown or refuses the
            call.
        RuntimeError: the processes have made different calls, one has ended, or did not answer within the
            time-out of the group; or the backend asked for cannot run here.

    Example:
        >>> import tempfile, torch
        >>> from vt_fast import distributed
        >>> path = "file://" + tempfile.mkstemp()[1]
        >>> torch.distributed.init_process_group("gloo", init_method=path, rank=0, world_size=1)
        >>> distributed.tokenize(torch.randn(2, 100, 8), torch.randn(4, 8)).shape
        torch.Size([2, 4, 8])
        >>> torch.distributed.destroy_process_group()
    """
    exchange = _exchange(group, "tokenize", scale=scale, num_heads=num_heads, layer_norm_eps=layer_norm_eps)
    checks.flag("return_stats", return_stats)
    queries = scaled("scale", scale, queries)
    _check_x(x, offsets)
    x, queries, extra_values, values = autocast(x, queries, extra_values, values)
    call = Tokenize(
        x,
        queries,
        mask,
        pixel_bias,
        extra_values,
        num_heads,
        True,
        values,
        scores,
        token_bias,
        offsets,
        normalize,
        layer_norm_eps,
    )
    _check(_TOKENIZE, call, backend)
    heads = effective_heads(x, queries, extra_values, num_heads, normalize, scores, offsets)
    tokens, _, stats = _apply(_TOKENIZE, exchange, backend, *call._replace(num_heads=heads))
    return (tokens, stats) if return_stats else tokens


def project(
    x: Tensor,
    keys: Tensor | None,
    values: Tensor,
    *,
    group: Group = None,
    num_heads: int = 1,
    scale: float = 1.0,
    token_bias: Tensor | None = None,
    residual: Tensor | None = None,
    scores: Tensor | None = None,
    normalize: str | None = "tokens",
    offsets: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """:func:`vt_fast.functional.project` for a map whose pixels are shared out among processes.

    Forward, the processes exchange nothing: each computes its part of the map. Backward, they exchange the
    gradients of keys, values and ``token_bias``.

    Args:
        x: this process's pixels (B, N, C) or (B, C, H, W); N, H and W may differ between processes, and may
            be 0.
        keys: as in :func:`vt_fast.functional.project`; the same on every process, as are ``values`` and
            ``token_bias``.
        values: see there.
        group: see :func:`tokenize`.
        num_heads: see :func:`vt_fast.functional.project`, as for ``scale`` and ``normalize``.
        scale: see there.
        token_bias: see there.
        residual: None, this process's ``x`` itself, or a map of its pixels.
        scores: of this process's pixels.
        normalize: see there.
        offsets: bounds of the bags among this process's pixels.
        backend: of this process.

    Returns:
        The map at this process's pixels.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape, value or device, or a backend that is unknown or refuses the
            call.
        RuntimeError: in the backward pass as in :func:`tokenize`; or the backend asked for cannot run here.
    """
    exchange = _exchange(group, "project", scale=scale, num_heads=num_heads)
    residual_is_input = residual is x
    other = None if residual_is_input else residual
    keys = scaled("scale", scale, keys)
    _check_x(x, offsets)
    if keys is None and not residual_is_input:
        x, values, other = autocast_unread(x, values, other)
    else:
        x, keys, values, other = autocast(x, keys, values, other)
    call = Project(
        x, keys, values, token_bias, other, residual_is_input, num_heads, scores, offsets, normalize
    )
    _check(_PROJECT, call, backend)
    y: Tensor = _apply(_PROJECT, exchange, backend, *call)
    return y


def project_tokenize(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    *,
    group: Group = None,
    num_heads: int = 1,
    scale: float = 1.0,
    token_bias: Tensor | None = None,
    residual: Tensor | None = None,
    query_scale: float = 1.0,
    mask: Tensor | None = None,
    pixel_bias: Tensor | None = None,
    extra_values: Tensor | None = None,
    return_map: bool = True,
    return_stats: bool = False,
    backend: str | None = None,
) -> tuple[Tensor | None, Tensor] | tuple[Tensor | None, Tensor, Tensor]:
    """:func:`vt_fast.functional.project_tokenize` of a map whose pixels are shared out among processes.

    Forward, the processes exchange tokens and lse; backward, the gradients of keys, values, queries and
    ``token_bias``.

    Args:
        x: this process's pixels (B, N, C) or (B, C, H, W); N, H and W may differ between processes, and may
            be 0.
        keys: as in :func:`vt_fast.functional.project_tokenize`; the same on every process, as are ``values``,
            ``queries`` and ``token_bias``.
        values: see there.
        queries: see there.
        group: see :func:`tokenize`.
        num_heads: see there, as for ``scale`` and ``query_scale``.
        scale: see there.
        token_bias: see there.
        residual: None, this process's ``x`` itself, or a map of its pixels.
        query_scale: see there.
        mask: of this process's pixels, as are ``pixel_bias`` and ``extra_values``.
        pixel_bias: see there.
        extra_values: see there.
        return_map: see there.
        return_stats: see there.
        backend: of this process.

    Returns:
        The map at this process's pixels, or None; the tokens and, with ``return_stats``, lse of all pixels.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape, value or device, or a backend that is unknown or refuses the
            call.
        RuntimeError: as in :func:`tokenize`.
    """
    exchange = _exchange(group, "project_tokenize", scale=scale, query_scale=query_scale, num_heads=num_heads)
    checks.flag("return_map", return_map)
    checks.flag("return_stats", return_stats)
    residual_is_input = residual is x
    other = None if residual_is_input else residual
    keys, queries = scaled("scale", scale, keys), scaled("query_scale", query_scale, queries)
    _check_x(x, None)
    x, keys, values, queries, other, extra_values = autocast(x, keys, values, queries, other, extra_values)
    call = ProjectTokenize(
        x,
        keys,
        values,
        queries,
        token_bias,
        other,
        mask,
        pixel_bias,
        extra_values,
        residual_is_input,
        num_heads,
        return_map,
        True,
    )
    _check(_PROJECT_TOKENIZE, call, backend)
    found, tokens, _, lse = _apply(_PROJECT_TOKENIZE, exchange, backend, *call)
    y = found if return_map else None
    return (y, tokens, lse) if return_stats else (y, tokens)
