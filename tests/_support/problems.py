"""Problems for the ops: operands of any layout, dtype and option, and their results and gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from tests._support import devices
from vt_fast import functional
from vt_fast.reference import ops as reference


def device() -> str:
    """The type of device that the backend's tests run on."""
    return devices.of(devices.backend())


def widest() -> torch.dtype:
    """The widest dtype that the backend computes in there."""
    return devices.dtypes(devices.backend())[0]


OPS = ("tokenize", "project", "project_tokenize")

# name -> a (B, N, C) or (B, C, H, W) map with that memory layout from random numbers
LAYOUTS = {
    "bnc": lambda b, c, h, w: torch.randn(b, h * w, c),
    "bnc, pixels innermost": lambda b, c, h, w: torch.randn(b, c, h * w).transpose(1, 2),
    "bnc, sliced": lambda b, c, h, w: torch.randn(b, 2 * h * w + 1, c + 3)[:, 1::2, 2:-1],
    "bnc, expanded": lambda b, c, h, w: torch.randn(1, h * w, c).expand(b, -1, -1),
    "nchw": lambda b, c, h, w: torch.randn(b, c, h, w),
    "channels_last": lambda b, c, h, w: torch.randn(b, h, w, c).permute(0, 3, 1, 2),
    "nchw, sliced": lambda b, c, h, w: torch.randn(b, c + 1, h + 2, 2 * w)[:, 1:, 1:-1, ::2],
    "channels_last, sliced": lambda b, c, h, w: torch.randn(b, h + 2, w + 1, c + 2).permute(0, 3, 1, 2)[
        :, 1:-1, 1:-1, 1:
    ],
    "nchw, transposed": lambda b, c, h, w: torch.randn(b, c, w, h).transpose(2, 3),
    "nchw, expanded": lambda b, c, h, w: torch.randn(b, 1, h, w).expand(-1, c, -1, -1),
}

# options of each op that change what it computes; "shared" is about the operands' shapes
OPTIONS = {
    "tokenize": [
        (),
        ("shared",),
        ("num_heads",),
        ("num_heads", "shared", "pixel_bias", "scale"),
        ("mask",),
        ("extra_values",),
        ("mask", "pixel_bias", "extra_values", "shared"),
        ("mask", "num_heads"),
    ],
    "project": [
        (),
        ("shared",),
        ("num_heads",),
        ("token_bias", "num_heads", "scale"),
        ("token_bias", "shared"),
        ("shared bias",),
        ("no residual",),
        ("residual", "wide"),
        ("residual", "wide", "num_heads", "token_bias", "shared"),
    ],
    "project_tokenize": [
        (),
        ("shared",),
        ("num_heads", "token_bias"),
        ("no map",),
        ("no map", "mask", "residual", "wide"),
        ("mask", "pixel_bias", "extra_values", "residual", "wide", "shared"),
        ("no residual", "pixel_bias", "shared bias", "scale"),
    ],
}

CASES = [(op, options) for op in OPS for options in OPTIONS[op]]


