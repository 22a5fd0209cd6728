"""Maps that fit into no memory, chunk by chunk: tokens and their gradients, and maps that go into a sink.

A chunk is a tensor of pixels (n, C) or (B, n, C), or a dictionary of "x" and other operands of those pixels,
by their names in :mod:`vt_fast.functional`; without a B, they stand for one sample. Chunks come from any
iterable, such as a DataLoader. :class:`Chunks` cuts arrays: NumPy memory maps, HDF5 datasets, Zarr arrays,
slices of safetensors, tensors. While a chunk is computed, a thread reads the next ones, in the caller's grad
mode and without autocast.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vt_fast import checks, functional
from vt_fast.backends.contract import Tokenize
from vt_fast.checks import ops as op_checks
from vt_fast.merging import merged
from vt_fast.operands import effective_heads, scaled
from vt_fast.ops import TOKENIZE

__all__ = ["Chunks", "State", "project", "tokenize"]

# The dimension that counts pixels, from the end, of what a chunk may hold.
_PIXELS = {
    "x": -2,
    "values": -2,
    "residual": -2,
    "extra_values": -2,
    "mask": -1,
    "pixel_bias": -1,
    "scores": -1,
}


class Chunks:
    """Arrays, so many pixels at a time: an iterable of chunks that can be iterated again.

    Args:
        x: (N, C) or (B, N, C): what has a shape and can be sliced, such as ``numpy.memmap``, an HDF5 dataset,
            a Zarr array, ``safe_open(...).get_slice(name)``, or a tensor.
        pixels: of a chunk; the last one may have fewer.
        **others: more operands of the pixels, by name, such as ``mask`` or ``pixel_bias``.

    Raises:
        TypeError: an operand of another name.
        ValueError: another number of pixels than x has.

    Example:
        >>> import numpy, torch
        >>> chunks = Chunks(numpy.zeros((100, 8), numpy.float32), 30)
        >>> len(chunks), [tuple(chunk["x"].shape) for chunk in chunks]
        (4, [(30, 8), (30, 8), (30, 8), (10, 8)])
    """

    def __init__(self, x: Any, pixels: int, **others: Any) -> None:
        checks.count("pixels", pixels)
        self.arrays = {"x": x, **others}
        self.pixels, self.total = pixels, _shape(x)[-2]
        for name, array in self.arrays.items():
            if name not in _PIXELS:
                raise TypeError(f"`{name}` must be one of {', '.join(_PIXELS)}")
            found = _shape(array)[_PIXELS[name]]
            if found != self.total:
                raise ValueError(f"`{name}` must have the pixels of `x`, {self.total}, got {found}")

    def __len__(self) -> int:
        return -(-self.total // self.pixels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.pixels
        stop = min(start + self.pixels, self.total)
        return {name: _part(array, _PIXELS[name], start, stop) for name, array in self.arrays.items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(len(self)))


def _shape(array: Any) -> Sequence[int]:
    return array.shape if hasattr(array, "shape") else array.get_shape()  # type: ignore[no-any-return]


def _part(array: Any, dim: int, start: int, stop: int) -> Tensor:
    """Some pixels of an array. They are read here, and not when they are used."""
    part = array[(slice(None),) * (len(_shape(array)) + dim) + (slice(start, stop),)]
    if isinstance(part, Tensor):
        return part
    part = np.asarray(part)
    return torch.from_numpy(part if part.base is None and part.flags.writeable else part.copy())


class State(NamedTuple):
    """What :func:`tokenize` has found so far. ``torch.save(state._asdict(), path)`` keeps it.

    Args:
        tokens: of the chunks so far, in the compute dtype.
        stats: their lse or mass.
        chunks: how many there were.
        pixels: in these chunks.
        normalize: as :func:`tokenize` was told.
    """

    tokens: Tensor
    stats: Tensor
    chunks: int
    pixels: int
    normalize: str | None


class _Stream(NamedTuple):
    """How chunks are read and reported."""

    chunks: Any
    dtype: torch.dtype | None
    device: torch.device | None
    prefetch: int
    progress: bool

    @contextlib.contextmanager
    def reading(self, skip: int = 0) -> Iterator[Iterator[dict[str, Tensor]]]:
        """The chunks after the first ``skip``, as the op takes them, and on the device."""
        total = len(self.chunks) if hasattr(self.chunks, "__len__") else None
        shown = _bar(total, skip) if self.progress else None
        ahead = _Ahead(self._chunks(skip), self.prefetch)
        try:
            yield self._on_device(ahead, shown)
        finally:
            ahead.close()
            if shown is not None:
                shown.close()

    def _on_device(self, ahead: _Ahead, shown: Any) -> Iterator[dict[str, Tensor]]:
        for chunk in ahead:
            yield {
                name: value if self.device is None else value.to(self.device, non_blocking=True)
                for name, value in chunk.items()
            }
            if shown is not None:
                shown.update()

    def _chunks(self, skip: int) -> Iterator[dict[str, Tensor]]:
        if isinstance(self.chunks, Chunks):
            given: Iterable[Any] = (self.chunks[index] for index in range(skip, len(self.chunks)))
        else:
            given = (chunk for index, chunk in enumerate(self.chunks) if index >= skip)
        return (self._prepared(chunk) for chunk in given)

    def _prepared(self, chunk: Any) -> dict[str, Tensor]:
        found = dict(chunk) if isinstance(chunk, Mapping) else {"x": chunk}
        for name, value in found.items():
            if name not in _PIXELS:
                raise ValueError(f"a chunk must hold {', '.join(_PIXELS)}, got `{name}`")
            if not isinstance(value, Tensor):
                raise TypeError(f"`{name}` of a chunk must be a torch.Tensor, got {type(value).__name__}")
        if "x" not in found:
            raise ValueError(f"a chunk must hold x, got {', '.join(found) or 'nothing'}")
        x = found["x"]
        if x.dim() not in (2, 3) or 0 in x.shape:
            raise ValueError(f"`x` of a chunk must be (n, C) or (B, n, C), and n not 0, got {tuple(x.shape)}")
        given = {name: value.untyped_storage().data_ptr() for name, value in found.items()}
        for name, value in found.items():
            if value.requires_grad:
                raise ValueError(
                    f"`{name}` of a chunk must not require a gradient; `on_gradient` gets those of chunks"
                )
        if x.dim() == 2:
            found = {name: value if name == "extra_values" else value[None] for name, value in found.items()}
        for name in ("x", "values", "residual", "extra_values"):
            if name in found and self.dtype is not None:
                found[name] = found[name].to(self.dtype)
        if not isinstance(self.chunks, (Chunks, list, tuple)):
            # What makes chunks may write the next one over this one.
            for name, value in found.items():
                if value.untyped_storage().data_ptr() == given[name]:
                    found[name] = value.clone()
        if self.device is not None and self.device.type == "cuda":
            found = {name: value.pin_memory() for name, value in found.items()}
        return found


class _Ahead:
    """Iterates in a thread of its own, and keeps so many results ready."""

    def __init__(self, source: Iterator[Any], count: int) -> None:
        self.ready: queue.Queue[Any] = queue.Queue(max(count, 1))
        self.source, self.closed = source, threading.Event()
        self.differentiates = torch.is_grad_enabled()  # threads have a mode of their own
        self.thread = threading.Thread(target=self._run, name="vt_fast.streaming", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with torch.set_grad_enabled(self.differentiates):
                for item in self.source:
                    if not self._put((item, None)):
                        return
            self._put((None, StopIteration()))
        except BaseException as error:
            self._put((None, error))

    def _put(self, item: Any) -> bool:
        while not self.closed.is_set():
            try:
                self.ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Any]:
        while True:
            item, error = self.ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item

    def close(self) -> None:
        """End the thread, but do not wait for a source that gives nothing."""
        self.closed.set()
        self.thread.join(timeout=1.0)


def _bar(total: int | None, done: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        raise ModuleNotFoundError(
            "No module named 'tqdm', which `progress` needs: pip install tqdm"
        ) from None
    return tqdm(total=total, initial=done, unit="chunk")


class _Settings(NamedTuple):
    """What does not change from chunk to chunk."""

    stream: _Stream
    num_heads: int
    normalize: str | None
    layer_norm_eps: float | None
    backend: str | None
    resume: State | None
    on_chunk: Callable[[State], Any] | None
    on_gradient: Callable[[int, dict[str, Tensor]], Any] | None

    def call(self, chunk: dict[str, Tensor], queries: Tensor | None, token_bias: Tensor | None) -> Tokenize:
        """The op's arguments for a chunk, checked."""
        x = chunk["x"]
        if "residual" in chunk:
            raise ValueError("a chunk must hold no `residual` where it is pooled")
        operands = {name: chunk.get(name) for name in _PIXELS if name not in ("x", "residual")}
        call = Tokenize(
            x,
            queries,
            num_heads=self.num_heads,
            keep_exact=True,
            token_bias=token_bias,
            normalize=self.normalize,
            layer_norm_eps=self.layer_norm_eps,
            **operands,
        )
        op_checks.bags(x, None)
        TOKENIZE.check(call, self.backend)
        heads = effective_heads(
            x, queries, call.extra_values, self.num_heads, self.normalize, call.scores, None
        )
        return call._replace(num_heads=heads)


