"""Comparisons of numbers that may be NaN, with the results of numpy and ONNX.

TVM's ``max`` and ``min`` drop a NaN on one side, its ``!=`` does not hold for NaN, and its simplifier turns
``not a < b`` into ``a >= b``: none of the three is used where floats are compared.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx


def maximum(left: Any, right: Any) -> tirx.Expr:
    """The larger number; NaN where either is."""
    return _keeping_nan(left, right, tirx.max, lambda a, b: a > b)


def minimum(left: Any, right: Any) -> tirx.Expr:
    """The smaller number; NaN where either is."""
    return _keeping_nan(left, right, tirx.min, lambda a, b: a < b)


def negated(condition: Any) -> tirx.Expr:
    """``not condition``, also where that is a comparison with NaN."""
    return tirx.Select(condition, tirx.const(False, "bool"), tirx.const(True, "bool"))


def is_nonzero(x: Any) -> tirx.Expr:
    """Whether the number is not 0; true for NaN."""
    return negated(tirx.EQ(x, tirx.const(0, x.ty.dtype)))


def is_nan(x: Any) -> tirx.Expr:
    return tirx.isnan(x.astype("float32") if str(x.ty.dtype) == "bfloat16" else x)


def _keeping_nan(left: Any, right: Any, of_integers: Any, better: Any) -> tirx.Expr:
    if "float" not in str(left.ty.dtype):
        return of_integers(left, right)
    if isinstance(right, tirx.FloatImm):  # right is not NaN, and a NaN on the left loses no comparison
        return tirx.Select(better(right, left), right, left)
    return tirx.Select(tirx.any(better(left, right), is_nan(left)), left, right)
