"""What is measured: ops, shapes and the models that they come from, dtypes, layouts, and series of sizes.

Names only, no torch: the parent process reads this too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
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
# Modules of a stack, unless a case says otherwise.
STACK_DEPTH = 3


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
    def numbers(self) -> tuple[int, int, int, int]:
        """B, N, C and L."""
        return self.batch, self.pixels, self.channels, self.tokens

    @property
    def elements(self) -> int:
        """Of the map."""
        return self.batch * self.pixels * self.channels

    @property
    def label(self) -> str:
        """B, N, C and L, as tables and the command line have them."""
        return "x".join(map(str, self.numbers))


class Case(NamedTuple):
    """One job, measured in each pass.

    ``parts``: the modules of a stack, STACK_DEPTH if None; or the chunks in which a map is tokenized, None
    for all at once.
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
        """For a progress bar."""
        return f"{self.job} {self.shape.label} {self.dtype} {self.layout}"

    @property
    def depth(self) -> int:
        """Modules of a stack."""
        return self.parts or STACK_DEPTH

    def spec(
        self, peers: Sequence[str] | None = None, passes: Sequence[str] = PASSES, **fields: str
    ) -> dict[str, Any]:
        """For a plan: the case, the peers that take part (None: all), the passes, and fields of its rows."""
        return {"kind": "op", "case": list(self), "peers": peers, "passes": passes, "fields": fields}

    @classmethod
    def of(cls, spec: dict[str, Any]) -> Case:
        """The case of a :meth:`spec`, which may have come through JSON.

        Example:
            >>> case = Case("stack", Shape(1, 14, 14, 256, 16), "fp32", "nchw", 4)
            >>> Case.of(case.spec()) == case
            True
        """
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
# Three modules on the output of a ResNet-50's fourth stage.
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
_BEFORE_STACK = 3  # shapes

QUICK_SHAPES = (Shape(2, 6, 8, 32, 8), Shape(1, 12, 16, 64, 16))
QUICK_STACK_SHAPE = Shape(2, 6, 8, 64, 8)

# So small that computing takes a microsecond or two.
OVERHEAD_SHAPES = (Shape(1, 4, 4, 32, 4), Shape(1, 14, 14, 64, 8))
OVERHEAD_STACK_SHAPE = Shape(1, 4, 4, 64, 4)


def cpu_cases(
    ops: Sequence[str] = (*OPS, STACK),
    shapes: Sequence[Shape] = SHAPES,
    stack: Shape = STACK_SHAPE,
    dtypes: Sequence[str] = DTYPES,
    layouts: Sequence[str] = LAYOUTS,
) -> Iterator[Case]:
    """All combinations, the layouts innermost: they share one float64 truth.

    Example:
        >>> len(list(cpu_cases()))
        76
    """
    jobs = [(op, shape) for shape in shapes for op in OPS if op in ops]
    jobs += [(STACK, stack)] if STACK in ops else []
    for op, shape in jobs:
        for dtype in dtypes:
            for layout in layouts:
                yield Case(op, shape, dtype, layout)


