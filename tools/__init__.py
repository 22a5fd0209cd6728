"""Tools for work on the package; no part of what is installed."""
