"""Mutation testing: puts small faults into a copy of the sources, and reports which ones the tests notice.

::

    python -m tools.mutants run --target ops --output before.jsonl
    python -m tools.mutants run --target ops --only before.jsonl --output after.jsonl
    python -m tools.mutants compare before.jsonl after.jsonl

A mutant's id depends on the sources alone, so the same faults can be tried again on other tests. The folder
``noticed`` has results to compare with: of ops and Triton kernels from before cases were reduced to covers of
pairs; of modules, which lost none, from after.
"""
