"""How fast vt_fast is, next to its floor and to other code: see ``benchmarks/README.md``.

``shapes`` says what is measured and ``peers`` against what. ``runner`` has the loop, which runs in child
processes of ``processes``; ``check`` refuses wrong results. Importing this does not import torch: a child
process must set its CPUs first.
"""
