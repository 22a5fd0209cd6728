"""The contenders of a case: usable backends of vt_fast, and the peers, which users would write or install.

A peer gets the 4-D map as it lies, and may return its own map in any strides; transposes and copies that it
wants are its own cost. All of its operands (:func:`benchmarks.inputs.draw`) get gradients.

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

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention

import vt_fast
from benchmarks import attention
from benchmarks.attention import EAGER, FOLDED, PACKAGES, TRANSPOSED, Code, Results, by, by_package, sdpa
from benchmarks.processes import UsageError
from benchmarks.results import BACKEND, OURS, PEER
from benchmarks.shapes import LAYOUTS, OPS, STACK, Case
from vt_fast import backends
from vt_fast.backends.contract import Tokenize

# Its error in the same dtype is the measure of all others': it works on the very operands that ours gets.
YARDSTICKS = {"tokenize": "eager", "project": "folded", "project_tokenize": "folded"}
_ANY = ("cpu", "cuda")
_AUTOTUNE = "autotune "


@dataclass
class Contender:
    """One that takes part in a case. ``role`` is one of :mod:`benchmarks.results`."""

    name: str
    role: str
    compiled: bool = False  # its first call compiles, which is limited in time
    timed: bool = True  # False for a yardstick that was not asked for; it is checked and not timed


@dataclass
class Entrant(Contender):
    """A contender in an op: its function, operands, and the code that memory and FLOPs are counted of."""

    function: Code = field(kw_only=True)
    operands: tuple[str, ...] = field(kw_only=True)
    plain: Code = field(kw_only=True)


class Peer(NamedTuple):
    """Code for one op. ``compiled`` makes what is called of a peer that is compiled."""

    name: str
    code: Code
    compiled: Callable[[], Code] | None = None
    layouts: Sequence[str] = LAYOUTS
    devices: Sequence[str] = _ANY


def _peers(op: str) -> Iterator[Peer]:
    """All of an op, plain ones first: they tell whether another is worth compiling."""
    styles = {"eager": EAGER, "folded": FOLDED, "transposed": TRANSPOSED}
    written = {name: style.code(op) for name, style in styles.items() if (op, name) != ("tokenize", "folded")}
    yield from (Peer(name, code) for name, code in written.items())
    yield Peer("sdpa", by(sdpa(), copies=False).code(op))
    yield Peer("sdpa flash", by(sdpa(SDPBackend.FLASH_ATTENTION)).code(op))
    yield Peer("sdpa math", by(sdpa(SDPBackend.MATH), copies=False).code(op))
    yield Peer("sdpa efficient", by(sdpa(SDPBackend.EFFICIENT_ATTENTION)).code(op), devices=("cuda",))
    yield Peer("sdpa cudnn", by(sdpa(SDPBackend.CUDNN_ATTENTION)).code(op), devices=("cuda",))
    yield from (Peer(name, by(by_package(name)).code(op), devices=("cuda",)) for name in PACKAGES)
    few = {"transposed": LAYOUTS if op == "tokenize" else ("nchw",)}
    for name, code in written.items():
        yield Peer(f"compile {name}", code, _compiled(code), few.get(name, LAYOUTS))
    if op != "project_tokenize":  # two compiled FlexAttentions in one op take very long
        counted = by(sdpa()).code(op)  # FlexAttention takes no fake tensors
        compiled = partial(torch.compile, flex_attention, fullgraph=True, dynamic=False)
        yield Peer("compile flex", counted, lambda: by(attention.flex(compiled())).code(op), devices=("cpu",))
        yield Peer("compile flex", counted, _compiled(by(attention.flex()).code(op)), devices=("cuda",))
    for name, code in written.items():
        tuned = _compiled(code, "max-autotune-no-cudagraphs")
        yield Peer(f"{_AUTOTUNE}{name}", code, tuned, few.get(name, LAYOUTS), ("cuda",))


def _compiled(code: Code, mode: str | None = None) -> Callable[[], Code]:
    # Dynamo counts what it has compiled, and looks for it, by code object, which the styles share.
    own = FunctionType(code.__code__.replace(), code.__globals__, closure=code.__closure__)
    return partial(torch.compile, own, fullgraph=True, dynamic=False, mode=mode)


PEERS: dict[str, tuple[Peer, ...]] = {op: tuple(_peers(op)) for op in OPS}


def names(device: str, *, plain: bool = False, tuned: bool = False) -> list[str]:
    """Of all peers that take part on a device; ``plain``: not those that are compiled.

    Example:
        >>> names("cpu", plain=True)
        ['eager', 'transposed', 'sdpa', 'sdpa flash', 'sdpa math', 'folded']
    """
    found = [peer for peers in PEERS.values() for peer in peers if device in peer.devices]
    found = [peer for peer in found if tuned or not peer.name.startswith(_AUTOTUNE)]
    return list(dict.fromkeys(peer.name for peer in found if not (plain and peer.compiled)))


def chosen(
    wanted: Sequence[str] | None, device: str, *, plain: bool = False, tuned: bool = False
) -> list[str]:
    """The peers of the command line, each once: names, or "plain"; None for all, or all of these options.

    Raises:
        UsageError: one is not known.
    """
    known = names(device, tuned=True)
    if wanted is None or list(wanted) == ["plain"]:
        wanted = names(device, plain=plain or wanted is not None)
    unknown = ", ".join(name for name in wanted if name not in known)
    if unknown:
        raise UsageError(f"--peers must be names that python -m benchmarks list prints, got {unknown}")
    return list(dict.fromkeys([*wanted, *(name for name in known if tuned and name.startswith(_AUTOTUNE))]))


def listing() -> Iterator[str]:
    """All peers, op by op, as ``peers.txt`` has them."""
    for op, peers in PEERS.items():
        yield from (f"{op}: {peer.name} ({', '.join((*peer.devices, *peer.layouts))})" for peer in peers)
    yield from ("tokenize in chunks: eager", "tokenize in chunks: eager in chunks")
    yield from (f"{STACK}: eager", f"{STACK} of one, up to 64 channels: folded")


def usable_backends(device: torch.device | str = "cpu") -> dict[str, str]:
    """The backends that can run here on tensors of the device, and their roles: the first one is ours."""
    x = torch.empty(1, 1, 16, device=device)
    probe = Tokenize(x, x[0], None, None, None, 1, False)
    found = [name for name, reason in backends.report() if reason is None]
    found = [name for name in found if backends.load(name).refuses(probe) is None]
    return {name: BACKEND if index else OURS for index, name in enumerate(found)}


def operands_of(op: str, *, dense: bool = False) -> tuple[str, ...]:
    """What a function of an op takes; ``dense``: with the query projection on the pixels.

    Example:
        >>> operands_of("project")
        ('x', 'keys', 'values')
    """
    keys = ("query_weight", "token_keys") if dense else ("keys",)
    return ("x", *(() if op == "tokenize" else (*keys, "values")), *(() if op == "project" else ("queries",)))


def entrants(case: Case, wanted: Collection[str] | None, device: torch.device) -> list[Entrant]:
    """The yardstick, ours, vt_fast's other backends, and the wanted peers (None: all).

    The yardstick is always there, because none passes the gate without it; unwanted, it is not timed.
    """
    op, yardstick = case.op, YARDSTICKS[case.op]
    absent = attention.absent(device.type == "cuda")
    peers = [
        peer
        for peer in PEERS[op]
        if device.type in peer.devices and case.layout in peer.layouts and peer.name not in absent
    ]
    if case.parts is not None:
        peers = [peer for peer in peers if peer.name == yardstick]
        peers.append(Peer("eager in chunks", in_chunks(_eager_part, _merge, case.parts)))
    found = []
    for peer in sorted(peers, key=lambda peer: peer.name != yardstick):
        listed = wanted is None or peer.name.removesuffix(" in chunks") in wanted
        if listed or peer.name == yardstick:
            function = peer.code if peer.compiled is None else peer.compiled()
            taken = operands_of(op, dense=peer.name.endswith("eager"))
            compiled = peer.compiled is not None
            found.append(
                Entrant(peer.name, PEER, compiled, listed, function=function, operands=taken, plain=peer.code)
            )
    for place, (name, role) in enumerate(usable_backends(device).items(), 1):
        code = ours(case, name)
        mine = Entrant(f"vt_fast {name}", role, function=code, operands=operands_of(op), plain=code)
        found.insert(place, mine)
    return found


def ours(case: Case, backend: str) -> Code:
    """A case by vt_fast in one backend, as a function of the operands."""
    if case.parts is not None:
        part: Any = partial(vt_fast.tokenize, return_stats=True, backend=backend)
        return in_chunks(part, lambda *parts: vt_fast.merge(*parts)[0], case.parts)

    def tokenize(x: Tensor, queries: Tensor) -> Results:
        return (vt_fast.tokenize(x, queries, backend=backend),)

    def project(x: Tensor, keys: Tensor, values: Tensor) -> Results:
        return (vt_fast.project(x, keys, values, residual=x, backend=backend),)

    def project_tokenize(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Results:
        y, tokens = vt_fast.project_tokenize(x, keys, values, queries, residual=x, backend=backend)
        return (tokens,) if y is None else (y, tokens)

    codes: dict[str, Code] = {"tokenize": tokenize, "project": project, "project_tokenize": project_tokenize}
    return codes[case.op]


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


def in_chunks(part: Callable[..., Results], merge: Callable[[Tensor, Tensor], Tensor], count: int) -> Code:
    """In chunks of rows. ``part``: (chunk, queries) -> tokens and lse, which ``merge`` gets stacked."""

    def tokenize(x: Tensor, queries: Tensor) -> Results:
        rows = -(-x.shape[2] // count)
        chunks: Any = (x,) if count == 1 else _Rows.apply(x, rows)  # type: ignore[no-untyped-call]
        found = [part(chunk, queries) for chunk in chunks]
        return (merge(*map(torch.stack, zip(*found, strict=True))),)

    return tokenize


def _eager_part(chunk: Tensor, queries: Tensor) -> Results:
    pixels = EAGER.see(chunk)
    logits = pixels @ queries.transpose(-2, -1)
    lse = torch.logsumexp(logits.to(torch.promote_types(chunk.dtype, torch.float32)), 1)
    return torch.softmax(logits, 1).transpose(1, 2) @ pixels, lse


def _merge(tokens: Tensor, lse: Tensor) -> Tensor:
    return (torch.softmax(lse, 0).to(tokens.dtype)[..., None] * tokens).sum(0)
