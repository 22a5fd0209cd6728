"""What is measured: ops, shapes and the models that have them, dtypes, layouts, and series of sizes.

Names only, no torch: the parent process reads this too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

OPS = ("tokenize", "project", "project_tokenize")
STACK = "stack"
DTYPES = ("fp32", "bf16")
# The most important first: a run on a GPU may be given less time than it would take.
GPU_DTYPES = ("bf16", "fp32", "fp16")
LAYOUTS = ("channels_last", "nchw")
FORWARD, BOTH = "forward", "forward+backward"
PASSES = (FORWARD, BOTH)
THREADS = (1, 2)


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
    def sizes(self) -> tuple[int, int, int, int]:
        """B, N, C and L."""
        return self.batch, self.height * self.width, self.channels, self.tokens

    @property
    def label(self) -> str:
        """B, N, C and L, as tables and the command line have them."""
        return "x".join(map(str, self.sizes))


class Case(NamedTuple):
    """One job, measured in each pass.

    ``parts``: the modules of a stack, 3 if None; or the chunks in which a map is tokenized, None for all at
    once.
    """

    op: str
    shape: Shape
    dtype: str
    layout: str
    parts: int | None = None

    @property
    def job(self) -> str:
        """The op, and in how many parts.

        Example:
            >>> Case("tokenize", Shape(1, 14, 14, 256, 16), "fp32", "nchw", 4).job
            'tokenize in 4 chunks'
        """
        if self.parts is None:
            return self.op
        return f"{self.op} of {self.parts}" if self.op == STACK else f"{self.op} in {self.parts} chunks"

    @property
    def label(self) -> str:
        """All of it."""
        return f"{self.job} {self.shape.label} {self.dtype} {self.layout}"

    @property
    def fields(self) -> dict[str, str]:
        """What its rows have by the names of :class:`benchmarks.results.Row`."""
        return {"case": self.job, "shape": self.shape.label, "dtype": self.dtype, "layout": self.layout}

    def spec(
        self, peers: Sequence[str] | None = None, passes: Sequence[str] = PASSES, **fields: str
    ) -> dict[str, Any]:
        """For a plan: the case, the peers that take part (None: all), the passes, and fields of its rows."""
        return {"kind": "op", "case": list(self), "peers": peers, "passes": passes, "fields": fields}

    @classmethod
    def of(cls, spec: dict[str, Any]) -> Case:
        """The case of a :meth:`spec`, which may have come through JSON."""
        op, shape, dtype, layout, parts = spec["case"]
        return cls(op, Shape(*shape), dtype, layout, parts)


SHAPES = (
    Shape(32, 14, 14, 256, 16),
    Shape(32, 14, 14, 1024, 16),
    Shape(1, 200, 304, 256, 8),
    Shape(8, 56, 56, 512, 16),
    Shape(1, 512, 512, 1024, 16),
    Shape(8, 28, 28, 2048, 64),
)
STACK_SHAPE = Shape(32, 14, 14, 1024, 16)
# The most important first.
GPU_SHAPES = (
    Shape(256, 14, 14, 1024, 16),
    Shape(8, 200, 304, 256, 8),
    Shape(256, 14, 14, 256, 16),
    Shape(64, 28, 28, 512, 16),
    Shape(2, 1024, 1024, 256, 8),
    Shape(1, 1024, 1024, 1024, 16),
    Shape(32, 56, 56, 256, 32),
    Shape(64, 14, 14, 768, 64),
    Shape(64, 7, 7, 2048, 64),
)
GPU_STACK_SHAPE = Shape(256, 14, 14, 1024, 16)
QUICK_SHAPES = (Shape(2, 6, 8, 32, 8), Shape(1, 12, 16, 64, 16))
QUICK_STACK_SHAPE = Shape(2, 6, 8, 64, 8)
# So small that computing takes a microsecond or two.
OVERHEAD_SHAPES = (Shape(1, 4, 4, 32, 4), Shape(1, 14, 14, 64, 8))
OVERHEAD_STACK_SHAPE = Shape(1, 4, 4, 64, 4)


def _level(level: int) -> tuple[int, int]:
    return -(-800 // 2**level), -(-1216 // 2**level)


# The layers that have these shapes, or what a shape is there for. A layer whose heads look at all channels,
# as attention pooling does once its key projection is folded into the queries, has a token for each head and
# query.
ORIGINS = {
    Shape(32, 14, 14, 256, 16): "VT-ResNet-18/34, last stage at 224 x 224",
    Shape(32, 14, 14, 1024, 16): "VT-ResNet-50/101, last stage at 224 x 224",
    Shape(256, 14, 14, 256, 16): "VT-ResNet-18/34, last stage at 224 x 224",
    Shape(256, 14, 14, 1024, 16): "VT-ResNet-50/101, last stage at 224 x 224",
    **{Shape(1, *_level(n), 256, 8): f"VT-FPN, level P{n} at 800 x 1216" for n in (2, 3, 4, 5)},
    Shape(8, *_level(2), 256, 8): "VT-FPN, level P2 at 800 x 1216",
    Shape(8, 56, 56, 512, 16): "between a cache and memory",
    Shape(1, 512, 512, 1024, 16): "far larger than any cache",
    Shape(8, 28, 28, 2048, 64): "many tokens: bound by arithmetic",
    Shape(64, 28, 28, 512, 16): "the second stage of a ResNet-50 at 224 x 224",
    Shape(2, 1024, 1024, 256, 8): "a million pixels",
    Shape(1, 1024, 1024, 1024, 16): "a million wide pixels",
    Shape(32, 56, 56, 256, 32): "the first stage of a ResNet-50 at 224 x 224",
    Shape(16, 14, 14, 768, 24): "a ViT-B/16's map at 224 x 224",
    Shape(64, 14, 14, 768, 64): "channels that are no power of two",
    Shape(64, 7, 7, 2048, 64): "rows of pixels that are not aligned",
    Shape(2, 256, 512, 512, 19): "OCRNet, gather and object attention, Cityscapes at 1024 x 2048",
    Shape(16, 130, 130, 512, 150): "OCRNet, gather, ADE20K at 520 x 520",
    Shape(16, 65, 65, 512, 64): "EMANet, one step",
    Shape(6, 64, 64, 256, 1024): "NetVLAD, 1024 clusters",
    Shape(1, 250, 400, 512, 1): "ABMIL, a bag of 100 000 patches",
    Shape(1, 250, 400, 1536, 8): "pooling 100 000 features of UNI2",
    Shape(8, 224, 224, 512, 512): "Perceiver at 224 x 224",
    Shape(256, 27, 27, 1152, 16): "SigLIP So400m, attention pooling, 16 heads",
    Shape(64, 14, 14, 4096, 64): "CLIP RN50x64, attention pooling, 64 heads",
    Shape(16, 64, 72, 1408, 16): "V-JEPA 2 ViT-g 384, attentive probe, 16 heads",
    Shape(64, 64, 64, 256, 56): "SAM, tokens to image, 64 prompts, 8 heads",
}
# All shapes that ``--shape`` takes.
REGISTRY = {shape.label: shape for shape in (*SHAPES, *GPU_SHAPES, *ORIGINS)}


def cases(
    ops: Collection[str] = (*OPS, STACK),
    shapes: Sequence[Shape] = (),
    stack: Shape | None = None,
    dtypes: Sequence[str] = (),
    layouts: Sequence[str] = LAYOUTS,
    *,
    on_gpu: bool = False,
) -> list[Case]:
    """All combinations, the layouts innermost: they share one float64 truth.

    On a GPU those come first that should be measured if there is not time for all.

    Example:
        >>> len(cases()), len(cases(on_gpu=True)), cases(on_gpu=True)[0].label
        (76, 168, 'tokenize 256x196x1024x16 bf16 channels_last')
    """
    shapes = shapes or (GPU_SHAPES if on_gpu else SHAPES)
    jobs = [(op, shape) for shape in shapes for op in OPS if op in ops]
    if STACK in ops:  # on a GPU after three shapes
        place = 3 * sum(op in ops for op in OPS) if on_gpu else len(jobs)
        jobs.insert(place, (STACK, stack or (GPU_STACK_SHAPE if on_gpu else STACK_SHAPE)))
    dtypes = dtypes or (GPU_DTYPES if on_gpu else DTYPES)
    found = [Case(*job, dtype, layout) for job in jobs for dtype in dtypes for layout in layouts]
    return sorted(found, key=lambda case: GPU_DTYPES.index(case.dtype)) if on_gpu else found


# One size that varies around a base shape: its values, and those of a quick run. N has the sides of square
# maps; modules are those of a stack, and chunks those of a map, which are merged.
SERIES: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "N": ((14, 28, 56, 112, 224, 448, 1024, 2048), (4, 8, 16)),
    "L": ((1, 4, 8, 16, 32, 64, 128, 256), (1, 8, 16)),
    "C": ((64, 128, 256, 512, 1024, 2048), (16, 32, 64)),
    "B": ((1, 2, 4, 8, 16), (1, 2, 4)),
    "threads": ((1, 2, 4, 8, 16, 32, 64), (1, 2)),
    "modules": ((1, 2, 3, 4, 5, 6), (1, 2)),
    "chunks": ((1, 4, 16, 64, 256), (1, 4)),
}
# By device: the base of most series, large enough for memory to matter and small enough for everything to
# run; the stack; and the map in chunks.
_BASES = {
    "cpu": (Shape(1, 224, 224, 256, 16), STACK_SHAPE, Shape(1, 512, 512, 256, 16)),
    "cuda": (Shape(8, 224, 224, 256, 16), GPU_STACK_SHAPE, Shape(8, 1024, 1024, 256, 16)),
    "quick": (Shape(2, 8, 8, 32, 8), QUICK_STACK_SHAPE, Shape(1, 32, 16, 32, 8)),
}
_VARIED = {"N": ("height", "width"), "L": ("tokens",), "C": ("channels",), "B": ("batch",), "threads": ()}


class Point(NamedTuple):
    """A case on so many threads, None for a GPU."""

    case: Case
    threads: int | None


def points(
    device: str,
    dtype: str,
    layout: str,
    threads: int | None,
    *,
    quick: bool = False,
    only: Collection[str] = tuple(SERIES),
    ops: Sequence[str] = OPS,
) -> dict[Point, str]:
    """Every point, and the series that it belongs to as :attr:`benchmarks.results.Row.series` has them.

    A point of several series, as the base is, is measured once. ``device`` is "cpu" or "cuda", ``threads``
    those outside the series of threads.
    """
    found: dict[Point, list[str]] = {}
    base, stack, stream = _BASES["quick" if quick else device]
    for name in only:
        for value in SERIES[name][quick]:
            if name == "threads" and (threads is None or value > threads):
                continue
            jobs: list[tuple[str, Shape, int | None]]
            if name == "modules":
                jobs = [(STACK, stack, value)]
            elif name == "chunks":
                jobs = [("tokenize", stream, value)] if "tokenize" in ops else []
            else:
                shape = base._replace(**dict.fromkeys(_VARIED[name], value))
                jobs = [(op, shape, None) for op in ops]
            for op, shape, parts in jobs:
                point = Point(Case(op, shape, dtype, layout, parts), value if name == "threads" else threads)
                found.setdefault(point, []).append(f"{name}={value**2 if name == 'N' else value}")
    return {point: " ".join(series) for point, series in found.items()}
