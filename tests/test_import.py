"""`import vt_fast` is silent and lazy, and everything on CPU works with each optional part hidden.

Each case runs in a process of its own: what counts as imported cannot be undone in this one.
"""

import os
import subprocess
import sys
import textwrap

import pytest

# Hidden as if it were not installed: no finder knows it, and importlib.util.find_spec says None.
BLOCKER = """
import importlib.machinery, sys

class Hiding:
    def __init__(self, finder, hidden): self.finder, self.hidden = finder, hidden
    def find_spec(self, name, path=None, target=None):
        spec = self.finder.find_spec(name, path, target)
        return None if spec is None or self.hidden(spec) else spec

def hide(hidden): sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]
def hide_packages(*names): hide(lambda spec: spec.name.partition(".")[0] in names)
def hide_compiled():
    hide(lambda spec: spec.name.startswith("vt_fast.")
         and isinstance(spec.loader, importlib.machinery.ExtensionFileLoader))
def hide_kernels():
    import ctypes
    class Hiding(ctypes.CDLL):
        def __init__(self, name, *args, **kwargs):
            if "libvt_fast_cpu" in str(name): raise OSError("hidden")
            super().__init__(name, *args, **kwargs)
    ctypes.CDLL = Hiding
"""

USE_ALL_OPS = """
import torch, vt_fast
x = torch.randn(2, 6, 3, 5, requires_grad=True)
queries, keys, values = torch.randn(4, 6), torch.randn(2, 4, 6), torch.randn(2, 4, 6)
tokens, lse = vt_fast.tokenize(x, queries, return_stats=True)
y = vt_fast.project(x, keys, values, residual=x)
z, new = vt_fast.project_tokenize(x, keys, values, queries, residual=x)
merged, _ = vt_fast.merge(torch.stack([tokens, tokens]), torch.stack([lse, lse]))
(tokens.sum() + y.square().sum() + z.sum() + new.square().sum() + merged.sum()).backward()
assert torch.isfinite(x.grad).all()
torch.testing.assert_close(merged, tokens)
torch.testing.assert_close(z, y)
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def check(code, **environment):
    done = run(code, **environment)
    assert done.returncode == 0, done.stderr
    return done


def test_import_is_silent():
    done = check("import vt_fast; vt_fast.__version__; dir(vt_fast)")
    assert done.stdout == ""
    assert done.stderr == ""


def test_import_registers_the_ops_and_is_lazy_otherwise():
    done = check("""
        import sys, torch
        before = set(sys.modules)
        import vt_fast
        new = set(sys.modules) - before
        print(*sorted({"vt_fast.functional", "vt_fast.nn", "vt_fast.models", "vt_fast.reference"} & new))
        slow = {"torch.utils.flop_counter", "torch._dynamo"}  # the first of which imports Triton
        print(*sorted({"triton", "fvcore", "sklearn", "matplotlib", "onnx", *slow} & new))
        print(torch.ops.vt_fast.tokenize.default._schema.name)
    """)
    assert done.stdout.split("\n")[:3] == ["", "", "vt_fast::tokenize"]


def test_a_torch_that_does_not_import_is_reported_where_it_is_needed(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: no such file')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ".")])
    check("import vt_fast; print(vt_fast.__version__)", PYTHONPATH=path)
    done = run("import vt_fast; vt_fast.tokenize", PYTHONPATH=path)
    assert "OSError: libtorch.so: no such file" in done.stderr


def test_ops_do_not_load_the_optional_packages():
    before = "import sys, torch; before = set(sys.modules)"
    loaded = 'print(*{"triton", "sklearn", "matplotlib", "torch._dynamo"} & (set(sys.modules) - before))'
    done = check("\n".join([before, USE_ALL_OPS, loaded]))
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "order", ["import torch.utils.flop_counter, vt_fast", "import vt_fast, torch.utils.flop_counter"]
)
def test_flops_are_counted_whichever_is_imported_first(order):
    done = check(f"""
        {order}
        import importlib, inspect, torch
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            vt_fast.tokenize(torch.randn(2, 9, 8), torch.randn(4, 8))
        print(counter.get_total_flops())
        assert "class FlopCounterMode" in inspect.getsource(torch.utils.flop_counter)
        importlib.reload(torch.utils.flop_counter)
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            vt_fast.tokenize(torch.randn(2, 9, 8), torch.randn(4, 8))
        print(counter.get_total_flops())
    """)
    assert done.stdout.split() == [str(2 * 2 * 2 * 9 * 4 * 8)] * 2


def test_the_counter_may_be_imported_by_another_thread():
    done = check("""
        import importlib.util, sys, threading, torch
        counter = "torch.utils.flop_counter"
        # So slow that this thread sees the module in sys.modules, and none of its names.
        class Slow:
            def find_spec(self, name, path=None, target=None):
                if name == "triton":
                    began.set()
                    waiting.wait(10)
        began, waiting = threading.Event(), threading.Event()
        sys.meta_path.insert(0, Slow())
        other = threading.Thread(target=lambda: __import__(counter))
        other.start()
        began.wait(60)
        assert counter in sys.modules and not hasattr(sys.modules[counter], "flop_registry")
        threading.Timer(0.5, waiting.set).start()
        import vt_fast
        other.join()
        print(sum(op._qualified_op_name.startswith("vt_fast") for op in sys.modules[counter].flop_registry
                  if hasattr(op, "_qualified_op_name")))
    """)
    assert int(done.stdout) == 30


def test_the_counters_spec_can_be_asked_for_its_source():
    check("""
        import importlib.util, vt_fast
        spec = importlib.util.find_spec("torch.utils.flop_counter")
        assert "class FlopCounterMode" in spec.loader.get_source(spec.name)
        assert spec.loader.get_filename(spec.name) == spec.origin
    """)


def test_unknown_name_is_an_attribute_error():
    done = run("import vt_fast; vt_fast.nothing")
    assert done.returncode == 1
    assert "AttributeError: module 'vt_fast' has no attribute 'nothing'" in done.stderr


def test_every_public_name_resolves():
    check("import vt_fast\nfor name in vt_fast.__all__: getattr(vt_fast, name)")


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param("hide_packages('triton')", id="triton"),
        pytest.param("hide_packages('fvcore', 'iopath')", id="fvcore"),
        pytest.param("hide_packages('onnx', 'onnx_ir', 'onnxscript', 'onnxruntime')", id="onnx-extra"),
        pytest.param("hide_packages('matplotlib', 'sklearn', 'PIL', 'tqdm')", id="demo-extra"),
        pytest.param("hide_compiled()", id="compiled-module"),
        pytest.param("hide_compiled(); hide_kernels()", id="compiled-library"),
        pytest.param("pass", id="gpu"),
    ],
)
def test_all_ops_run_on_cpu_with_each_optional_part_hidden(hidden):
    done = check(f"{BLOCKER}\n{hidden}\n{USE_ALL_OPS}", CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    assert done.stdout == ""
    assert done.stderr == ""


def test_onnx_names_the_extra_that_it_needs():
    hide = "hide_packages('onnxscript', 'onnx_ir')"
    done = run(f"{BLOCKER}\n{hide}\nimport vt_fast\nvt_fast.onnx.translation_table()")
    message = (
        "ModuleNotFoundError: No module named 'onnx_ir', which ONNX export needs: pip install 'vt_fast[onnx]'"
    )
    assert done.stderr.strip().endswith(message)


def test_the_blocker_itself_hides():
    # Without this, a blocker that blocks nothing would let every test above pass.
    done = run(f"{BLOCKER}\nhide_packages('sqlite3')\nimport sqlite3")
    assert done.returncode == 1
    assert "No module named 'sqlite3'" in done.stderr
    done = check(
        f"{BLOCKER}\nhide_kernels()\nfrom vt_fast import backends; print(dict(backends.report())['cpu'])"
    )
    assert done.stdout.startswith("the kernels ")
    probe = "import importlib.util, vt_fast; print(importlib.util.find_spec('vt_fast.fake_library'))"
    place = "import vt_fast; suffix = importlib.machinery.EXTENSION_SUFFIXES[0]"
    fake = "import pathlib, tempfile; folder = tempfile.mkdtemp(); vt_fast.__path__.append(folder)"
    make = "(pathlib.Path(folder) / f'fake_library{suffix}').write_bytes(b'')"
    seen = check("\n".join([BLOCKER, place, fake, make, probe]))
    hidden = check("\n".join([BLOCKER, place, fake, make, "hide_compiled()", probe]))
    assert "fake_library" in seen.stdout
    assert hidden.stdout.strip() == "None"
