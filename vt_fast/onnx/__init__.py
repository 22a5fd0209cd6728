"""ONNX export: the ops as plain algebra on folded operands.

A model needs nothing of this: while `torch.onnx.export` traces it, the functions of
:mod:`vt_fast.functional` compute :mod:`vt_fast.onnx.algebra`. A program that `torch.export` has made before
holds the ops themselves, for which the exporter takes a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vt_fast.ops import library

__all__ = ["translation_table"]


def translation_table() -> dict[Any, Callable[..., Any]]:
    """The ops in ONNX, as `torch.onnx.export` takes them in `custom_translation_table`.

    Raises:
        ModuleNotFoundError: onnxscript is not installed.

    Example:
        >>> import torch, vt_fast
        >>> tokenizer = vt_fast.nn.FilterTokenizer(8, num_tokens=4)
        >>> program = torch.export.export(tokenizer, (torch.randn(2, 8, 5, 7),))
        >>> table = vt_fast.onnx.translation_table()
        >>> made = torch.onnx.export(program, custom_translation_table=table, verbose=False)
        >>> [output.shape for output in made.model.graph.outputs]
        [Shape([2, 4, 8])]
    """
    from vt_fast.onnx.translations import translations

    library.onnx_table_exists = True
    return translations()
