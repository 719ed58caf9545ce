"""Arithmetic that is safe from TVM's simplifier, for floats, and from traps of the processor, for integers.

TVM's simplifier treats floats as real numbers: it reduces ``(x + y) - y`` to x, although rounding changes it, and
``x - x``, ``0 * x`` and ``0 / x`` to 0, although x may be infinite or NaN. It cancels nothing in a sum, so a difference
is written as the sum with the negative.

Processors stop a program that divides an integer by 0, or the least integer by -1, whose quotient is out of range.
"""

from __future__ import annotations

import math

from tvm import tirx

from moec.targets.tvm.kernels.comparisons import is_nan


def is_float(element: tirx.Expr) -> bool:
    return "float" in str(element.ty.dtype)


def is_unsigned(element: tirx.Expr) -> bool:
    return str(element.ty.dtype).startswith("uint")


def converted(element: tirx.Expr, target: str) -> tirx.Expr:
    """``element`` as another type; an integer that does not fit 8 or 16 bits wraps around.

    TVM would apply the bounds it knows of the element to the result, so the wrapping is written out bit by bit."""
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
    for factor, other in ((left, right), (right, left)):
        if _is_zero(factor):
            return difference(other, other)
    return left * right


def quotient(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """The quotient of floats. By a constant 0, which TVM refuses to divide by, it is the product with infinity."""
    if _is_zero(right) and not _is_zero(left):
        return left * tirx.const(math.copysign(math.inf, right.value), right.ty.dtype)
    if not _is_zero(left):
        return left / right
    has_none = tirx.Or(is_nan(right), tirx.EQ(right, tirx.const(0, right.ty.dtype)))
    return tirx.Select(has_none, tirx.const(math.nan, right.ty.dtype), left)


def truncated_quotient(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """The quotient of integers, rounded towards zero; x / -1 is the negative of x, modulo 2^bits.

    ONNX does not define x / 0; here it is computed as x / 1."""
    quotient = tirx.truncdiv(left, divisor_of_remainder(right))
    if is_unsigned(right):
        return quotient
    return tirx.Select(tirx.EQ(right, tirx.const(-1, right.ty.dtype)), tirx.const(0, left.ty.dtype) - left, quotient)


def divisor_of_remainder(right: tirx.Expr) -> tirx.Expr:
    """A divisor with the same remainder that never traps: 1 for -1, and for 0, whose remainder ONNX does not define."""
    if is_unsigned(right):
        return nonzero(right)
    return nonzero(right) + _is(-1, right) * tirx.const(2, right.ty.dtype)


def nonzero(divisor: tirx.Expr) -> tirx.Expr:
    """The divisor, with 1 for 0. Not by a Select: TVM would move the division into it, before the selection."""
    return divisor + _is(0, divisor)


def _is(number: int, element: tirx.Expr) -> tirx.Expr:
    """1 where an element is the number, else 0."""
    return tirx.Cast(element.ty.dtype, tirx.EQ(element, tirx.const(number, element.ty.dtype)))


def _is_zero(element: tirx.Expr) -> bool:
    return isinstance(element, tirx.FloatImm) and element.value == 0
