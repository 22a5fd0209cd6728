"""The ops in ONNX Script: :mod:`vt_fast.onnx.algebra` once more, for programs that hold the ops themselves.

Calls are the records of :mod:`vt_fast.backends.contract`, with values of the graph in place of tensors. Maps
are worked on as (B, C, N), called columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vt_fast.backends.contract import Project, ProjectTokenize, Tokenize

try:
    import onnx_ir as ir
    import onnxscript
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}, which ONNX export needs: pip install 'vt_fast[onnx]'") from error

op: Any = onnxscript.opset18  # typed for single dtypes


def translations() -> dict[Any, Callable[..., Any]]:
    """The function that translates each op, called with what the op's node has."""
    ops = torch.ops.vt_fast
    return {
        ops.tokenize.default: _translation(ops.tokenize.default, Tokenize, _tokenize),
        ops.project.default: _translation(ops.project.default, Project, _project),
        ops.project_tokenize.default: _translation(
            ops.project_tokenize.default, ProjectTokenize, _project_tokenize
        ),
    }


def _translation(
    overload: Any, record: Any, function: Callable[[Any], tuple[Any, ...]]
) -> Callable[..., Any]:
    """A function of the op's arguments, those with a default left out or not, and without its backend."""
    arguments = overload._schema.arguments
    defaults = {each.name: each.default_value for each in arguments if each.has_default_value()}

    def translation(*args: Any, **kwargs: Any) -> Any:
        given = defaults | {each.name: value for each, value in zip(arguments, args, strict=False)} | kwargs
        call = record(**{name: given.pop(name) for name in record._fields})
        for name, value in given.items():
            if name != "backend" and value != defaults[name]:
                raise NotImplementedError(f"`{name}` of {overload} has no translation to ONNX")
        for name, default in record._field_defaults.items():
            if getattr(call, name) != default:
                raise NotImplementedError(f"`{name}` of {overload} has no translation to ONNX")
        results = function(call)
        return results if len(results) > 1 else results[0]

    return translation


def _tokenize(call: Any) -> tuple[Any, ...]:
    return _pooled(_columns(call.x), _channels(call.x), call, call.num_heads)


def _project(call: Any) -> tuple[Any, ...]:
    return (_like(call.x, _spread(call)),)


def _project_tokenize(call: Any) -> tuple[Any, ...]:
    columns = _spread(call)
    y = _like(call.x, columns) if call.return_map else _nothing()
    return (y, *_pooled(columns, call.values.shape[-1], call, 1))


