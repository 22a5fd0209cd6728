"""Sample calls of the ops, and the kernels that a call launches, recorded without launching them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from vt_fast.backends import triton
from vt_fast.backends.triton.ahead import Request
from vt_fast.backends.triton.samples import KERNELS, Shape, sample
from vt_fast.backends.triton.schedule import observed

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Layouts of a map, and which of its dimensions has stride 1.
UNIT_STRIDES = {"channels_last": "channels", "nchw": "pixels"}
# (batch, pixels, channels, tokens) of feature maps of ResNets and of an FPN, and one beyond any cache.
SHAPES: tuple[Shape, ...] = (
    (256, 196, 256, 16),
    (256, 196, 1024, 16),
    (8, 60800, 256, 8),
    (1, 1048576, 1024, 16),
)


class Call(NamedTuple):
    """An op or its backward, "tokenize" or "tokenize_backward", and the operands' shape, dtype and layout."""

    op: str
    dtype: str
    layout: str
    shape: Shape

    @classmethod
    def of(cls, op: str, dtype: str, layout: str, shape: str) -> Call:
        """Of four words.

        Raises:
            ValueError: the shape is not BxNxCxL.

        Example:
            >>> Call.of("tokenize", "bf16", "nchw", "8x196x256x16").shape
            (8, 196, 256, 16)
        """
        sizes = shape.split("x")
        if len(sizes) != 4 or not all(size.isdecimal() and int(size) for size in sizes):
            raise ValueError(f"`shape` must be BxNxCxL, got {shape!r}")
        batch, pixels, channels, tokens = map(int, sizes)
        return cls(op, dtype, layout, (batch, pixels, channels, tokens))

    @property
    def words(self) -> dict[str, str]:
        """What :meth:`of` takes."""
        return self._asdict() | {"shape": "x".join(map(str, self.shape))}

    @property
    def torch_dtype(self) -> torch.dtype:
        """The maps' dtype."""
        return DTYPES[self.dtype]

    @property
    def map_bytes(self) -> int:
        """Bytes of one map."""
        batch, pixels, channels, _ = self.shape
        return batch * pixels * channels * self.torch_dtype.itemsize

    def on(self, device: str, backend: Any = triton) -> Callable[[], Any]:
        """The call on a device, with random operands; on "meta", operands have no data."""
        return sample(self.op, self.torch_dtype, UNIT_STRIDES[self.layout], self.shape, device, backend)

    def launches(self, check: Callable[[Launch], None] | None = None) -> list[Launch]:
        """What the call launches; see :func:`launches`."""
        with observed(lambda *_: None):  # to make operands of a backward, its forward is called
            call = self.on("meta")
        return launches(call, check)

    def main_launch(self, check: Callable[[Launch], None] | None = None) -> Launch:
        """The launch of the kernel that goes through the map."""
        return [launch for launch in self.launches(check) if launch.kernel == KERNELS[self.op]][-1]


_OPTIONS = ("num_warps", "num_stages")


class Launch(NamedTuple):
    """A kernel with its arguments, and how many programs of it are launched."""

    request: Request
    programs: int

    @classmethod
    def of(
        cls, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> Launch:
        """Of what an observer of launches is given."""
        return cls(Request.of(kernel, arguments, constants), grid[0])

    @property
    def kernel(self) -> str:
        """Its name."""
        return self.request.name

    @property
    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time constants."""
        constants = {key: value for key, value in self.request.constants.items() if key not in _OPTIONS}
        config = constants.pop("cfg", None)
        return constants if config is None else config._asdict()

    @property
    def options(self) -> dict[str, int]:
        """The compiler's options."""
        return {key: self.request.constants[key] for key in _OPTIONS if key in self.request.constants}

    @property
    def setting(self) -> str:
        """The launch setting, in words."""
        constants = self.constants
        words = [f"{key.lower()}={constants[key]}" for key in ("TILE", "CHUNK") if key in constants]
        if self.kernel == "project_forward":
            words.append("keep" if constants["KEEP"] else "again")
        elif "OWN" in constants:
            kept, loops, own = (constants[key] for key in ("KEEP", "LOOPS", "OWN"))
            words.append("keep" if kept else f"own={own}" if loops == 1 else f"loops={loops}")
        words += [f"{key.removeprefix('num_')}={value}" for key, value in self.options.items()]
        return " ".join(words)


def launches(call: Callable[[], Any], check: Callable[[Launch], None] | None = None) -> list[Launch]:
    """What a call would launch; nothing is launched.

    Where ``check`` raises MiscompiledError, the call goes on with its next launch setting, as on a GPU.
    """
    found: list[Launch] = []

    def record(*given: Any) -> None:
        launch = Launch.of(*given)
        if check is not None:
            check(launch)
        found.append(launch)

    with observed(record):
        call()
    return found