class _Streamed(torch.autograd.Function):
    """Forward, one pass over the chunks; backward, another one."""

    @staticmethod
    def forward(
        ctx: Any, settings: _Settings, queries: Tensor | None, token_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        state, dtype = settings.resume, None
        if state is not None:
            _check_state(state, settings, queries)
        with settings.stream.reading(0 if state is None else state.chunks) as chunks:
            for chunk in chunks:
                call = settings.call(chunk, queries, token_bias)
                dtype = call.x.dtype
                tokens, exact, stats = TOKENIZE(call, settings.backend, plain=True, differentiable=False)
                exact = exact if exact.dtype != tokens.dtype else tokens
                found = State(exact, stats, 1, call.x.shape[1], settings.normalize)
                state = found if state is None else _joined(state, found, settings.normalize)
                if settings.on_chunk is not None:
                    settings.on_chunk(state)
        if state is None:
            raise ValueError("`chunks` must hold at least one chunk, got none")
        ctx.settings, ctx.pixels = settings, state.pixels
        ctx.save_for_backward(queries, token_bias, state.tokens, state.stats)
        ctx.set_materialize_grads(False)
        dtype = dtype or settings.stream.dtype or state.tokens.dtype
        return state.tokens.to(dtype, copy=True), state.stats.clone()

    @staticmethod
    def backward(ctx: Any, grad_tokens: Tensor | None, grad_stats: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "vt_fast.streaming.tokenize can be differentiated only once: use no create_graph=True"
            )
        settings = ctx.settings
        queries, token_bias, tokens, stats = ctx.saved_tensors
        grad_tokens = torch.zeros_like(tokens) if grad_tokens is None else grad_tokens
        _, of_queries, of_bias = ctx.needs_input_grad
        total: dict[int, Tensor] = {}
        pixels = 0
        with settings.stream.reading() as chunks:
            for chunk in chunks:
                call = settings.call(chunk, queries, token_bias)
                to_sink = settings.on_gradient is not None
                needs = [
                    to_sink and (queries is not None or call.values is None),
                    of_queries,
                    *(
                        to_sink and each is not None
                        for each in (call.pixel_bias, call.extra_values, call.values)
                    ),
                    to_sink and call.scores is not None,
                    of_bias and settings.normalize != "pixels",
                ]
                grads = TOKENIZE.call_backward(
                    (
                        grad_tokens.to(call.x.dtype),
                        grad_stats,
                        *call[:5],
                        tokens,
                        stats,
                        call.num_heads,
                        needs,
                        *call[7:],
                    ),
                    settings.backend,
                )
                for place in (1, 6):
                    if needs[place]:
                        part = grads[place].to(stats.dtype)
                        total[place] = part if place not in total else total[place].add_(part)
                if to_sink:
                    names = ("x", "queries", "pixel_bias", "extra_values", "values", "scores")
                    found = {
                        name: grad
                        for name, grad, needed in zip(names, grads, needs, strict=False)
                        if needed and name != "queries"
                    }
                    settings.on_gradient(pixels, found)
                pixels += call.x.shape[1]
        if pixels != ctx.pixels:
            raise RuntimeError(
                f"`chunks` must hold the same pixels in the backward pass, got {pixels} after {ctx.pixels}"
            )
        if of_bias and settings.normalize == "pixels":
            # The tokens do not depend on it; it is added to lse.
            arriving = torch.zeros_like(stats) if grad_stats is None else grad_stats
            arriving = arriving.masked_fill(stats == -torch.inf, 0)
            total[6] = arriving if token_bias.dim() == 2 else arriving.sum(0)
        dqueries = total[1].to(queries.dtype) if of_queries else None
        return None, dqueries, total[6].to(token_bias.dtype) if of_bias else None


def _check_state(state: Any, settings: _Settings, queries: Tensor | None) -> None:
    """Raise unless a run can go on from a state."""
    if not isinstance(state, State):
        raise TypeError(f"`resume` must be a State, got {type(state).__name__}")
    if state.normalize != settings.normalize:
        raise ValueError(
            f"`resume` must be a state with normalize = {settings.normalize!r}, got {state.normalize!r}"
        )
    if queries is not None and state.stats.shape[-1] != queries.shape[-2]:
        raise ValueError(
            f"`resume` must be a state of {queries.shape[-2]} rows, those of `queries`, got "
            f"{state.stats.shape[-1]}"
        )
    chunks = settings.stream.chunks
    if isinstance(chunks, Chunks):
        pixels = min(state.chunks * chunks.pixels, chunks.total)
        if state.pixels != pixels or state.chunks > len(chunks):
            raise ValueError(
                f"`resume` must be a state of these chunks, the first {state.chunks} of which have {pixels} "
                f"pixels, got one of {state.pixels} pixels"
            )


def _joined(state: State, found: State, normalize: str | None) -> State:
    """Of the chunks so far and another one."""
    if state.tokens.shape != found.tokens.shape:
        raise ValueError(
            f"a chunk must have B, C and rows as those before it, whose tokens are "
            f"{tuple(state.tokens.shape)}, got tokens {tuple(found.tokens.shape)}"
        )
    if normalize == "pixels":
        pairs = zip(state[:2], found[:2], strict=True)
        tokens, stats = merged(*(torch.stack(pair) for pair in pairs))
    else:
        tokens, stats = state.tokens + found.tokens, state.stats + found.stats
    return State(tokens, stats, state.chunks + found.chunks, state.pixels + found.pixels, normalize)


def tokenize(
    chunks: Iterable[Any],
    queries: Tensor | None = None,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    token_bias: Tensor | None = None,
    normalize: str | None = "pixels",
    layer_norm_eps: float | None = None,
    return_stats: bool = False,
    prefetch: int = 2,
    progress: bool = False,
    resume: State | None = None,
    on_chunk: Callable[[State], Any] | None = None,
    on_gradient: Callable[[int, dict[str, Tensor]], Any] | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`vt_fast.functional.tokenize` of all chunks' pixels, in the memory that a few chunks take.

    The backward pass reads all chunks again. Nothing is kept of them in between.

    Args:
        chunks: see the module. They are moved to the device of the queries and cast to their dtype. Where a
            gradient is wanted, they must be iterable a second time, and be the same then, in any order.
        queries: see :func:`vt_fast.functional.tokenize`, as for the next five arguments.
        num_heads: see there.
        scale: see there.
        token_bias: see there.
        normalize: see there.
        layer_norm_eps: see there.
        return_stats: see there.
        prefetch: chunks that are read ahead.
        progress: show a bar; needs tqdm.
        resume: go on after the chunks of this state. Where they are :class:`Chunks`, those are not read.
            The results have the same bits as those of a run that was not stopped.
        on_chunk: called with the state after each chunk, for example to save it.
        on_gradient: called in the backward pass with the number of the first pixel of each chunk, and the
            gradients of its operands, by name.
        backend: None to choose (see ``python -m vt_fast info``), or a name, which never falls back.

    Returns:
        Tokens, and with ``return_stats`` also lse or the mass.

    Raises:
        TypeError: an argument, or what a chunk holds, of another type or dtype.
        ValueError: an argument, or what a chunk holds, of another shape or value; no chunk; or chunks that
            cannot be iterated again where a gradient is wanted.
        RuntimeError: the chunks of the backward pass have another number of pixels.

    Example:
        >>> import torch
        >>> x, queries = torch.randn(1000, 8), torch.randn(4, 8, requires_grad=True)
        >>> tokens = tokenize(Chunks(x, 300), queries)
        >>> tokens.sum().backward()
        >>> torch.allclose(tokens, functional.tokenize(x[None], queries), atol=1e-5)
        True
    """
    checks.flags(return_stats=return_stats, progress=progress)
    checks.count("prefetch", prefetch)
    checks.choice("normalize", normalize, ("pixels", "tokens"), optional=True)
    queries = scaled("scale", scale, queries)
    wanted = torch.is_grad_enabled() and any(
        operand is not None and operand.requires_grad for operand in (queries, token_bias)
    )
    if on_gradient is not None and not wanted:
        raise ValueError("`on_gradient` must be None where neither queries nor token_bias need a gradient")
    if wanted and isinstance(chunks, Iterator):
        raise ValueError(
            "`chunks` must be iterable a second time where a gradient is wanted, got an iterator "
            f"({type(chunks).__name__})"
        )
    stream = _stream(chunks, queries, prefetch, progress)
    settings = _Settings(stream, num_heads, normalize, layer_norm_eps, backend, resume, on_chunk, on_gradient)
    apply: Callable[..., Any] = _Streamed.apply
    tokens, stats = apply(settings, queries, token_bias)
    return (tokens, stats) if return_stats else tokens


def _stream(chunks: Iterable[Any], rows: Tensor | None, prefetch: int, progress: bool) -> _Stream:
    if not isinstance(chunks, Iterable):
        raise TypeError(f"`chunks` must be an iterable of chunks, got {type(chunks).__name__}")
    if rows is None:
        return _Stream(chunks, None, None, prefetch, progress)
    checks.floating("queries", rows)
    return _Stream(chunks, rows.dtype, rows.device, prefetch, progress)


def project(
    chunks: Iterable[Any],
    keys: Tensor,
    values: Tensor,
    sink: Any,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    token_bias: Tensor | None = None,
    add_input: bool = False,
    normalize: str | None = "tokens",
    prefetch: int = 2,
    progress: bool = False,
    skip: int = 0,
    on_chunk: Callable[[int], Any] | None = None,
    backend: str | None = None,
) -> int:
    """:func:`vt_fast.functional.project` for each chunk, into a sink. Without gradients.

    A chunk is written while the next one is computed.

    Args:
        chunks: see the module. They are moved to the device of the keys and cast to their dtype. They may
            hold ``scores`` and ``residual``.
        keys: see :func:`vt_fast.functional.project`, as for ``values``, ``num_heads``, ``scale``,
            ``token_bias`` and ``normalize``.
        values: see there.
        sink: an array (N, D), or (B, N, D) as the chunks are, that takes slices; or a function of the number
            of the first pixel and the map at the chunk's pixels, a tensor on the CPU.
        num_heads: see there.
        scale: see there.
        token_bias: see there.
        add_input: add x, the residual.
        normalize: see there.
        prefetch: chunks that are read ahead.
        progress: show a bar; needs tqdm.
        skip: how many chunks have been written before; :class:`Chunks` does not read them.
        on_chunk: called with the number of chunks that have been written, after each one.
        backend: None to choose (see ``python -m vt_fast info``), or a name, which never falls back.

    Returns:
        The number of pixels, those of skipped chunks of :class:`Chunks` included.

    Raises:
        TypeError: an argument, or what a chunk holds, of another type or dtype.
        ValueError: an argument, or what a chunk holds, of another shape or value.

    Example:
        >>> import torch
        >>> x, tokens, y = torch.randn(1000, 8), torch.randn(4, 8), torch.empty(1000, 8)
        >>> project(Chunks(x, 300), tokens, tokens, y, add_input=True)
        1000
        >>> torch.allclose(y, functional.project(x[None], tokens, tokens, residual=x[None])[0], atol=1e-6)
        True
    """
    checks.flags(add_input=add_input, progress=progress)
    checks.count("prefetch", prefetch)
    if skip and not isinstance(chunks, Chunks):
        raise ValueError("`skip` must be 0 unless `chunks` are Chunks, which know where a chunk begins")
    if not 0 <= skip <= (len(chunks) if isinstance(chunks, Chunks) else 0):
        raise ValueError(f"`skip` must be at most the number of chunks, and not negative, got {skip}")
    stream = _stream(chunks, keys, prefetch, progress)
    start = min(skip * chunks.pixels, chunks.total) if isinstance(chunks, Chunks) else 0
    done, pending = skip, None
    with torch.no_grad(), ThreadPoolExecutor(1) as writer, stream.reading(skip) as read:
        for chunk in read:
            x, residual = chunk["x"], chunk.get("residual")
            if add_input and residual is not None:
                raise ValueError("`add_input` must be False where a chunk holds a residual, got True")
            others = [name for name in chunk if name not in ("x", "residual", "scores")]
            if others:
                raise ValueError(f"a chunk must hold x, residual or scores here, got `{others[0]}`")
            y = functional.project(
                x,
                keys,
                values,
                num_heads=num_heads,
                scale=scale,
                token_bias=token_bias,
                residual=x if add_input else residual,
                scores=chunk.get("scores"),
                normalize=normalize,
                backend=backend,
            ).cpu()
            done += _written(pending, done, on_chunk)
            pending = writer.submit(_write, sink, start, y)
            start += x.shape[1]
        _written(pending, done, on_chunk)
    return start


def _written(pending: Future[None] | None, done: int, on_chunk: Callable[[int], Any] | None) -> int:
    """Wait for a chunk to be written, and report it. Returns how many there were: 1 or 0."""
    if pending is None:
        return 0
    pending.result()
    if on_chunk is not None:
        on_chunk(done + 1)
    return 1


def _write(sink: Any, start: int, y: Tensor) -> None:
    if callable(sink):
        sink(start, y)
        return
    size = tuple(_shape(sink))
    if len(size) == 2 and y.shape[0] == 1:
        y, lead = y[0], []
    elif len(size) == 3 and size[0] == y.shape[0]:
        lead = [slice(None)]
    else:
        raise ValueError(f"`sink` must be (B, N, D) with B = {y.shape[0]}, or (N, D) for B = 1, got {size}")
    stop = start + y.shape[-2]
    if stop > size[-2] or size[-1] != y.shape[-1]:
        raise ValueError(
            f"`sink` must have D = {y.shape[-1]} channels and at least N = {stop} pixels, got {size}"
        )
    where = (*lead, slice(start, stop))
    if isinstance(sink, Tensor):
        sink[where] = y
    else:
        sink[where] = (y.float() if y.dtype == torch.bfloat16 else y).numpy()  # NumPy has no bfloat16
