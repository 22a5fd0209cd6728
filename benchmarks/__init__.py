"""How fast vt_fast is, next to its floor and to what else one could run: see ``benchmarks/README.md``.

``cases`` says what is measured and ``peers`` against what; both are plain registries. ``timing`` has the
rules of timing, ``gate`` refuses wrong results, ``report`` reads a result file. Importing this initialises
nothing and does not import torch: a child process must set its CPUs first.
"""
