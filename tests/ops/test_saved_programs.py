"""Saved programs: another process loads them after `import vt_fast`, on any installation, in C++ too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vt_fast
from vt_fast import backends
from vt_fast.backends.cpu import library

pytestmark = [
    pytest.mark.one_backend,
    pytest.mark.on_cpu,
    # It says so of each shape that is checked: a trace holds for its shapes.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning"),
]
native = pytest.mark.skipif("cpu" not in backends.NATIVE, reason="needs the compiled library")
SHAPE = (2, 8, 5, 7)


class Model(torch.nn.Module):
    """Each op once, with options of all kinds."""

    def __init__(self, backend=None):
        super().__init__()
        self.backend = backend
        generator = torch.Generator().manual_seed(3)
        self.queries = torch.nn.Parameter(torch.randn(4, 8, generator=generator))
        self.table = torch.nn.Parameter(torch.randn(35, 3, generator=generator))

    def forward(self, x):
        tokens, lse = vt_fast.tokenize(
            x.relu(),
            self.queries,
            scale=0.5,
            extra_values=self.table,
            return_stats=True,
            backend=self.backend,
        )
        values = tokens[..., :8]
        y, pooled = vt_fast.project_tokenize(
            x, values, values, self.queries, token_bias=lse, residual=x, backend=self.backend
        )
        z = vt_fast.project(y, pooled, values, residual=x, backend=self.backend)
        return z, pooled, lse


def example():
    return torch.arange(2 * 8 * 5 * 7).reshape(SHAPE).sin()


def exported(folder, backend=None):
    path = folder / "program.pt2"
    torch.export.save(torch.export.export(Model(backend), (example(),)), path)
    return path


def traced(folder, backend=None):
    path = folder / "program.ts"
    torch.jit.trace(Model(backend), (example(),)).save(path)
    return path


LOAD = {exported: "torch.export.load({!r}).module()", traced: "torch.jit.load({!r})"}
saving = pytest.mark.parametrize("save", [exported, traced])

RUN = """
import torch, vt_fast
x = torch.arange(2 * 8 * 5 * 7).reshape(2, 8, 5, 7).sin().requires_grad_()
results = {load}(x)
results[0].square().sum().backward()
torch.save([*(result.detach() for result in results), x.grad], {out!r})
"""


def run_elsewhere(code, folder=None):
    """In a process of its own, with the package in another folder or this one."""
    environment = dict(os.environ)
    if folder is not None:
        environment["PYTHONPATH"] = str(folder)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=folder,
    )


def solution():
    x = example().requires_grad_()
    results = Model()(x)
    results[0].square().sum().backward()
    return [*(result.detach() for result in results), x.grad]


@pytest.fixture(scope="module")
def without_kernels(tmp_path_factory):
    """A folder with an installation that has no compiled library."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copytree(
        Path(vt_fast.__file__).parent, folder / "vt_fast", ignore=shutil.ignore_patterns("*.so", "build.json")
    )
    return folder


