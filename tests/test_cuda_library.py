"""The library with the CUDA kernels, in a torch without CUDA: it loads, and says why it cannot run."""

import functools
import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import vt_fast
from native_build import cuda as cuda_build
from native_build.toolchain import CannotBuildError
from tests._support.symbols import TORCH_SYMBOLS, needed_of_torch
from vt_fast import backends
from vt_fast.backends.cuda import library

not_built = library.load()
built = pytest.mark.skipif(not_built is not None, reason=str(not_built))
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

# Beyond those of the library for CPUs.
MORE_TORCH_SYMBOLS = {
    "aoti_torch_device_type_cuda",
    "aoti_torch_aten_narrow",
    "aoti_torch_create_device_guard",
    "aoti_torch_delete_device_guard",
    "torch_create_device_guard",
    "torch_delete_device_guard",
    "torch_list_push_back",
    "torch_new_list_reserve_size",
    "torch_new_string_handle",
}


@built
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")
def test_it_needs_only_stable_symbols_of_torch_and_no_driver():
    assert needed_of_torch(library.FOLDER / library._LIBRARY) <= TORCH_SYMBOLS | MORE_TORCH_SYMBOLS


@built
@without_gpu
def test_a_call_says_why_it_cannot_be_made():
    x, queries = torch.randn(1, 16, 32), torch.randn(4, 32)
    with pytest.raises(RuntimeError, match="is not available here: torch finds no NVIDIA GPU"):
        vt_fast.tokenize(x, queries, backend="cuda")
    with pytest.raises(RuntimeError, match="is not available here: torch finds no NVIDIA GPU"):
        torch.ops.vt_fast.tokenize_cuda(x, queries, None, None, None, 1, False)


@without_gpu
def test_it_is_not_chosen_without_a_gpu():
    assert dict(backends.report())["cuda"] is not None
    assert vt_fast.tokenize(torch.randn(1, 16, 32), torch.randn(4, 32)).shape == (1, 4, 32)


@built
def test_info_says_what_it_is_built_for():
    facts = library.facts()
    assert facts["compiled for"].startswith("sm_")
    assert facts["compiler"].startswith("nvcc ")
    assert "H100" in facts["proven"]


@pytest.mark.parametrize(
    ("architectures", "ptx", "runs", "runs_not"),
    [
        (["80"], None, [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        (["86"], None, [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        (["90a"], None, [(9, 0)], [(8, 0), (10, 0)]),
        (["80"], "80", [(8, 0), (9, 0), (12, 0)], [(7, 5)]),
        (["80", "90a", "100"], "100", [(8, 6), (9, 0), (10, 0), (10, 3), (12, 0)], [(7, 5)]),
    ],
)
def test_which_gpus_machine_code_and_ptx_run_on(architectures, ptx, runs, runs_not):
    for capability in runs:
        assert library._runs_on(*capability, architectures, ptx), capability
    for capability in runs_not:
        assert not library._runs_on(*capability, architectures, ptx), capability


def test_a_build_without_cuda_kernels_is_explained(tmp_path):
    assert "install nvcc" in library.load(tmp_path)
    (tmp_path / "build.json").write_text('{"cuda": {"reason": "nvcc was not found"}}')
    library.load.cache_clear()
    try:
        assert library.load(tmp_path) == "the CUDA kernels are not built: nvcc was not found"
    finally:
        library.load.cache_clear()
        library.load()


def test_without_nvcc_the_build_says_where_it_was_looked_for(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "VT_FAST_CUDA_ARCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cuda_build.shutil, "which", lambda name: None)
    with pytest.raises(CannotBuildError, match="nvcc was not found"):
        cuda_build.find()


def test_architectures_are_checked(monkeypatch):
    known = "compute_75\ncompute_80\ncompute_90\ncompute_100\n"
    monkeypatch.setenv("VT_FAST_CUDA_ARCH", "80,90a")
    assert cuda_build._architectures(known) == ["80", "90a"]
    monkeypatch.setenv("VT_FAST_CUDA_ARCH", "all")
    assert cuda_build._architectures(known) == ["80", "90a", "100"]
    for wrong in ("75", "81", "ninety"):
        monkeypatch.setenv("VT_FAST_CUDA_ARCH", wrong)
        with pytest.raises(CannotBuildError, match=f'got "{wrong}"'):
            cuda_build._architectures(known)
    monkeypatch.delenv("VT_FAST_CUDA_ARCH")
    monkeypatch.setattr(cuda_build.shutil, "which", lambda name: None)
    with pytest.raises(CannotBuildError, match="set VT_FAST_CUDA_ARCH"):
        cuda_build._architectures(known)


@pytest.mark.parametrize("backend", ["cuda", None])
def test_a_compiler_traces_calls_on_a_gpu(backend, monkeypatch):
    """Without reading files and without asking for the GPU, which is not here."""
    monkeypatch.setitem(backends._REASONS, "cuda", None)
    torch._dynamo.reset()
    targets = []

    def keep(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes if "vt_fast" in str(node.target))
        return graph.forward

    @functools.partial(torch.compile, fullgraph=True, backend=keep)
    def pool(x, queries):
        return vt_fast.tokenize(x, queries, backend=backend)

    with FakeTensorMode():
        x, queries = torch.empty(2, 5, 16, device="cuda"), torch.empty(3, 16, device="cuda")
        assert pool(x, queries).shape == (2, 3, 16)
    assert targets == ["vt_fast.tokenize.default"]
