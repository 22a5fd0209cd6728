"""Whether the kernels are right on this machine: ``python -m vt_fast check``.

Each backend that can run here is asked for results and gradients of 14 calls in each dtype: every op, both
layouts, and some of the options, on a small map of odd size. They are judged by the reference in float64, and
must be the same when asked for again. The test suite tries thousands of calls; this is for a machine without
a checkout.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vt_fast import backends, functional, info
from vt_fast.backends.triton import INTERPRETED
from vt_fast.reference import ops as reference
from vt_fast.testing import assert_as_accurate, least_accurate

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_BATCH, _HEIGHT, _WIDTH, _CHANNELS, _TOKENS, _HEADS = 2, 9, 7, 32, 5, 2
_SUMMED_TERMS = _BATCH * _HEIGHT * _WIDTH + _CHANNELS + 2 * _HEADS * _TOKENS

# What each op is tried with. The operands that a call has follow from these words.
_CALLS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("tokenize", ()),
    ("project", ("residual",)),
    ("project_tokenize", ("residual",)),
    ("tokenize", ("heads", "pixel_bias")),
    ("project", ("heads", "token_bias")),
    ("tokenize", ("mask", "extra_values")),
    ("project_tokenize", ("mask", "no map")),
)


@dataclass
class Outcome:
    """What became of a backend's calls in one dtype.

    ``wrong`` has a line for each result that is not right, ``refused`` the reasons of refused calls, and
    ``untried`` counts calls for which there was no time.
    """

    backend: str
    device: str
    dtype: str
    calls: int = 0
    results: int = 0
    seconds: float = 0.0
    untried: int = 0
    refused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.wrong:
            return "WRONG"
        if self.calls:
            return "right"
        return "not tried" if self.untried else "refused"


@dataclass(frozen=True)
class _Problem:
    op: str
    options: tuple[str, ...]
    nchw: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        words = (self.op, "NCHW" if self.nchw else "channels last", *self.options)
        return ", ".join(words)

    @property
    def lse(self) -> str | None:
        """The result that is the log-sum-exp, of weights that add up to one over pixels."""
        if self.op == "project":
            return None
        return "result 1" if self.op == "tokenize" or "no map" in self.options else "result 2"

    def operands(self) -> dict[str, Tensor]:
        """Random ones that the dtype can hold, in float64 on the CPU."""
        generator = torch.Generator().manual_seed(len(self.op) + len(self.options))

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype).double()

        pixels = (_BATCH, _HEIGHT * _WIDTH)
        rows = _TOKENS * (_HEADS if "heads" in self.options else 1)
        made = {"x": random(*pixels, _CHANNELS)}
        if self.op == "tokenize":
            width = _CHANNELS // (rows // _TOKENS)
            made["queries"] = random(_BATCH, rows, width) / 4
        else:
            made["keys"] = random(_BATCH, rows, _CHANNELS) / 4
            made["values"] = random(_BATCH, _TOKENS, _CHANNELS)
        if self.op == "project_tokenize":
            made["queries"] = random(_TOKENS, _CHANNELS) / 4
        if "residual" in self.options:
            made["residual"] = random(*pixels, _CHANNELS)
        if "token_bias" in self.options:
            made["token_bias"] = random(_BATCH, rows)
            made["token_bias"][:, 1] = -torch.inf
        if "pixel_bias" in self.options:
            made["pixel_bias"] = random(*pixels)
        if "extra_values" in self.options:
            made["extra_values"] = random(pixels[1], 3)
        if self.nchw:
            for name in {"x", "residual"} & made.keys():
                made[name] = made[name].mT.unflatten(2, (_HEIGHT, _WIDTH)).contiguous()
        return made

    def solve(self, function: Callable[..., Any], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        """Results and gradients by name."""
        leaves = {name: value.to(device, dtype).requires_grad_() for name, value in self.operands().items()}
        more: dict[str, Any] = {}
        if "heads" in self.options:
            more["num_heads"] = _HEADS
        if "mask" in self.options:
            kept = torch.arange(_BATCH * _HEIGHT * _WIDTH).reshape(_BATCH, -1) % 3 != 1
            more["mask"] = kept.to(device)
        if self.op != "project":
            more["return_stats"] = True
        if "no map" in self.options:
            more["return_map"] = False
        found = function(**leaves, **more)
        results = [value for value in (found if isinstance(found, tuple) else (found,)) if value is not None]
        generator = torch.Generator().manual_seed(1)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        for result in results:
            # Gradients of few bits, the same ones in each dtype.
            gradient = torch.randint(-4, 5, result.shape, generator=generator).to(device) / 4
            loss = loss + (result.double() * gradient).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        names = [f"gradient of {name}" for name in leaves]
        numbered = {f"result {index}": value.detach() for index, value in enumerate(results)}
        return numbered | dict(zip(names, gradients, strict=True))


def check(
    *, seconds: float = 50.0, report: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Try the kernels of each backend that can run here.

    Args:
        seconds: no call begins after this time; compiling GPU kernels takes most of it.
        report: called with each outcome as soon as it is known.

    Returns:
        An outcome for each backend and dtype.

    Example:
        >>> {outcome.verdict for outcome in check() if outcome.backend == "torch"}
        {'right'}
    """
    end = time.monotonic() + seconds
    outcomes = []
    for name, device in _backends():
        for dtype in _DTYPES:
            outcome = Outcome(name, device, str(dtype).removeprefix("torch."))
            _try(outcome, dtype, end)
            outcomes.append(outcome)
            report(outcome)
    return outcomes


