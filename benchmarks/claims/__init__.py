"""The paper's claims tried in miniature, on data that comes inside Python packages; see PLAN.md."""
