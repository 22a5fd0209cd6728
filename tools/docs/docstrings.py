"""An extension of Griffe: the package's docstrings as MkDocs reads them.

References such as ``:func:`merge``` become links; one to something that the site does not document fails the
build. The section "Example:" becomes Griffe's "Examples:". ``**options: Unpack[...]`` is spelled out in
signatures, and left as it is in the text, which says where the options are described.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?([\w.]+)`")
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class Docstrings(griffe.UnpackTypedDictExtension):
    """Rewrites docstrings and signatures once they are loaded."""

    def on_function(self, *, func: griffe.Function, **options: Any) -> None:
        """Spell out the keyword arguments of one function."""
        before = func.docstring
        super().on_function(func=func, **options)
        if before is not None:
            before.__dict__.pop("parsed", None)  # so that it is parsed again, without what was added
        func.docstring = before

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            text = _ROLE.sub(lambda match: _reference(obj, match[1]), obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", text)


def _reference(obj: griffe.Object, name: str) -> str:
    first, dot, rest = name.partition(".")
    owner = obj if obj.is_class else obj.parent
    if owner is not None and owner.is_class and first in owner.all_members:
        return f"[`{name}`][{owner.path}.{name}]"
    try:
        return f"[`{name}`][{obj.resolve(first)}{dot}{rest}]"
    except griffe.NameResolutionError:  # a full path, or what only matters if this docstring is shown
        return f"[`{name}`][{name}]"
