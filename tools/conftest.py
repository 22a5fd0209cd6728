"""Settings of pytest for the examples in docstrings."""

# MkDocs runs these, in an environment of its own.
collect_ignore = ["docs/hooks.py", "docs/docstrings.py"]
