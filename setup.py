"""Everything about the package is in pyproject.toml; this file is where the C++ build will be added."""

from setuptools import setup

setup()