def _backends() -> Iterator[tuple[str, str]]:
    """Those that can run here, each with the type of device that its kernels are for."""
    on_gpu = {"cuda", "triton"} if torch.cuda.is_available() and not INTERPRETED else {"cuda"}
    for name, reason in backends.report():
        if reason is None:
            yield name, "cuda" if name in on_gpu else "cpu"


def _try(outcome: Outcome, dtype: torch.dtype, end: float) -> None:
    begin = time.monotonic()
    problems = [_Problem(*call, nchw, dtype) for call in _CALLS for nchw in (False, True)]
    for problem in problems:
        if time.monotonic() > end:
            outcome.untried += 1
            continue
        try:
            _judge(outcome, problem)
        except Exception as error:  # of a kernel that does not compile, for example: it belongs in the report
            reason = str(error).partition("cannot do this call: ")[2]
            if not isinstance(error, ValueError) or not reason:
                outcome.wrong.append(f"{problem}: {info.cause(error)}")
            elif reason not in outcome.refused:
                outcome.refused.append(reason)
    outcome.seconds = round(time.monotonic() - begin, 1)


def _judge(outcome: Outcome, problem: _Problem) -> None:
    def own(**arguments: Any) -> Any:
        return getattr(functional, problem.op)(**arguments, backend=outcome.backend)

    def formulas(**arguments: Any) -> Any:
        return getattr(functional, problem.op)(**arguments, backend="torch")

    def again(**arguments: Any) -> Any:
        return getattr(reference, problem.op)(**arguments)

    dtype = problem.dtype
    found = problem.solve(own, dtype, outcome.device)
    outcome.calls += 1
    repeated = problem.solve(own, dtype, outcome.device)
    exact = problem.solve(again, torch.float64, "cpu")
    # Autograd may be exact by chance where formulas are differences of nearly equal numbers.
    plain = (again,) if outcome.backend == "torch" else (again, formulas)
    ways = [problem.solve(way, dtype, "cpu") for way in plain]
    if dtype.itemsize == 2:
        # Several roundings may have the error of one at least.
        ways.append({name: value * (1 + torch.finfo(dtype).eps) for name, value in exact.items()})
    # Tensor cores cut sums off where others round them, so that errors add up, and not their squares.
    cut = outcome.device == "cuda" and dtype == torch.float32
    for name, value in found.items():
        outcome.results += 1
        if not torch.equal(_bits(value), _bits(repeated[name])):
            outcome.wrong.append(f"{problem}: {name}: other bits when asked for again")
        try:
            assert_as_accurate(
                value.cpu(),
                exact[name],
                least_accurate(exact[name], [way[name] for way in ways]),
                name,
                lse=exact[problem.lse].abs().max().item() if problem.lse else 0.0,
                terms=(3 * _SUMMED_TERMS // 8) ** 2 if cut else _SUMMED_TERMS,
                truncates=outcome.backend == "triton" and INTERPRETED and dtype == torch.bfloat16,
            )
        except AssertionError as error:
            outcome.wrong.append(f"{problem}: {error}")


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.uint8)


def main(*, as_json: bool = False, seconds: float = 50.0, required: Sequence[str] = ()) -> int:
    """Print what :func:`check` finds below what ``info`` says.

    Returns:
        1 if anything is wrong, or no call of a required backend has run; else 0.
    """
    about = info.collect()
    if as_json:
        outcomes = check(seconds=seconds)
        rows = [asdict(outcome) | {"verdict": outcome.verdict} for outcome in outcomes]
        print(json.dumps(about | {"check": rows}, indent=2))
    else:
        print(info.render(about), end="\n\ncheck\n", flush=True)
        outcomes = check(seconds=seconds, report=lambda outcome: print(_line(outcome), flush=True))
        print()
        print(*_summary(outcomes), sep="\n")
    missing = set(required) - {outcome.backend for outcome in outcomes if outcome.calls}
    for name in sorted(missing):
        print(f'error: no call of the backend "{name}" has run', file=sys.stderr)
    return 1 if missing or any(outcome.wrong for outcome in outcomes) else 0


def _line(outcome: Outcome) -> str:
    where = f"  {outcome.backend:<6}  {outcome.device:<4}  {outcome.dtype:<8}  {outcome.verdict:<9}"
    parts = []
    if outcome.calls:
        parts.append(f"{outcome.calls} calls, {outcome.results} results, {outcome.seconds} s")
    parts += [f"refuses: {reason}" for reason in outcome.refused]
    if outcome.untried:
        parts.append(f"no time for {outcome.untried} calls: --seconds 600 gives more")
    return "\n".join([f"{where}  {'; '.join(parts)}", *(f"      {line}" for line in outcome.wrong)])


def _summary(outcomes: list[Outcome]) -> list[str]:
    wrong = sorted({outcome.backend for outcome in outcomes if outcome.wrong})
    tried = sorted({outcome.backend for outcome in outcomes if outcome.calls})
    lines = []
    if wrong:
        lines.append(f"WRONG on this machine: {', '.join(wrong)}. Please report it with all of the above.")
    right = [name for name in tried if name not in wrong]
    if right:
        untried = any(outcome.untried for outcome in outcomes if outcome.backend in right)
        as_far = ", as far as there was time" if untried else ""
        lines.append(f"Right on this machine{as_far}: {', '.join(right)}.")
    if not any(outcome.device == "cuda" and outcome.calls for outcome in outcomes):
        lines.append("No kernel has run on a GPU.")
    return lines
