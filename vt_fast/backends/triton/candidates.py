"""Settings worth trying for a class of launches, the likeliest first."""

from __future__ import annotations

from collections.abc import Iterator

from vt_fast.backends.triton.settings import FEW, KEEP, STREAM, WHOLE, Problem, Setting, fitted

# Sums that a kernel adds up for each channel, in rows; numbers of them that registers can hold.
_SUMS = {
    "tokenize_forward": 1,
    "tokenize_backward": 1,
    "project_backward": 2,
    "project_tokenize_forward": 1,
    "project_tokenize_backward": 3,
}
_FORWARD_HELD, _BACKWARD_HELD = 32 << 10, 16 << 10
# Shared memory of the largest multiprocessors.
_SHARED = 227 << 10


def candidates(problem: Problem) -> Iterator[Setting]:
    """What may be good, each once."""
    seen = set()
    for setting in _all(problem):
        each = fitted(setting, problem)
        if each not in seen:
            seen.add(each)
            yield each


def _all(problem: Problem) -> Iterator[Setting]:
    wide, item = (64, 2) if problem.kind == "16" else (32, 4)
    if problem.kernel == "project_forward":
        for tile, warps, stages in ((64, 4, 3), (128, 8, 3), (128, 4, 2), (64, 8, 3), (32, 4, 3)):
            yield Setting(tile, wide, 0, STREAM, warps, stages)
        if problem.channels <= 512:
            yield Setting(64, wide, 0, KEEP, 4, 2)
            yield Setting(32, wide, 0, KEEP, 4, 2)
        return
    rows = problem.rows * _SUMS[problem.kernel]
    held = _BACKWARD_HELD if problem.kernel.endswith("backward") else _FORWARD_HELD
    narrow, both = problem.kind == "16", problem.kernel.startswith("project_tokenize")
    if problem.channels * rows <= (held // 2 if both else held):
        for tile, warps, stages in _KEPT[2:] if both else _KEPT if narrow else _KEPT[4:]:
            if tile * problem.channels * (stages - 1) * item <= _SHARED:
                yield Setting(tile, wide, 0, KEEP, warps, stages)
    if problem.pixels <= FEW:
        for chunk, warps, stages in _WHOLE[2:] if both else _WHOLE:
            yield Setting(256, min(chunk, wide), 0, WHOLE, warps, stages)
    yield Setting(128, wide, 0, WHOLE, 8, 2)
    yield Setting(64, wide, 0, WHOLE, 4, 2)
    yield Setting(128, wide // 2, 0, WHOLE, 8, 2)
    for tile, own, warps in _STREAMED if narrow else _STREAMED[2:]:
        if own * wide * rows <= held:
            yield Setting(tile, wide, own, STREAM, warps, 2)
    if not narrow:
        yield Setting(32, 16, 1, STREAM, 8, 2)
        yield Setting(16, 16, 1, STREAM, 4, 2)


# Chunks, warps and stages of whole samples.
_WHOLE = ((64, 8, 3), (64, 8, 2), (32, 8, 2), (32, 16, 2))
# Tiles, warps and stages; tiles, own chunks and warps. Float32 takes more registers for the same tile.
_KEPT = ((64, 4, 3), (64, 4, 2), (32, 4, 3), (32, 4, 2), (32, 8, 2), (16, 4, 2), (16, 8, 2))
_STREAMED = (
    (64, 4, 8),
    (64, 2, 4),
    (64, 1, 4),
    (64, 1, 8),
    (32, 4, 8),
    (32, 2, 8),
    (32, 2, 4),
    (32, 1, 4),
    (32, 1, 8),
)
