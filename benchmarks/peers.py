"""The contenders of a case: each usable backend of vt_fast, and the peers, which users would write or install.

A peer gets the 4-D map as it lies, and may return its own map in any strides; transposes and copies that it
wants are its own cost. The names of a function's arguments say which operands it takes
(:func:`benchmarks.inputs.draw`), and all of them get gradients.

- ``eager``: the paper as written, pixel by pixel. In the projector the query projection is a dense C x C
  matrix on the pixels, as equation 5 has it; our op takes its place.
- ``folded``: the same with that projection folded into the keys, on the operands that our op gets.
- ``transposed``: folded, and channel by channel: what suits an NCHW map.
- ``sdpa``: PyTorch's fused attention, on folded operands, in the implementation that PyTorch chooses;
  ``sdpa flash`` and others: forced to one implementation.
- ``compile ...``: torch.compile of the above for these very shapes. Compile time is not counted. Where there
  is a projector, ``transposed`` is compiled for NCHW alone, to save time.
- ``compile flex``: FlexAttention, compiled together with the rest of the op, or alone on a CPU, for which
  Inductor cannot compile the rest with it. There it has no backward.
- ``autotune ...``: torch.compile with ``mode="max-autotune-no-cudagraphs"``, on request, since it takes long.
- ``flash-attn``, ``xformers``, ``ffpa``, ``natten``: packages that are installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention

import vt_fast
from benchmarks.attention import PACKAGES, Code, Results, by_attention, by_package, flex, installed, sdpa
from benchmarks.processes import UsageError
from benchmarks.results import BACKEND, OURS, PEER
from benchmarks.shapes import LAYOUTS, OPS, STACK, Case
from vt_fast import backends
from vt_fast.backends.contract import Tokenize


class Contender(NamedTuple):
    """One that takes part in a case.

    ``role``: results.OURS, BACKEND or PEER. ``compiled``: its first call compiles, which is limited in time.
    ``timed``: False for a yardstick that was not asked for; it is checked and not timed.
    """

    name: str
    role: str
    compiled: bool = False
    timed: bool = True


class Peer(NamedTuple):
    """Code for one op. ``compiled`` makes what is called of a peer that is compiled.

    Memory and FLOPs are predicted of ``code``.
    """

    name: str
    code: Code
    compiled: Callable[[], Code] | None = None
    layouts: Sequence[str] = LAYOUTS
    devices: Sequence[str] = ("cpu", "cuda")


class Entrant(NamedTuple):
    """A contender's function, the operands that it takes, and its code before it was compiled."""

    contender: Contender
    function: Code
    operands: tuple[str, ...]
    plain: Code


