"""The backend's functions."""

from vt_fast.backends.triton.launch.project import project, project_backward
from vt_fast.backends.triton.launch.project_tokenize import project_tokenize, project_tokenize_backward
from vt_fast.backends.triton.launch.tokenize import tokenize, tokenize_backward

__all__ = [
    "project",
    "project_backward",
    "project_tokenize",
    "project_tokenize_backward",
    "tokenize",
    "tokenize_backward",
]
