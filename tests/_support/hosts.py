"""Modules of other libraries that `vt_fast.patch` knows, with random weights, and how to compare them."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

import vt_fast
from tests._support import torchvision_stub


@dataclass(frozen=True)
class Host:
    """A module or a whole model.

    Attributes:
        package: what must be installed.
        make: the module, in float32.
        inputs: its inputs, all of them float.
        replaced: the paths that are replaced.
        ops: how many ops a call runs where all are.
        call: runs it and gives its results; by default by calling it.
        traced: how many ops a compiled or exported program has, if another number.
        whole: whether the host's own code compiles to one graph.
        seeds: of how many draws the errors are compared.
    """

    package: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Sequence[Tensor]]
    replaced: tuple[str, ...]
    ops: int
    call: Callable[..., Any] = lambda module, *inputs: module(*inputs)
    traced: int | None = None
    whole: bool = True
    seeds: int = 3

    def made(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[nn.Module, list[Tensor]]:
        """The module, with parameters that are nowhere constant, and its inputs; both rounded to float32."""
        need(self.package)
        torch.manual_seed(seed)
        module = self.make().eval()
        for parameter in module.parameters():
            if parameter.dim() < 2 or parameter.std() == 0:
                nn.init.normal_(parameter, parameter.mean().item(), 0.1)
        return module.to(dtype), [value.to(dtype) for value in self.inputs()]

    def results(self, module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results of a call that are tensors."""
        found = self.call(module, *inputs)
        return [value for value in flat(found) if isinstance(value, Tensor)]

    def solve(self, module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor | None]:
        """Results, and gradients of the inputs and all parameters, by name."""
        inputs = [value.detach().clone().requires_grad_() for value in inputs]
        module.zero_grad(set_to_none=True)
        results = self.results(module, inputs)
        torch.manual_seed(1)
        loss = sum((value * torch.randn(value.shape).to(value)).sum() for value in results)
        loss.backward()
        found: dict[str, Tensor | None] = {f"result {index}": value for index, value in enumerate(results)}
        found |= {f"input {index}": value.grad for index, value in enumerate(inputs)}
        return found | {name: value.grad for name, value in module.named_parameters()}


def need(package: str) -> None:
    """Skip where a package is not installed. One that is must import."""
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        pytest.skip(f"{package} is not installed: `make hosts` does that")
    if importlib.util.find_spec("torchvision") is not None:
        torchvision_stub.importable()
    importlib.import_module(package)


def flat(value: Any) -> list[Any]:
    """The leaves of nested results."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in flat(each)]
    return [value]


def close(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-12) -> None:
    """Raise unless all are equal to `tolerance` of their size, and the same ones are None."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] is None) == (value is None), name
        if value is not None:
            size = max(1.0, value.abs().max().item())
            assert (found[name] - value).abs().max().item() <= tolerance * size, name


def error_ratios(found: dict[str, Any], host: dict[str, Any], exact: dict[str, Any]) -> list[float]:
    """Binary logarithms of our errors by those of the host, root mean squares, one for each tensor.

    A gradient that is 0 in theory, which is rounding noise of the host, is left out.
    """
    ratios = []
    for name, value in exact.items():
        assert (found[name] is None) == (value is None), name
        if value is None:
            continue
        assert found[name].dtype == host[name].dtype, name
        errors = [(each[name].double() - value).norm().item() for each in (found, host)]
        assert math.isfinite(errors[0]), name
        if value.abs().max() > 1e-9 and min(errors) > 0:
            ratios.append(math.log2(errors[0] / errors[1]))
    return ratios


class Ops(TorchDispatchMode):
    """Counts the calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "vt_fast" and "backward" not in func.name()
        return func(*args, **(kwargs or {}))


def ops_in(call: Callable[[], Any]) -> int:
    """How many of our ops a call runs."""
    with torch.no_grad(), Ops() as ops:
        call()
    return ops.count


def counted_graphs(counts: list[int]) -> Callable[..., Any]:
    """A backend of torch.compile that notes how many of our ops, backwards aside, each graph has."""

    def compiler(graph: Any, inputs: Any) -> Any:
        names = [str(node.target) for node in graph.graph.nodes]
        counts.append(sum(name.startswith("vt_fast.") and "backward" not in name for name in names))
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=compiler)


def twins(
    host: Host, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """A module, its patched copy, and inputs."""
    module, inputs = host.made(dtype, seed)
    patched = copy.deepcopy(module)
    assert vt_fast.patch(patched).replaced == host.replaced
    return module, patched, inputs
