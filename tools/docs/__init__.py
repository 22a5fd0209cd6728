"""The documentation site: what `mkdocs.yml` runs, and the code that draws its pictures."""
