"""Arithmetic on floats, which are no real numbers.

TVM's simplifier takes them for that: it makes x of ``(x + y) - y``, which rounding does not, and 0 of ``x - x``,
``0 * x`` and ``0 / x``, which infinity and NaN are not. It cancels nothing of a sum.
"""

from __future__ import annotations

import math

from tvm import tirx

from moec.targets.tvm.comparisons import is_nan


def is_float(element: tirx.Expr) -> bool:
    return "float" in str(element.ty.dtype)


def difference(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    return left + -right if is_float(left) else left - right


def product(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    for one, other in ((left, right), (right, left)):
        if _is_zero(one):
            return difference(other, other)
    return left * right


def quotient(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """Of floats."""
    if not _is_zero(left):
        return left / right
    has_none = tirx.Or(is_nan(right), tirx.EQ(right, tirx.const(0, right.ty.dtype)))
    return tirx.Select(has_none, tirx.const(math.nan, right.ty.dtype), left)


def _is_zero(element: tirx.Expr) -> bool:
    return isinstance(element, tirx.FloatImm) and element.value == 0