@saving
@pytest.mark.parametrize("where", ["here", "without kernels"])
def test_another_process_loads_them(save, where, tmp_path, without_kernels):
    path, out = save(tmp_path), tmp_path / "results.pt"
    code = RUN.format(load=LOAD[save].format(str(path)), out=str(out))
    done = run_elsewhere(code, without_kernels if where == "without kernels" else None)
    assert done.returncode == 0, done.stderr
    for found, expected in zip(torch.load(out), solution(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


BEFORE_THE_FAMILY = """
def forward(self, x, queries, table):
  value = torch.relu(x)
  value0 = torch.mul(queries, 0.5)
  tokens, _0, token_bias = ops.vt_fast.tokenize(value, value0, None, None, table, 1, True{tokenize})
  value1 = tokens[:, :, 0:8]
  value2, value3, _1, _2 = ops.vt_fast.project_tokenize(x, value1, value1, queries, token_bias, None, None, None, None, True, 1, True, True{others})
  _3 = ops.vt_fast.project(value2, value3, value1, None, x, False, 1{project})
  return (_3, value3, token_bias)
"""  # noqa: E501 -- the code of torch.jit.trace(Model(), (example(),)), with its constants


@pytest.mark.parametrize("named", [False, True])
def test_a_program_that_was_saved_before_the_family_worked(named):
    code = BEFORE_THE_FAMILY.replace("ops.", "torch.ops.").replace("self, ", "")
    given = {"tokenize": "", "project": "", "others": ""}
    if named:
        given = {
            "tokenize": ', None, None, None, None, "pixels", backend="torch"',
            "project": ', None, None, "tokens", backend="torch"',
            "others": ', None, None, "tokens", backend="torch"',
        }
    program, model = torch.jit.CompilationUnit(code.format(**given)), Model()
    x = example().requires_grad_()
    results = program.forward(x, model.queries, model.table)
    results[0].square().sum().backward()
    for found, expected in zip([*results, x.grad], solution(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_exported_program_of_before_the_family_loads():
    """torch.export.save wrote it on torch 2.13, without traces of calls, with the schemas of then."""
    path = Path(__file__).parents[1] / "_support" / "before_the_family.pt2"
    program = torch.export.load(path)
    given = [len(node.args) for node in program.graph.nodes if "vt_fast" in str(node.target)]
    assert given == [7, 13, 7]
    x = example().requires_grad_()
    results = program.module()(x)
    results[0].square().sum().backward()
    for found, expected in zip([*results, x.grad], solution(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@native
@saving
def test_a_named_backend_stays_and_never_falls_back(save, tmp_path, without_kernels):
    path, out = save(tmp_path, "cpu"), tmp_path / "results.pt"
    code = RUN.format(load=LOAD[save].format(str(path)), out=str(out))
    assert run_elsewhere(code).returncode == 0
    done = run_elsewhere(code, without_kernels)
    assert '`backend="cpu"` is not available here: the kernels are not built' in done.stderr


def test_a_program_holds_no_backend_but_a_named_one(tmp_path):
    program = torch.export.load(exported(tmp_path))
    nodes = [node for node in program.graph.nodes if "vt_fast" in str(node.target)]
    assert len(nodes) == 3
    for node in nodes:
        assert not any(isinstance(value, str) for value in (*node.args, *node.kwargs.values()))
    named = torch.export.load(exported(tmp_path, "torch"))
    for node in (node for node in named.graph.nodes if "vt_fast" in str(node.target)):
        assert (*node.args, *node.kwargs.values())[-1] == "torch"


class Convolved(torch.nn.Module):
    """A map that autocast casts, and parameters that it does not see."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.model = Model()

    def forward(self, x):
        return self.model(self.convolution(x))


@pytest.mark.parametrize("how", ["exported", "traced", "torch.fx"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_programs_under_autocast(how, dtype):
    model, x = Convolved(), example()
    if how == "exported":
        program = torch.export.export(model, (x,)).module()
    elif how == "traced":
        program = torch.jit.trace(model, (x,))
    else:
        program = torch.fx.symbolic_trace(model)
    with torch.autocast("cpu", dtype):
        results, expected = program(x), model(x)
    for found, wanted in zip(results, expected, strict=True):
        assert torch.equal(found, wanted)
        assert found.dtype == wanted.dtype
    gradients = [
        torch.autograd.grad(sum(part.float().sum() for part in parts), parameters)
        for parts, parameters in (
            (results, [dict(program.named_parameters())[name] for name, _ in model.named_parameters()]),
            (expected, list(model.parameters())),
        )
    ]
    for found, wanted in zip(*gradients, strict=True):
        assert torch.equal(found, wanted)


def test_programs_move_to_another_device():
    from torch.export.passes import move_to_device_pass

    program = move_to_device_pass(torch.export.export(Model(), (example(),)), "meta")
    results = program.module()(example().to("meta"))
    assert [(result.device.type, result.shape) for result in results] == [
        ("meta", expected.shape) for expected in solution()[:3]
    ]


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """A program in C++ that runs saved programs."""
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    libraries, include = (Path(torch.__file__).parent / name for name in ("lib", "include"))
    out = tmp_path_factory.mktemp("runner") / "saved_program"
    source = Path(__file__).parents[1] / "_support" / "saved_program.cpp"
    api = include / "torch" / "csrc" / "api" / "include"
    command = [compiler, "-std=c++20", "-O0", f"-I{include}", f"-I{api}", str(source), "-o", str(out)]
    command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-Wl,--no-as-needed"]
    command += ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def run_in_cpp(runner, program, out):
    lib = library.FOLDER / library._LIBRARY
    sizes = map(str, SHAPE)
    return subprocess.run([runner, lib, program, out, *sizes], capture_output=True, text=True, timeout=300)


def packaged(folder, backend=None):
    with torch.no_grad():
        program = torch.export.export(Model(backend), (example(),))
    return torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "program.pt2"))


@native
@pytest.mark.slow
@pytest.mark.parametrize("save", [packaged, traced])
def test_they_run_in_cpp_without_python(save, runner, tmp_path):
    out = tmp_path / "results"
    done = run_in_cpp(runner, save(tmp_path), out)
    assert done.returncode == 0, done.stderr
    found = torch.frombuffer(bytearray(out.read_bytes()), dtype=torch.float32)
    with torch.no_grad():
        expected = torch.cat([result.flatten() for result in Model()(example())])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@native
@pytest.mark.slow
def test_a_backend_that_needs_python_is_an_error_without_it(runner, tmp_path):
    done = run_in_cpp(runner, traced(tmp_path, "torch"), tmp_path / "results")
    assert done.returncode == 1
    assert '`backend="torch"` needs Python' in done.stderr


@pytest.mark.slow
def test_packages_load_in_another_process(tmp_path):
    path, out = packaged(tmp_path), tmp_path / "results.pt"
    code = f"""
import torch, vt_fast
x = torch.arange(2 * 8 * 5 * 7).reshape(2, 8, 5, 7).sin()
torch.save(torch._inductor.aoti_load_package({str(path)!r})(x), {str(out)!r})
"""
    done = run_elsewhere(code)
    assert done.returncode == 0, done.stderr
    for found, expected in zip(torch.load(out), solution()[:3], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