@dataclass
class Problem:
    """Float64 operands of one call, its options, and the gradients that arrive at its results."""

    op: str
    operands: dict[str, torch.Tensor]
    options: dict[str, object] = field(default_factory=dict)
    unused: bool = False  # whether results may not depend on an operand

    @property
    def lse(self) -> str | None:
        """The name of lse in a solution."""
        if self.op == "project_tokenize":
            return "result 2" if self.options["return_map"] else "result 1"
        return "result 1" if self.op == "tokenize" else None

    def arguments(self, operands: dict[str, torch.Tensor]) -> dict[str, object]:
        """The op's keyword arguments; where the residual is x, it is the very tensor."""
        arguments = {**operands, **self.options}
        return (
            arguments | {"residual": arguments["x"]}
            if isinstance(arguments.get("residual"), str)
            else arguments
        )

    def call(self, operands: dict[str, torch.Tensor], plain: bool) -> list[torch.Tensor]:
        """The op's results, by ``vt_fast.reference`` or by the public function."""
        op = getattr(reference, self.op) if plain else None
        result = self._own(operands) if op is None else op(**self.arguments(operands))
        results = result if isinstance(result, tuple) else (result,)
        return [tensor for tensor in results if tensor is not None]

    def _own(self, operands: dict[str, torch.Tensor]) -> object:
        """By the public function. A test is skipped where the backend "cuda" does not take its sizes.

        What is compiled cannot be skipped from within; such a test must have sizes that all backends take.
        """
        try:
            return getattr(functional, self.op)(**self.arguments(operands), backend=devices.backend())
        except ValueError as error:
            refused = devices.backend() == "cuda" and "cannot do this call" in str(error)
            if refused and not torch.compiler.is_compiling():
                pytest.skip(str(error))
            raise

    def leaves(
        self, dtype: torch.dtype | None = None, bias_dtype: torch.dtype | None = None
    ) -> dict[str, torch.Tensor]:
        """The operands rounded to ``dtype``, by default to the backend's widest, as leaves."""
        dtype = dtype or widest()
        return {
            name: rounded(value, (bias_dtype or dtype) if name.endswith("_bias") else dtype)
            for name, value in self.operands.items()
        }

    def round_operands(self, dtype: torch.dtype) -> None:
        """Give the operands values that ``dtype`` has."""
        for name, value in self.operands.items():
            if value.is_floating_point():
                self.operands[name] = rounded(rounded(value, dtype).detach(), value.dtype).detach()

    def solve(
        self, dtype: torch.dtype | None = None, plain: bool = False, bias_dtype: torch.dtype | None = None
    ) -> dict[str, torch.Tensor]:
        """Results and gradients by name, computed in ``dtype`` from operands rounded to it.

        By default in float64, or where the op does not compute in it, in its widest dtype.
        """
        if dtype is None:
            dtype = torch.float64 if plain else widest()
        operands = self.leaves(dtype, bias_dtype)
        results = self.call(operands, plain)
        generator = torch.Generator().manual_seed(1)
        loss = torch.zeros((), dtype=torch.float64)
        for result in results:
            # random cotangents, exactly representable in any dtype, so that all dtypes solve one problem
            cotangent = torch.randint(-4, 5, result.shape, generator=generator, device="cpu") / 4
            loss = loss + (result.double() * cotangent.to(result.device)).sum()
        names = [name for name, value in operands.items() if value.requires_grad]
        leaves = [operands[name] for name in names]
        grads = torch.autograd.grad(loss, leaves, allow_unused=self.unused, materialize_grads=self.unused)
        solution = {f"result {index}": result.detach() for index, result in enumerate(results)}
        return solution | {f"d{name}": grad for name, grad in zip(names, grads, strict=True)}

    def gradcheck(self, fast: bool) -> None:
        """Compare the gradients with finite differences; ``fast``: in random directions only."""
        if "token_bias" in self.operands:
            # Finite differences cannot step away from -inf.
            self.operands["token_bias"] = self.operands["token_bias"].clamp(min=-1)
        names = [name for name, value in self.operands.items() if value.is_floating_point()]
        inputs = [self.operands[name].detach().clone().requires_grad_() for name in names]

        def function(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.call(self.operands | dict(zip(names, values, strict=True)), plain=False))

        assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)


def rounded(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A leaf of the same strides in another dtype; bool and integers stay."""
    if not value.is_floating_point():
        return value
    leaf = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device)
    base = torch.as_strided(value, (_extent(value),), (1,))
    torch.as_strided(leaf, (_extent(leaf),), (1,)).copy_(base)
    return leaf.requires_grad_()


def _extent(value: torch.Tensor) -> int:
    if value.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))


def make(
    op: str,
    options: tuple[str, ...] = (),
    layout: str = "bnc",
    *,
    batch: int = 2,
    channels: int = 12,
    height: int = 5,
    width: int = 7,
    tokens: int = 5,
    queries: int = 3,
) -> Problem:
    """A random problem; ``channels`` must be a multiple of 2 for the option "num_heads"."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return _make(op, options, layout, batch, channels, height, width, tokens, queries)
    finally:
        torch.set_default_dtype(default)


def _make(
    op: str,
    options: tuple[str, ...],
    layout: str,
    batch: int,
    channels: int,
    height: int,
    width: int,
    tokens: int,
    queries: int,
) -> Problem:
    # Values of a few bits, so that rounding the operands to 16 bits leaves the problem nearly as it is.
    x = LAYOUTS[layout](batch, channels, height, width)
    out = channels + 4 if "wide" in options else channels
    num_heads = 2 if "num_heads" in options else 1
    lead = () if "shared" in options else (batch,)
    scale = channels**-0.5
    operands = {"x": x}
    settings: dict[str, object] = {}
    if op == "tokenize":
        operands["queries"] = torch.randn(*lead, num_heads * tokens, channels // num_heads) * scale
    else:
        operands["keys"] = torch.randn(*lead, num_heads * tokens, channels) * scale
        operands["values"] = torch.randn(*lead, tokens, out)
        if "token_bias" in options or "shared bias" in options:
            bias_lead = (batch,) if "token_bias" in options else ()
            operands["token_bias"] = torch.randn(*bias_lead, num_heads * tokens)
            operands["token_bias"][..., 0] = -torch.inf
        if "residual" in options:
            operands["residual"] = LAYOUTS[layout](batch, out, height, width)
    if op == "project_tokenize":
        operands["queries"] = torch.randn(*lead, queries, out) * scale
        settings["return_map"] = "no map" not in options
        if "scale" in options:
            settings["query_scale"] = 0.75
    if num_heads > 1:
        settings["num_heads"] = num_heads
    if "mask" in options:
        operands["mask"] = torch.rand(batch, height * width) < 0.7
    if "pixel_bias" in options:
        operands["pixel_bias"] = torch.randn(batch, height * width)
    if "extra_values" in options:
        operands["extra_values"] = torch.randn(height * width, 3)
    if "scale" in options:
        settings["scale"] = -1.5
    if op != "project":
        settings["return_stats"] = True
    if op != "tokenize" and not {"residual", "no residual"} & set(options):
        settings["residual"] = "x"
    return Problem(op, operands, settings)
