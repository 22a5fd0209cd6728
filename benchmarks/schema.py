"""JSON Schema from dataclasses, and a check against it.

Only the words are known that these schemas use: type, enum, minimum, properties, required, items,
prefixItems, additionalProperties, minItems, maxItems and anyOf. So nothing has to be installed to save a
result, and whatever else reads JSON Schema can read these too.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

_NAMES: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list, tuple),
    "object": (dict,),
}


def schema_of(hint: Any, narrower: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of a type: a dataclass, a NamedTuple, a list, a dictionary by name, a union, a scalar.

    A dataclass's fields without a default are required, and others than its fields are refused.

    Args:
        hint: the type.
        narrower: by "Class" or "Class.field", what is added to that schema.

    Raises:
        TypeError: a type that has no schema here.

    Example:
        >>> schema_of(dict[str, float])
        {'type': 'object', 'additionalProperties': {'type': 'number'}}
    """
    narrower = {} if narrower is None else narrower
    if hint is Any:
        return {}
    if hint in _NAMES:
        return {"type": _NAMES[hint]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _object(hint, narrower)
    if hasattr(hint, "_fields"):
        parts = [schema_of(part, narrower) for part in typing.get_type_hints(hint).values()]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(part, narrower) for part in arguments]}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0], narrower)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], narrower)}
    raise TypeError(f"`hint` must be a type that JSON has, got {hint!r}")


def _object(hint: type, narrower: Mapping[str, Schema]) -> Schema:
    hints = typing.get_type_hints(hint)
    properties, required = {}, []
    for field in dataclasses.fields(hint):  # type: ignore[arg-type]
        extra = narrower.get(f"{hint.__name__}.{field.name}", {})
        properties[field.name] = {**schema_of(hints[field.name], narrower), **extra}
        if field.default is field.default_factory is dataclasses.MISSING:
            required.append(field.name)
    found = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return {**found, **narrower.get(hint.__name__, {})}


def complaints(value: Any, schema: Schema | bool, where: str = "") -> Iterator[str]:
    """What is wrong with a value, each with its place; nothing if it fits.

    Example:
        >>> list(complaints({"a": [1, "x"]}, schema_of(dict[str, list[int]])))
        ['a[1] must be integer, got "x"']
    """
    place = where or "the file"
    if schema is True:
        return
    if schema is False:
        yield f"{place} must not be there"
        return
    if "anyOf" in schema and not any(_fits(value, each) for each in schema["anyOf"]):
        # The complaints of the closest one say more than that none fits.
        yield min((list(complaints(value, each, where)) for each in schema["anyOf"]), key=_kindness)[0]
    name = schema.get("type")
    if name is not None and not _is(value, name):
        yield f"{place} must be {name}, got {_shown(value)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} must be one of {', '.join(map(_shown, schema['enum']))}, got {_shown(value)}"
    if "minimum" in schema and not value >= schema["minimum"]:
        yield f"{place} must be at least {schema['minimum']}, got {_shown(value)}"
    if isinstance(value, dict):
        yield from _in_object(value, schema, where)
    elif isinstance(value, list | tuple):
        yield from _in_array(value, schema, where)


def _in_object(value: dict[Any, Any], schema: Schema, where: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f'{where or "the file"} must have "{name}"'
    for name, part in value.items():
        rule = properties.get(name, schema.get("additionalProperties", True))
        yield from complaints(part, rule, f"{where}.{name}" if where else str(name))


def _in_array(value: list[Any] | tuple[Any, ...], schema: Schema, where: str) -> Iterator[str]:
    if len(value) < schema.get("minItems", 0):
        yield f"{where} must have at least {schema['minItems']} items, got {len(value)}"
    if len(value) > schema.get("maxItems", len(value)):
        yield f"{where} must have at most {schema['maxItems']} items, got {len(value)}"
    first = schema.get("prefixItems", ())
    for index, part in enumerate(value):
        rule = first[index] if index < len(first) else schema.get("items", True)
        yield from complaints(part, rule, f"{where}[{index}]")


def _is(value: Any, name: str) -> bool:
    # A bool is an int to Python, and not to JSON.
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _fits(value: Any, schema: Schema | bool) -> bool:
    return next(complaints(value, schema), None) is None


def _kindness(found: list[str]) -> tuple[bool, int]:
    """Null is never what was meant."""
    return "must be null" in found[0], len(found)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"{len(value)} items"
    return f'"{value}"' if isinstance(value, str) else {None: "null"}.get(value, str(value))
