"""Random calls: shapes, strides, options, dtypes, threads, instruction sets and needed gradients."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from tests._support.drawing import EXCLUSIVE, OPTIONAL
from tests._support.instruction_sets import supported
from tests._support.problems import Problem, make

# Mostly small, but also around the pixels of a tile or a chunk.
SMALL = st.integers(1, 4)
COUNTS = st.one_of(SMALL, st.integers(5, 35))
HEIGHTS = st.one_of(SMALL, st.integers(5, 20))
WIDTHS = st.one_of(SMALL, st.integers(5, 20))
MOST = 60_000  # elements of a map times tokens


@dataclass
class Layout:
    """A tensor's memory layout: the order of its dimensions, the gaps in each, and which are expanded."""

    order: tuple[int, ...]
    gaps: tuple[int, ...]
    expanded: tuple[bool, ...]
    offset: int

    def place(self, value: torch.Tensor) -> torch.Tensor:
        """The values in this layout, in memory full of NaN; expanded dimensions repeat their first entry."""
        strides, step = [0] * value.dim(), 1
        for dim, gap in zip(reversed(self.order), self.gaps, strict=True):
            if not self.expanded[dim]:
                strides[dim] = step * gap
                step = strides[dim] * value.shape[dim]
        memory = torch.full((step + self.offset + 1,), 1, dtype=value.dtype)
        if value.is_floating_point():
            memory.fill_(torch.nan)
        view = memory.as_strided(value.shape, strides, self.offset)
        first = value
        for dim, expanded in enumerate(self.expanded):
            first = first.narrow(dim, 0, 1) if expanded else first
        view.as_strided(first.shape, strides, self.offset).copy_(first)
        return view


@dataclass
class Case:
    """A call: its operands, its options and how it runs."""

    op: str
    options: tuple[str, ...]
    sizes: dict[str, int]
    flat: bool
    seed: int
    dtype: torch.dtype
    bias_dtype: torch.dtype
    instruction_set: str
    threads: int
    differentiated: list[str]
    used: list[int]
    junk: tuple[str, float, float] | None
    layouts: dict[str, Layout] = field(default_factory=dict)

    def problem(self) -> Problem:
        """Its operands in float64, rounded to their dtypes, in their layouts."""
        torch.manual_seed(self.seed)
        problem = make(self.op, self.options, "bnc" if self.flat else "nchw", **self.sizes)
        for name, value in problem.operands.items():
            if value.is_floating_point():
                value = value.to(self.bias_dtype if name.endswith("_bias") else self.dtype).double()
            problem.operands[name] = self.layouts[name].place(value)
        if self.junk is not None:
            name, place, number = self.junk
            value = problem.operands[name]
            index = [round(place * (size - 1)) for size in value.shape]
            value[tuple(index)] = number
        return problem


def options_of(draw: Any, op: str) -> tuple[str, ...]:
    """Any compatible options."""
    options = draw(st.sets(st.sampled_from(OPTIONAL[op])))
    if EXCLUSIVE[op][0] in options:
        options.discard(EXCLUSIVE[op][1])
    if "residual" in options and draw(st.booleans()):
        options.add("wide")
    return tuple(sorted(options))


def any_layout(choose: random.Random, dims: int) -> Layout:
    """Often dense, otherwise any order and gaps, and sometimes a dimension of stride 0."""
    if choose.random() < 0.3:
        return Layout(tuple(range(dims)), (1,) * dims, (False,) * dims, 0)
    order = tuple(choose.sample(range(dims), dims))
    gaps = tuple(choose.choice((1, 1, 1, 2, 3)) for _ in range(dims))
    expanded = tuple(choose.random() < 0.08 for _ in range(dims))
    return Layout(order, gaps, expanded, choose.randrange(4))


@st.composite
def cases(draw: Any, op: str, dtype: torch.dtype) -> Case:
    """Any case of an op in a dtype."""
    options = options_of(draw, op)
    sizes = {
        "batch": draw(SMALL),
        "channels": draw(COUNTS),
        "height": draw(HEIGHTS),
        "width": draw(WIDTHS),
        "tokens": draw(COUNTS),
        "queries": draw(COUNTS),
    }
    if "num_heads" in options:
        sizes["channels"] += sizes["channels"] % 2
    work = sizes["channels"] * max(sizes["tokens"], sizes["queries"]) * sizes["batch"]
    sizes["height"] = max(1, min(sizes["height"], MOST // (work * sizes["width"])))
    seed = draw(st.integers(0, 2**32 - 1))
    case = Case(
        op,
        options,
        sizes,
        flat=draw(st.booleans()),
        seed=seed,
        dtype=dtype,
        bias_dtype=draw(st.sampled_from([dtype, torch.promote_types(dtype, torch.float32)])),
        instruction_set=draw(st.sampled_from(supported())),
        threads=draw(st.sampled_from([1, 2, 3])),
        differentiated=[],
        used=[],
        junk=None,
    )
    torch.manual_seed(seed)
    operands = make(op, options, "bnc" if case.flat else "nchw", **sizes).operands
    choose = random.Random(seed)
    case.layouts = {name: any_layout(choose, value.dim()) for name, value in operands.items()}
    floating = [name for name, value in operands.items() if value.is_floating_point()]
    case.differentiated = sorted(draw(st.sets(st.sampled_from(floating), min_size=1)))
    results = {"tokenize": 2, "project": 1, "project_tokenize": 2 if "no map" in options else 3}[op]
    case.used = sorted(draw(st.sets(st.integers(0, results - 1), min_size=1)))
    if draw(st.integers(0, 3)) == 3:
        number = draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
        case.junk = (draw(st.sampled_from(floating)), draw(st.sampled_from([0.0, 0.4, 1.0])), number)
    return case
