"""Compute with bfloat16 in float32, and round every result to bfloat16.

TVM's own phase for processors without bfloat16 (``BF16ComputeLegalize``) has two faults. It computes a whole expression
in float32 and so loses the rounding between two operators. And it leaves a cast in the value of a variable unchanged:
the next phase, which stores bfloat16 as 16-bit integers, turns that into a conversion from an integer, and 1.0 would
become 16256.0. This pass replaces every operation by one on the bits.

1. A cast from bfloat16 is one from the float32 whose upper half it is.
2. A cast to bfloat16 rounds a float32 to the nearest, ties to even; a NaN stays one.
3. Arithmetic and comparisons of bfloat16 are those of float32, and a result is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)
_COMPARISONS = (tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE)
_IF_THEN_ELSE = tvm.ir.Op.get("prim.if_then_else")
_INFINITY = 0x7F800000
_QUIET = 0x40


@tirx.transform.prim_func_pass(opt_level=0, name="WidenBFloat16")
class WidenBFloat16:
    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        rules: list[tuple[type, Callable[[Any], Any]]] = [
            (tirx.Cast, _cast),
            *((operator, _arithmetic) for operator in _ARITHMETIC),
            *((operator, _comparison) for operator in _COMPARISONS),
        ]
        return function.with_body(tvm_ffi.structural_map(function.body, rules))


def _cast(cast: tirx.Cast) -> tirx.Expr:
    value, target = cast.value, str(cast.ty.dtype)
    if _is_bfloat16(value):
        return T.cast(_widened(value), target)
    if _is_bfloat16(cast):
        return _rounded(T.cast(value, target.replace("bfloat16", "float32")))
    return cast


def _arithmetic(operation: Any) -> tirx.Expr:
    if not _is_bfloat16(operation):
        return operation
    return _rounded(type(operation)(_widened(operation.a), _widened(operation.b)))


def _comparison(comparison: Any) -> tirx.Expr:
    if not _is_bfloat16(comparison.a):
        return comparison
    return type(comparison)(_widened(comparison.a), _widened(comparison.b))


def _is_bfloat16(value: Any) -> bool:
    return str(value.ty.dtype).partition("x")[0] == "bfloat16"


def _like(dtype: str, value: Any) -> str:
    """The type with as many lanes as the value has."""
    _, _, lanes = str(value.ty.dtype).partition("x")
    return f"{dtype}x{lanes}" if lanes else dtype


def _all(number: int, value: Any) -> tirx.Expr:
    """The number in every lane of a uint32."""
    _, _, lanes = str(value.ty.dtype).partition("x")
    return T.broadcast(T.uint32(number), int(lanes)) if lanes else T.uint32(number)


def _widened(value: Any) -> tirx.Expr:
    if isinstance(value, tirx.FloatImm):
        return T.float32(value.value)
    if isinstance(value, tirx.Broadcast):
        return T.broadcast(_widened(value.value), value.lanes)
    if isinstance(value, tirx.Select):  # which TVM's phase would make one of float32
        return tirx.Select(value.condition, _widened(value.true_value), _widened(value.false_value))
    if isinstance(value, tvm.ir.Call) and value.op == _IF_THEN_ELSE:
        condition, *branches = value.args
        return tirx.if_then_else(condition, *map(_widened, branches))
    bits = T.cast(T.reinterpret(_like("uint16", value), value), _like("uint32", value))
    return T.reinterpret(_like("float32", value), bits << _all(16, value))


def _rounded(value: Any) -> tirx.Expr:
    """float32 as bfloat16."""
    bits = tirx.Var("bits", _like("uint32", value))
    upper = bits >> _all(16, value)
    nearest = (bits + _all(0x7FFF, value) + (upper & _all(1, value))) >> _all(16, value)
    is_nan = (bits & _all(0x7FFFFFFF, value)) > _all(_INFINITY, value)
    half = T.Select(is_nan, upper | _all(_QUIET, value), nearest)
    rounded = T.reinterpret(_like("bfloat16", value), T.cast(half, _like("uint16", value)))
    return tirx.Let(bits, T.reinterpret(_like("uint32", value), value), rounded)