def gpu_cases(
    ops: Sequence[str] = (*OPS, STACK),
    shapes: Sequence[Shape] = GPU_SHAPES,
    stack: Shape = GPU_STACK_SHAPE,
    dtypes: Sequence[str] = GPU_DTYPES,
    layouts: Sequence[str] = LAYOUTS,
) -> Iterator[Case]:
    """All combinations, those first that should be measured if there is not time for all.

    Example:
        >>> cases = list(gpu_cases())
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


def standard_cells() -> Iterator[str]:
    """The names of the cells that a run on a CPU always has, as ``cells.txt`` lists them.

    Example:
        >>> names = list(standard_cells())
        >>> len(names), names[0]
        (288, 'tokenize 32x196x256x16 fp32 channels_last forward, 1 thread')
    """
    for case in cpu_cases(OPS):
        for which in PASSES:
            for threads in THREADS:
                yield f"{case.label} {which}, {threads} thread{'s' if threads > 1 else ''}"


class Origin(NamedTuple):
    """A layer of a model, the shape that it has there, and the ops that it needs."""

    model: str
    shape: Shape
    ops: tuple[str, ...] = OPS


def _stage(depths: str, batch: int, channels: int) -> Origin:
    return Origin(f"VT-ResNet-{depths}, last stage at 224 x 224", Shape(batch, 14, 14, channels, 16))


def _level(level: int, batch: int) -> Origin:
    height, width = -(-800 // 2**level), -(-1216 // 2**level)
    return Origin(f"VT-FPN, level P{level} at 800 x 1216", Shape(batch, height, width, 256, 8))


_POOLS = ("tokenize",)

# A layer whose heads look at all channels, as attention pooling does once its key projection is folded into
# the queries, has a token for each head and query.
ORIGINS = (
    _stage("18/34", 32, 256),
    _stage("50/101", 32, 1024),
    _stage("18/34", 256, 256),
    _stage("50/101", 256, 1024),
    *(_level(level, 1) for level in (2, 3, 4, 5)),
    _level(2, 8),
    Origin("OCRNet, gather, Cityscapes at 1024 x 2048", Shape(2, 256, 512, 512, 19), _POOLS),
    Origin("OCRNet, gather, ADE20K at 520 x 520", Shape(16, 130, 130, 512, 150), _POOLS),
    Origin("EMANet, one step", Shape(16, 65, 65, 512, 64), _POOLS),
    Origin("NetVLAD, 1024 clusters", Shape(6, 64, 64, 256, 1024), _POOLS),
    Origin("ABMIL, a bag of 100 000 patches", Shape(1, 250, 400, 512, 1), _POOLS),
    Origin("pooling 100 000 features of UNI2", Shape(1, 250, 400, 1536, 8), _POOLS),
    Origin("Perceiver at 224 x 224", Shape(8, 224, 224, 512, 512), _POOLS),
    Origin("OCRNet, object attention, Cityscapes", Shape(2, 256, 512, 512, 19), ("project",)),
    Origin("SigLIP So400m, attention pooling, 16 heads", Shape(256, 27, 27, 1152, 16), _POOLS),
    Origin("CLIP RN50x64, attention pooling, 64 heads", Shape(64, 14, 14, 4096, 64), _POOLS),
    Origin("V-JEPA 2 ViT-g 384, attentive probe, 16 heads", Shape(16, 64, 72, 1408, 16), _POOLS),
    Origin("SAM, tokens to image, 64 prompts, 8 heads", Shape(64, 64, 64, 256, 56), _POOLS),
)

# Shapes that come from no model, and what they are there for.
_PURPOSES = {
    Shape(8, 56, 56, 512, 16): "between a cache and memory",
    Shape(1, 512, 512, 1024, 16): "far larger than any cache",
    Shape(8, 28, 28, 2048, 64): "many tokens: bound by arithmetic",
    Shape(64, 28, 28, 512, 16): "the second stage of a ResNet-50 at 224 x 224",
    Shape(2, 1024, 1024, 256, 8): "a million pixels",
    Shape(1, 1024, 1024, 1024, 16): "a million wide pixels",
    Shape(32, 56, 56, 256, 32): "the first stage of a ResNet-50 at 224 x 224",
    Shape(64, 14, 14, 768, 64): "channels that are no power of two",
    Shape(64, 7, 7, 2048, 64): "rows of pixels that are not aligned",
}

# All shapes that `--shape` takes.
REGISTRY = {shape.label: shape for shape in (*SHAPES, *GPU_SHAPES, *(origin.shape for origin in ORIGINS))}


def origin(label: str) -> str:
    """The models that a shape comes from, or what it is there for; empty for a shape that is not registered.

    Example:
        >>> origin("8x60800x256x8"), origin("64x196x768x64")
        ('VT-FPN, level P2 at 800 x 1216', 'channels that are no power of two')
    """
    models = [each.model for each in ORIGINS if each.shape.label == label]
    return "; ".join(models) or next((why for shape, why in _PURPOSES.items() if shape.label == label), "")


class Series(NamedTuple):
    """One size that varies around a base shape: its values, and those of a quick run."""

    name: str
    text: str
    values: tuple[int, ...]
    quick: tuple[int, ...]


SERIES = (
    # Sides of square maps: N is their square.
    Series("N", "pixels", (14, 28, 56, 112, 224, 448, 1024, 2048), (4, 8, 16)),
    Series("L", "tokens", (1, 4, 8, 16, 32, 64, 128, 256), (1, 8, 16)),
    Series("C", "channels", (64, 128, 256, 512, 1024, 2048), (16, 32, 64)),
    Series("B", "samples", (1, 2, 4, 8, 16), (1, 2, 4)),
    Series("threads", "threads of a CPU", (1, 2, 4, 8, 16, 32, 64), (1, 2)),
    Series("modules", "fused passes in a stack", (1, 2, 3, 4, 5, 6), (1, 2)),
    Series("chunks", "chunks of a map, merged", (1, 4, 16, 64, 256), (1, 4)),
)
SERIES_NAMES = tuple(series.name for series in SERIES)

# By kind of device. The base: large enough for memory to matter, small enough for everything to run.
_BASES = {
    "cpu": Shape(1, 224, 224, 256, 16),
    "cuda": Shape(8, 224, 224, 256, 16),
    "quick": Shape(2, 8, 8, 32, 8),
}
_STREAMS = {
    "cpu": Shape(1, 512, 512, 256, 16),
    "cuda": Shape(8, 1024, 1024, 256, 16),
    "quick": Shape(1, 32, 16, 32, 8),
}
_STACKS = {"cpu": STACK_SHAPE, "cuda": GPU_STACK_SHAPE, "quick": QUICK_STACK_SHAPE}

_SIZES: dict[str, Callable[[Shape, int], Shape]] = {
    "N": lambda shape, side: shape._replace(height=side, width=side),
    "L": lambda shape, count: shape._replace(tokens=count),
    "C": lambda shape, count: shape._replace(channels=count),
    "B": lambda shape, count: shape._replace(batch=count),
    "threads": lambda shape, count: shape,
}


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
    only: Collection[str] = SERIES_NAMES,
    ops: Sequence[str] = OPS,
) -> dict[Point, str]:
    """Every point, and the series that it belongs to as :attr:`benchmarks.results.Row.series` has them.

    A point of several series, as the base is, is measured once. ``device`` is "cpu" or "cuda"; ``threads``: how
    many are used outside the series of threads.

    Example:
        >>> found = points("cpu", "fp32", "nchw", 2, quick=True, only=["N", "B"], ops=["project"])
        >>> [(point.case.label, series) for point, series in found.items()][1]
        ('project 2x64x32x8 fp32 nchw', 'N=64 B=2')
    """
    found: dict[Point, list[str]] = {}
    kind = "quick" if quick else device
    for name, _, values, few in SERIES:
        if name not in only:
            continue
        for value in few if quick else values:
            if name == "threads" and (threads is None or value > threads):
                continue
            if name == "modules":
                cases = [Case(STACK, _STACKS[kind], dtype, layout, value)]
            elif name == "chunks":
                cases = [Case("tokenize", _STREAMS[kind], dtype, layout, value)] if "tokenize" in ops else []
            else:
                shape = _SIZES[name](_BASES[kind], value)
                cases = [Case(op, shape, dtype, layout) for op in ops]
            for case in cases:
                point = Point(case, value if name == "threads" else threads)
                found.setdefault(point, []).append(f"{name}={value**2 if name == 'N' else value}")
    return {point: " ".join(series) for point, series in found.items()}
