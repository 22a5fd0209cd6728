"""The build of the kernels in csrc/: its toolchain, its rules for ninja, and its setuptools commands.

Used by setup.py alone; not part of the installed package.
"""