def _pixels(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _map(pixels: Tensor, like: Tensor) -> Tensor:
    feature_map: Tensor = pixels.transpose(1, 2).unflatten(2, like.shape[2:])
    return feature_map


def _pool(pixels: Tensor, queries: Tensor) -> Tensor:
    weights = torch.softmax(pixels @ queries.transpose(-2, -1), dim=1)
    return weights.transpose(1, 2) @ pixels


def _pool_transposed(x: Tensor, queries: Tensor) -> Tensor:
    channels = x.flatten(2)
    return torch.softmax(queries @ channels, dim=-1) @ channels.transpose(1, 2)


def tokenize(x: Tensor, queries: Tensor) -> Results:
    """T = softmax_N(X Q^T)^T X."""
    return (_pool(_pixels(x), queries),)


def tokenize_transposed(x: Tensor, queries: Tensor) -> Results:
    """The same with weights (B, L, N)."""
    return (_pool_transposed(x, queries),)


def project(x: Tensor, query_weight: Tensor, token_keys: Tensor, values: Tensor) -> Results:
    """X + softmax_L((X W_Q) K^T) V, the query projection on the pixels."""
    pixels = _pixels(x)
    weights = torch.softmax((pixels @ query_weight) @ token_keys.transpose(1, 2), dim=-1)
    return (_map(pixels + weights @ values, x),)


def project_folded(x: Tensor, keys: Tensor, values: Tensor) -> Results:
    """X + softmax_L(X K^T) V."""
    pixels = _pixels(x)
    return (_map(pixels + torch.softmax(pixels @ keys.transpose(1, 2), dim=-1) @ values, x),)


def project_transposed(x: Tensor, keys: Tensor, values: Tensor) -> Results:
    """The same with weights (B, L, N)."""
    channels = x.flatten(2)
    weights = torch.softmax(keys @ channels, dim=1)
    return ((channels + values.transpose(1, 2) @ weights).unflatten(2, x.shape[2:]),)


def both(x: Tensor, query_weight: Tensor, token_keys: Tensor, values: Tensor, queries: Tensor) -> Results:
    """Project, then tokenize."""
    (y,) = project(x, query_weight, token_keys, values)
    return y, _pool(_pixels(y), queries)


def both_folded(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Results:
    """Project, then tokenize, on folded operands."""
    (y,) = project_folded(x, keys, values)
    return y, _pool(_pixels(y), queries)


def both_transposed(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Results:
    """The same with weights (B, L, N)."""
    (y,) = project_transposed(x, keys, values)
    return y, _pool_transposed(y, queries)


# By op, plain ones: eager, folded and transposed.
_PLAIN: dict[str, dict[str, Code]] = {
    "tokenize": {"eager": tokenize, "transposed": tokenize_transposed},
    "project": {"eager": project, "folded": project_folded, "transposed": project_transposed},
    "project_tokenize": {"eager": both, "folded": both_folded, "transposed": both_transposed},
}
_SDPA = {
    "sdpa": (None, ("cpu", "cuda")),
    "sdpa flash": (SDPBackend.FLASH_ATTENTION, ("cpu", "cuda")),
    "sdpa math": (SDPBackend.MATH, ("cpu", "cuda")),
    "sdpa efficient": (SDPBackend.EFFICIENT_ATTENTION, ("cuda",)),
    "sdpa cudnn": (SDPBackend.CUDNN_ATTENTION, ("cuda",)),
}
# Two compiled FlexAttentions in one op take very long.
_FLEX_OPS = ("tokenize", "project")
_AUTOTUNE = "autotune "


def _compiled(code: Code, mode: str | None = None) -> Callable[[], Code]:
    return partial(torch.compile, code, fullgraph=True, dynamic=False, mode=mode)


def _flex_on_cpu(op: str) -> Code:
    return by_attention(flex(torch.compile(flex_attention, fullgraph=True, dynamic=False)))[op]


def _peers(op: str) -> Iterator[Peer]:
    """All of an op, plain ones first: they tell whether another is worth compiling."""
    for name, code in _PLAIN[op].items():
        yield Peer(name, code)
    for name, (backend, devices) in _SDPA.items():
        copies = backend not in (None, SDPBackend.MATH)
        yield Peer(name, by_attention(sdpa(backend), copies=copies)[op], devices=devices)
    for package in PACKAGES:
        yield Peer(package, by_attention(by_package(package))[op], devices=("cuda",))
    compiled = [
        Peer(name, code, layouts=("nchw",) if name == "transposed" and op != "tokenize" else LAYOUTS)
        for name, code in _PLAIN[op].items()
    ]
    for peer in compiled:
        yield peer._replace(name=f"compile {peer.name}", compiled=_compiled(peer.code))
    if op in _FLEX_OPS:
        counted = by_attention(sdpa())[op]  # fake tensors cannot be given to FlexAttention
        yield Peer("compile flex", counted, partial(_flex_on_cpu, op), devices=("cpu",))
        whole = _compiled(by_attention(flex())[op])
        yield Peer("compile flex", counted, whole, devices=("cuda",))
    for peer in compiled:
        tuned = _compiled(peer.code, "max-autotune-no-cudagraphs")
        yield peer._replace(name=f"{_AUTOTUNE}{peer.name}", compiled=tuned, devices=("cuda",))


PEERS: dict[str, tuple[Peer, ...]] = {op: tuple(_peers(op)) for op in OPS}
# The peer that does in plain PyTorch what ours does in chunks.
IN_CHUNKS = "eager in chunks"
# Its error in the same dtype is the measure of all others': it works on the very operands that ours gets.
YARDSTICKS = {"tokenize": "eager", "project": "folded", "project_tokenize": "folded", STACK: "eager"}


def names(device: str, *, plain: bool = False, tuned: bool = False) -> list[str]:
    """Of all peers that take part on a device; ``plain``: not those that are compiled.

    Example:
        >>> names("cpu", plain=True)
        ['eager', 'transposed', 'sdpa', 'sdpa flash', 'sdpa math', 'folded']
    """
    return list(
        dict.fromkeys(
            peer.name
            for peers in PEERS.values()
            for peer in peers
            if device in peer.devices
            and not (plain and peer.compiled)
            and (tuned or not peer.name.startswith(_AUTOTUNE))
        )
    )


def chosen(
    wanted: Sequence[str] | None, device: str, *, plain: bool = False, tuned: bool = False
) -> list[str]:
    """The peers of the command line, each once: names, or "plain" for all that are not compiled.

    Args:
        wanted: None for all, or for all that are not compiled where ``plain`` is set.
        device: "cpu" or "cuda".
        plain: see ``wanted``.
        tuned: besides these, those that are compiled with tuned kernels.

    Raises:
        UsageError: one is not known.
    """
    if wanted is None or list(wanted) == ["plain"]:
        wanted = names(device, plain=plain or wanted is not None)
    unknown = [name for name in wanted if name not in names(device, tuned=True)]
    if unknown:
        raise UsageError(
            f"--peers must be names that python -m benchmarks list prints, got {', '.join(unknown)}"
        )
    more = [name for name in names(device, tuned=True) if tuned and name.startswith(_AUTOTUNE)]
    return list(dict.fromkeys([*wanted, *more]))


def listing() -> Iterator[str]:
    """All peers, op by op, as ``peers.txt`` has them."""
    for op in OPS:
        for peer in PEERS[op]:
            yield f"{op}: {peer.name} ({', '.join(peer.devices)}; {', '.join(peer.layouts)})"
    yield f"tokenize in chunks: {YARDSTICKS['tokenize']}"
    yield f"tokenize in chunks: {IN_CHUNKS}"
    yield f"{STACK}: {YARDSTICKS[STACK]}"


def usable_backends(device: torch.device | str = "cpu") -> list[str]:
    """The backends that can run here on tensors of the device, ours first."""
    x = torch.empty(1, 1, 16, device=device)
    probe = Tokenize(x, x[0], None, None, None, 1, False)
    return [
        name
        for name, reason in backends.report()
        if reason is None and backends.load(name).refuses(probe) is None
    ]


def operand_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Which operands a function takes.

    Example:
        >>> operand_names(tokenize)
        ('x', 'queries')
    """
    return tuple(inspect.signature(function).parameters)


def entrants(case: Case, wanted: Collection[str] | None, device: torch.device) -> list[Entrant]:
    """The yardstick, ours, vt_fast's other backends, and the wanted peers (None: all) of an op.

    The yardstick is always there, because none passes the gate without it; unwanted, it is not timed.
    """
    yardstick = YARDSTICKS[case.op]
    others = []
    for number, backend in enumerate(usable_backends(device)):
        function = ours(case.op, backend) if case.parts is None else ours_in_chunks(backend, case.parts)
        role = BACKEND if number else OURS
        others.append(_entrant(Contender(f"vt_fast {backend}", role), function))
    peers = [peer for peer in PEERS[case.op] if device.type in peer.devices and case.layout in peer.layouts]
    if case.parts is not None:
        whole = next(peer for peer in peers if peer.name == yardstick)
        peers = [whole, Peer(IN_CHUNKS, eager_in_chunks(case.parts))]
    absent = installed(device.type == "cuda").absent
    first: list[Entrant] = []
    for peer in peers:
        listed = wanted is None or (yardstick if peer.name == IN_CHUNKS else peer.name) in wanted
        if peer.name in absent or not (listed or peer.name == yardstick):
            continue
        contender = Contender(peer.name, PEER, peer.compiled is not None, listed)
        entrant = _entrant(contender, peer.code, peer.compiled)
        (first if peer.name == yardstick else others).append(entrant)
    return first + others


def _entrant(contender: Contender, code: Code, compiled: Callable[[], Code] | None = None) -> Entrant:
    return Entrant(contender, code if compiled is None else compiled(), operand_names(code), code)


def ours(op: str, backend: str) -> Code:
    """vt_fast's op in one backend, as a function of the operands."""

    def tokenize(x: Tensor, queries: Tensor) -> Results:
        return (vt_fast.tokenize(x, queries, backend=backend),)

    def project(x: Tensor, keys: Tensor, values: Tensor) -> Results:
        return (vt_fast.project(x, keys, values, residual=x, backend=backend),)

    def project_tokenize(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Results:
        y, tokens = vt_fast.project_tokenize(x, keys, values, queries, residual=x, backend=backend)
        return (tokens,) if y is None else (y, tokens)

    codes: dict[str, Code] = {"tokenize": tokenize, "project": project, "project_tokenize": project_tokenize}
    return codes[op]


class _Rows(torch.autograd.Function):
    """Parts of whole rows, without a copy; a backward copies their gradients to where they belong.

    That of ``split`` would call ``torch.cat``, which in channels_last takes many times as long as a copy, and
    would hide what is measured.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int) -> tuple[Tensor, ...]:
        """The parts; the last one may be lower."""
        ctx.save_for_backward(x)
        ctx.rows = rows
        return tuple(part.view_as(part) for part in x.split(rows, dim=2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of x, in its layout."""
        (x,) = ctx.saved_tensors
        found = torch.empty_like(x)
        for part, gradient in zip(found.split(ctx.rows, dim=2), gradients, strict=True):
            part.copy_(gradient)
        return found, None


def chunks(x: Tensor, count: int) -> Sequence[Tensor]:
    """A map (B, C, H, W) in at most ``count`` parts of whole rows, without a copy.

    Example:
        >>> [tuple(part.shape) for part in chunks(torch.zeros(1, 8, 5, 3), 2)]
        [(1, 8, 3, 3), (1, 8, 2, 3)]
    """
    if count == 1:
        return (x,)
    parts: Sequence[Tensor] = _Rows.apply(x, -(-x.shape[2] // count))  # type: ignore[no-untyped-call]
    return parts


def ours_in_chunks(backend: str, count: int) -> Code:
    """:func:`vt_fast.tokenize` of each chunk and :func:`vt_fast.merge`."""

    def tokenize(x: Tensor, queries: Tensor) -> Results:
        found = [
            vt_fast.tokenize(part, queries, return_stats=True, backend=backend) for part in chunks(x, count)
        ]
        tokens, _ = vt_fast.merge(*map(torch.stack, zip(*found, strict=True)))
        return (tokens,)

    return tokenize


def eager_in_chunks(count: int) -> Code:
    """The same in plain PyTorch."""

    def tokenize(x: Tensor, queries: Tensor) -> Results:
        tokens, lse = [], []
        for part in chunks(x, count):
            pixels = _pixels(part)
            logits = pixels @ queries.transpose(-2, -1)
            tokens.append(torch.softmax(logits, 1).transpose(1, 2) @ pixels)
            lse.append(torch.logsumexp(logits.to(torch.promote_types(x.dtype, torch.float32)), 1))
        shares = torch.softmax(torch.stack(lse), 0).to(x.dtype)
        return ((shares[..., None] * torch.stack(tokens)).sum(0),)

    return tokenize
