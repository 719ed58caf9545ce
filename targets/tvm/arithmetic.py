"""Arithmetic on floats, which are no real numbers, and on integers, which not every division leaves whole.

TVM's simplifier takes floats for real numbers: it makes x of ``(x + y) - y``, which rounding does not, and 0 of
``x - x``, ``0 * x`` and ``0 / x``, which infinity and NaN are not. It cancels nothing of a sum.

Processors stop a program that divides an integer by 0, or the least one by -1, whose quotient is out of range.
"""

from __future__ import annotations

import math

from tvm import tirx

from moec.targets.tvm.comparisons import is_nan


def is_float(element: tirx.Expr) -> bool:
    return "float" in str(element.ty.dtype)


def is_unsigned(element: tirx.Expr) -> bool:
    return str(element.ty.dtype).startswith("uint")


def converted(element: tirx.Expr, target: str) -> tirx.Expr:
    """``element`` as another type. An integer that 8 or 16 bits do not hold wraps around, but TVM takes bounds that it
    knows of the element for bounds of the result: so the bits that are kept are written out."""
    source, bits = str(element.ty.dtype), {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16}.get(target)
    if bits is None or not source.startswith(("int", "uint")) or source == target:
        return element.astype(target)
    if source.endswith(("int8", "int16")):
        element, source = element.astype("int32"), "int32"
    kept = element & tirx.const(2**bits - 1, source)
    if target.startswith("uint"):
        return kept.astype(target)
    sign = tirx.const(2 ** (bits - 1), "int32")
    return ((kept.astype("int32") ^ sign) - sign).astype(target)


def difference(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    return left + -right if is_float(left) else left - right


def product(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    for one, other in ((left, right), (right, left)):
        if _is_zero(one):
            return difference(other, other)
    return left * right


def quotient(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """The quotient of floats."""
    if not _is_zero(left):
        return left / right
    has_none = tirx.Or(is_nan(right), tirx.EQ(right, tirx.const(0, right.ty.dtype)))
    return tirx.Select(has_none, tirx.const(math.nan, right.ty.dtype), left)


def truncated_quotient(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """The quotient of integers, rounded towards zero. ONNX leaves open what x / 0 is: here it is 0. Over -1 it is the
    negative of x, modulo 2^bits."""
    found = tirx.truncdiv(left, divisor_of_remainder(right))
    if is_unsigned(right):
        return found
    return tirx.Select(tirx.EQ(right, tirx.const(-1, right.ty.dtype)), tirx.const(0, left.ty.dtype) - left, found)


def divisor_of_remainder(right: tirx.Expr) -> tirx.Expr:
    """A divisor that leaves the same remainder and never traps: 1 for -1, and for 0, of which ONNX says nothing."""
    if is_unsigned(right):
        return nonzero(right)
    return nonzero(right) + _is(-1, right) * tirx.const(2, right.ty.dtype)


def nonzero(divisor: tirx.Expr) -> tirx.Expr:
    """1 for 0. No Select: TVM's simplifier moves a division into it, and a processor divides before it selects."""
    return divisor + _is(0, divisor)


def _is(number: int, element: tirx.Expr) -> tirx.Expr:
    """1 where an element is the number, else 0."""
    return tirx.Cast(element.ty.dtype, tirx.EQ(element, tirx.const(number, element.ty.dtype)))


def _is_zero(element: tirx.Expr) -> bool:
    return isinstance(element, tirx.FloatImm) and element.value == 0
