"""Building the kernels in csrc/: what is needed for it, what is compiled how, and setuptools' part in it.

Used by setup.py alone, and no part of the installed package.
"""
