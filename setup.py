"""Everything about the package is in pyproject.toml, and its kernels are built by native_build."""

import sys
from pathlib import Path

from setuptools import Extension, setup

# A build frontend runs this file without its folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from native_build.command import BuildNative, NativeWheel

setup(
    # No module has this name: an extension makes setuptools run build_ext.
    ext_modules=[Extension("vt_fast._native.kernels", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": NativeWheel},
)
