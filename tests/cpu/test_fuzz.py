"""Random calls against plain PyTorch in float64; `make fuzz` runs more of them."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests._support import devices, problems, random_switches
from tests._support.fuzzing import cases
from tests._support.instruction_sets import choose
from tests._support.judging import DTYPES, finite_size, kinds, short
from tests._support.problems import OPS

# The number of calls for each test; unset: a few, the same in each run.
EXAMPLES = int(os.environ.get("VT_FAST_FUZZ", "0"))


def solve(case, problem, dtype, backend):
    """Results and needed gradients by name; ``backend`` None: the reference's."""
    leaves = problem.leaves(dtype, case.bias_dtype if dtype == case.dtype else None)
    operands = {name: leaf.detach() for name, leaf in leaves.items()}
    for name in case.differentiated:
        operands[name].requires_grad_()
    with devices.preferring(backend or devices.backend()):
        results = problem.call(operands, plain=backend is None)
    generator = torch.Generator().manual_seed(case.seed)
    arriving = [torch.randint(-4, 5, result.shape, generator=generator) / 4 for result in results]
    answer = {f"result {index}": result.detach() for index, result in enumerate(results)}
    # The reference's results may not depend on a differentiated operand.
    used = [index for index in case.used if results[index].requires_grad]
    leaves = [operands[name] for name in case.differentiated]
    grads = [torch.zeros_like(leaf) for leaf in leaves]
    if used:
        grads = torch.autograd.grad(
            [results[index] for index in used],
            leaves,
            [arriving[index].to(results[index].dtype) for index in used],
            allow_unused=True,
            materialize_grads=True,
        )
    answer |= {f"d{name}": grad for name, grad in zip(case.differentiated, grads, strict=True)}
    return answer


def largest(problem):
    """A bound for a backward's sums: the product of all operands' largest values, times channels."""
    size = 1.0
    for value in problem.operands.values():
        if value.is_floating_point():
            size *= 1 + finite_size(value)
    return size * max(value.shape[-1] for value in problem.operands.values())


def check_values(case, problem, found, exact):
    """Allow a few roundings of the result, of the operands, and of the terms of a backward's sums."""
    eps = torch.finfo(case.dtype).eps
    generator = torch.Generator().manual_seed(case.seed)
    changed = problems.Problem(problem.op, dict(problem.operands), problem.options)
    for name, value in problem.operands.items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            changed.operands[name] = value * (1 + eps * noise)
    sensitive = solve(case, changed, torch.float64, None)
    statistic = torch.finfo(torch.promote_types(case.dtype, torch.float32)).eps
    for name, value in found.items():
        truth = exact[name]
        allowed = 8 * (finite_size(sensitive[name] - truth) + eps * finite_size(truth))
        allowed += 8 * statistic * largest(problem)
        error = finite_size((value.double() - truth)[truth.isfinite()])
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def check(case):
    problem = case.problem()
    choose(case.instruction_set)
    torch.set_num_threads(case.threads)
    found = solve(case, problem, case.dtype, "cpu")
    torch.set_num_threads(1)
    exact = solve(case, problem, torch.float64, None)
    assert list(found) == list(exact)
    ways = [exact]
    if case.junk is not None:
        ways += [solve(case, problem, torch.float64, "torch"), solve(case, problem, case.dtype, "torch")]
    for name, value in found.items():
        if name == "dextra_values" and case.junk is not None:
            continue  # a sum over samples, each of which may agree with another one of the ways
        allowed = ways[:1] if name.startswith("result") else ways
        same = torch.stack([kinds(value) == kinds(way[name]) for way in allowed]).any(0)
        assert same.all(), f"{name}: NaN or infinity elsewhere"
    if case.junk is None:
        check_values(case, problem, found, exact)
    if case.threads > 1:
        for name, value in solve(case, problem, case.dtype, "cpu").items():
            assert torch.equal(value.nan_to_num(), found[name].nan_to_num()), f"{name}: not the same bits"


def run_examples(strategy, function, part):
    """Calls function(*drawn) for a number of examples."""

    @settings(
        deadline=None,
        max_examples=EXAMPLES or 50,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=strategy)
    def run(drawn):
        function(*drawn)

    if not EXAMPLES:
        run = seed(part)(run)
    run()


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("op", OPS)
def test_random_calls(op, dtype, part):
    run_examples(st.tuples(cases(op, dtype)), check, part)


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("op", ["project", "tokenize"])
def test_random_switches(op, part):
    """Any combination of the op family's switches."""

    def check_switches(number, threads):
        random_switches.check(random_switches.Problem(op, number, large=threads > 1), threads)

    run_examples(st.tuples(st.integers(0, 2**30), st.sampled_from([*[1] * 8, 2, 3])), check_switches, part)
