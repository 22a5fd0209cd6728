"""Kernels that ptxas is known to miscompile are refused before they are launched."""

from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from tools.triton.calls import Call
from tools.triton.gpus import GPUS
from vt_fast.backends.triton import INTERPRETED, settings
from vt_fast.backends.triton.ahead import compiling_for
from vt_fast.backends.triton.compiling import MiscompiledError, checked, fault
from vt_fast.backends.triton.schedule import standing_in
from vt_fast.backends.triton.settings import KEEP, Setting

PTX = """
.version {version}
.target sm_90a
	or.b64 	%rd119, %rd52, 4611686293305294848;
	add.s64 	%rd121, %rd52, 4611686293305294850;
	or.b64 	%rd137, %rd52, -4611685949707911168;
	add.s64 	%rd139, {address}, {number};
	add.s64 	%rd7, %rd52, 96;
	wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {{%r1}}, %rd102, %rd137, %p2, 1, 1, 0, 1;
"""


def code(version="8.7", address="%rd52", number="-4611685949707911136"):
    return PTX.format(version=version, address=address, number=number)


def test_one_address_in_descriptors_of_two_layouts_is_a_fault():
    assert "ptxas 12.8" in fault(code())


@pytest.mark.parametrize(
    "ptx",
    [
        code(version="8.8"),
        code(version="9.0"),
        code(address="%rd53"),
        code(number="4611686293305294852"),
        code().replace("wgmma", "mma"),
        "",
    ],
    ids=["ptxas 12.9", "ptxas 13", "two addresses", "one layout", "no wgmma", "AMD"],
)
def test_other_code_is_not(ptx):
    assert fault(ptx) is None


class Kernel:
    """As Triton's: compiles what is not in the cache."""

    def __init__(self, ptx):
        self.cache, self.ptx = {}, ptx

    def compile(self, source, target):
        return SimpleNamespace(asm={"ptx": self.ptx})

    def _do_compile(self, key):
        self.cache[key] = self.compile(key, target=None)
        return self.cache[key]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_a_faulty_kernel_does_not_reach_the_cache():
    kernel = checked(Kernel(code()))
    for _ in range(2):
        with pytest.raises(MiscompiledError):
            kernel._do_compile("key")
    assert not kernel.cache
    sound = checked(Kernel(code(version="8.8")))
    assert sound._do_compile("key") is sound.cache["key"]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_a_kernel_that_faulted_on_a_gpu():
    # NCHW, a large map: dqueries took the place of the gradients' tile in shared memory.
    gpu = GPUS["sm_90"]
    with standing_in(gpu.traits), settings.using(Setting(64, 64, 0, KEEP, 4, 3)):
        launch = Call.of("tokenize_backward", "bf16", "nchw", "8x60800x256x8").main_launch()
    with compiling_for(gpu.target):
        try:
            ptx = launch.request.compiled().asm["ptx"]
        except MiscompiledError:
            return
    assert fault(ptx) is None
    assert ".version 8.7" not in ptx  # Triton 3.6 brings ptxas 12.8
