"""The registry of cases: which op, on how large a map, in which dtype and layout.

Names only, no torch: the parent process reads this too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

OPS = ("tokenize", "project", "project_tokenize")
STACK = "stack"
DTYPES = ("fp32", "bf16")
# The most important first: a run on a GPU may be given less time than it would take.
GPU_DTYPES = ("bf16", "fp32", "fp16")
LAYOUTS = ("channels_last", "nchw")
# What lies side by side in a layout, as the Triton backend calls it.
UNIT_STRIDES = {"channels_last": "channels", "nchw": "pixels"}
FORWARD, BOTH = "forward", "forward+backward"
PASSES = (FORWARD, BOTH)


class Shape(NamedTuple):
    """A map of ``batch`` samples, ``height`` x ``width`` pixels and ``channels``, and a number of tokens.

    Example:
        >>> Shape(32, 14, 14, 256, 16).label
        '32x196x256x16'
    """

    batch: int
    height: int
    width: int
    channels: int
    tokens: int

    @property
    def pixels(self) -> int:
        """N."""
        return self.height * self.width

    @property
    def label(self) -> str:
        """B, N, C and L, as tables and the command line have them."""
        return f"{self.batch}x{self.pixels}x{self.channels}x{self.tokens}"


SHAPES = (
    Shape(32, 14, 14, 256, 16),  # the paper's stage of a ResNet-18 or 34
    Shape(32, 14, 14, 1024, 16),  # and of a ResNet-50 or 101
    Shape(1, 200, 304, 256, 8),  # its FPN's finest level at 800 x 1216
    Shape(8, 56, 56, 512, 16),
    Shape(1, 512, 512, 1024, 16),  # far larger than any cache
    Shape(8, 28, 28, 2048, 64),  # many tokens: bound by arithmetic
)
QUICK_SHAPES = (Shape(2, 6, 8, 32, 8), Shape(1, 12, 16, 64, 16))

# Three modules on the output of a ResNet-50's fourth stage.
STACK_SHAPE = Shape(32, 14, 14, 1024, 16)
QUICK_STACK_SHAPE = Shape(2, 6, 8, 64, 8)
STACK_DEPTH = 3

# On a GPU, the most important first.
GPU_SHAPES = (
    Shape(256, 14, 14, 1024, 16),  # the paper's stage of a ResNet-50 or 101
    Shape(8, 200, 304, 256, 8),  # its FPN's finest level at 800 x 1216
    Shape(256, 14, 14, 256, 16),  # and of a ResNet-18 or 34
    Shape(64, 28, 28, 512, 16),
    Shape(2, 1024, 1024, 256, 8),
    Shape(1, 1024, 1024, 1024, 16),
    Shape(32, 56, 56, 256, 32),
    Shape(64, 14, 14, 768, 64),  # channels that are no power of two
    Shape(64, 7, 7, 2048, 64),  # rows of pixels that are aligned to nothing
)
GPU_STACK_SHAPE = Shape(256, 14, 14, 1024, 16)
# How many shapes come before the stack.
_BEFORE_STACK = 3


class Case(NamedTuple):
    """One job, measured in each pass.

    ``parts``: how many modules a stack has, STACK_DEPTH if None; or in how many chunks a map is tokenized, of
    which the tokens are then merged, all at once if None.
    """

    op: str
    shape: Shape
    dtype: str
    layout: str
    parts: int | None = None

    @property
    def label(self) -> str:
        """For a progress bar.

        Example:
            >>> Case("tokenize", Shape(1, 14, 14, 256, 16), "fp32", "nchw", 4).label
            'tokenize in 4 chunks 1x196x256x16 fp32 nchw'
        """
        return f"{self.job} {self.shape.label} {self.dtype} {self.layout}"

    @property
    def job(self) -> str:
        """The op, and in how many parts."""
        if self.parts is None:
            return self.op
        return f"{self.op} of {self.parts}" if self.op == STACK else f"{self.op} in {self.parts} chunks"

    @property
    def numbers(self) -> tuple[object, ...]:
        """What cases share that have the same operands and the same truth."""
        return (self.op, self.shape, self.dtype, self.depth if self.op == STACK else None)

    @property
    def depth(self) -> int:
        """How many modules a stack has."""
        return STACK_DEPTH if self.parts is None else self.parts


def select(
    shapes: Sequence[Shape],
    stack: Shape,
    ops: Sequence[str] = (*OPS, STACK),
    dtypes: Sequence[str] = DTYPES,
    layouts: Sequence[str] = LAYOUTS,
) -> Iterator[Case]:
    """All combinations, the layouts innermost: they share one float64 truth.

    Example:
        >>> len(list(select(SHAPES, STACK_SHAPE)))
        76
    """
    jobs = [(op, shape) for shape in shapes for op in OPS if op in ops]
    jobs += [(STACK, stack)] if STACK in ops else []
    for op, shape in jobs:
        for dtype in dtypes:
            for layout in layouts:
                yield Case(op, shape, dtype, layout)


def by_importance(
    shapes: Sequence[Shape],
    stack: Shape,
    ops: Sequence[str] = (*OPS, STACK),
    dtypes: Sequence[str] = GPU_DTYPES,
    layouts: Sequence[str] = LAYOUTS,
) -> Iterator[Case]:
    """All combinations, those first that should be measured if there is not time for all.

    Example:
        >>> cases = list(by_importance(GPU_SHAPES, GPU_STACK_SHAPE))
        >>> len(cases), cases[0].label
        (168, 'tokenize 256x196x1024x16 bf16 channels_last')
    """
    jobs = [(op, shape) for shape in shapes for op in OPS if op in ops]
    if STACK in ops:
        jobs.insert(_BEFORE_STACK * sum(op in ops for op in OPS), (STACK, stack))
    for dtype in sorted(dtypes, key=GPU_DTYPES.index):
        for op, shape in jobs:
            for layout in layouts:
                yield Case(op, shape, dtype, layout)