def _pooled(columns: Any, channels: int, call: Any, num_heads: int) -> tuple[Any, ...]:
    """Tokens (B, L, C + P), the same unrounded, and lse (B, num_heads * L)."""
    mask, bias, extra_values, dtype = call.mask, call.pixel_bias, call.extra_values, call.x.dtype
    exact = _exact(dtype)
    valid = None if mask is None else _reshaped(mask, 0, 1, 1, -1)
    if bias is not None:
        bias = op.Cast(_reshaped(bias, 0, 1, 1, -1), to=exact)
        finite = op.Not(op.IsInf(bias, detect_positive=0))
        valid = finite if valid is None else op.And(valid, finite)
    if valid is not None:
        columns = op.Where(_reshaped(valid, 0, 1, -1), columns, _number(0, dtype))
    blocks = _reshaped(columns, 0, num_heads, channels // num_heads, -1)
    logits = op.Cast(op.MatMul(_heads(call.queries, num_heads), blocks), to=exact)
    if bias is not None:
        logits = op.Add(logits, bias)
    if valid is not None:
        logits = op.Where(valid, logits, _number(-torch.inf, exact))
    weights = op.Softmax(logits, axis=-1)
    lse = _reshaped(op.ReduceLogSumExp(logits, _ints(-1), keepdims=0), 0, -1)
    if valid is not None:
        some = _any(valid, -1)  # (B, 1, 1, 1)
        weights = op.Where(some, weights, _number(0, exact))
    weights = op.Cast(weights, to=dtype)
    tokens = op.MatMul(weights, op.Transpose(blocks, perm=[0, 1, 3, 2]))
    tokens = _reshaped(op.Transpose(tokens, perm=[0, 2, 1, 3]), 0, 0, channels)
    if extra_values is not None:
        tokens = op.Concat(tokens, op.MatMul(op.Squeeze(weights, _ints(1)), extra_values), axis=-1)
    # Nothing but a backward reads the exact tokens.
    unrounded = op.Cast(tokens, to=exact) if call.keep_exact and exact != dtype else _nothing()
    return tokens, unrounded, lse


def _spread(call: Any) -> Any:
    """The map's columns (B, D, N)."""
    x, keys, values, token_bias, num_heads = call.x, call.keys, call.values, call.token_bias, call.num_heads
    exact, columns, channels = _exact(x.dtype), _columns(x), values.shape[-1]
    if num_heads > 1 and keys.shape[-1] != _channels(x):
        raise NotImplementedError("keys for channel blocks have no translation to ONNX")
    if num_heads > 1 and values.shape[-2] == keys.shape[-2]:
        raise NotImplementedError("values that are summed over the heads have no translation to ONNX")
    lead = [0] * (len(values.shape) - 2)  # of the batch, if it does not share them
    keys = _heads(keys, num_heads)
    values = _reshaped(values, *lead, 0, num_heads, channels // num_heads)
    values = op.Transpose(values, perm=[0, 2, 1, 3] if lead else [1, 0, 2])
    bias = removed = None
    if token_bias is not None:
        bias = _reshaped(token_bias, *[0] * (len(token_bias.shape) - 1), num_heads, -1, 1)
        bias = op.Cast(bias, to=exact)
        removed = op.IsInf(bias, detect_positive=0)
        keys, values = (op.Where(removed, _number(0, x.dtype), rows) for rows in (keys, values))
        lead = lead or [0] * (len(token_bias.shape) - 1)
    logits = op.Cast(op.MatMul(keys, op.Unsqueeze(columns, _ints(1))), to=exact)
    weights = op.Softmax(logits if bias is None else op.Add(logits, bias), axis=-2)
    if removed is not None:
        weights = op.Where(_any(op.Not(removed), -2), weights, _number(0, exact))
    values = op.Transpose(values, perm=[0, 1, 3, 2] if lead else [0, 2, 1])
    y = _reshaped(op.MatMul(values, op.Cast(weights, to=x.dtype)), 0, channels, -1)
    if call.residual_is_input:
        return op.Add(y, columns)
    return y if call.residual is None else op.Add(y, _columns(call.residual))


def _channels(x: Any) -> Any:
    return x.shape[2 if len(x.shape) == 3 else 1]


def _columns(x: Any) -> Any:
    """(B, C, N) of a map in either form."""
    return op.Transpose(x, perm=[0, 2, 1]) if len(x.shape) == 3 else _reshaped(x, 0, 0, -1)


def _like(x: Any, columns: Any) -> Any:
    """A map in the form of x."""
    if len(x.shape) == 3:
        return op.Transpose(columns, perm=[0, 2, 1])
    return op.Reshape(columns, op.Concat(op.Shape(columns, start=0, end=2), op.Shape(x, start=2), axis=0))


def _heads(rows: Any, num_heads: int) -> Any:
    """Rows (.., num_heads * L, C) as (.., num_heads, L, C)."""
    return _reshaped(rows, *[0] * (len(rows.shape) - 2), num_heads, -1, rows.shape[-1])


def _any(flags: Any, axis: int) -> Any:
    return op.Cast(op.ReduceMax(op.Cast(flags, to=ir.DataType.INT32), _ints(axis)), to=ir.DataType.BOOL)


def _reshaped(value: Any, *sizes: int) -> Any:
    """0 keeps the size at its place."""
    return op.Reshape(value, _ints(*sizes))


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=values)


def _number(value: float, dtype: ir.DataType) -> Any:
    return op.Cast(op.Constant(value_float=float(value)), to=dtype)


def _nothing() -> Any:
    """No elements, in place of a result that nothing reads."""
    return op.ConstantOfShape(_ints(0))


def _exact(dtype: ir.DataType) -> ir.DataType:
    """The dtype of softmax and statistics."""
    return dtype if dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
