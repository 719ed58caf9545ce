"""Elementwise operators as TIR expressions: functions of one element, and functions of two."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from moec.targets.tvm.kernels.arithmetic import (
    difference,
    divisor_of_remainder,
    is_float,
    is_unsigned,
    product,
    quotient,
    truncated_quotient,
)
from moec.targets.tvm.kernels.comparisons import is_nan, maximum, minimum, negated

Scalar = Callable[..., tirx.Expr]


def like(number: float, element: tirx.Expr) -> tirx.Expr:
    """A constant of the element's type."""
    return tirx.const(number, element.ty.dtype)


def in_float32(function: Scalar) -> Scalar:
    """Compute 16-bit floats in float32: mathematical functions have no 16-bit form."""

    @functools.wraps(function)
    def wrapped(*elements: tirx.Expr) -> tirx.Expr:
        dtype = str(elements[0].ty.dtype)
        if dtype not in ("float16", "bfloat16"):
            return function(*elements)
        return function(*(element.astype("float32") for element in elements)).astype(dtype)

    return wrapped


def in_float64(function: Scalar) -> Scalar:
    """Compute all floats in float64, for formulas in which digits of float32 would cancel."""

    @functools.wraps(function)
    def wrapped(*elements: tirx.Expr) -> tirx.Expr:
        dtype = str(elements[0].ty.dtype)
        return function(*(element.astype("float64") for element in elements)).astype(dtype)

    return wrapped


# Functions of one element


def _sigmoid(x: tirx.Expr) -> tirx.Expr:
    return like(1, x) / (like(1, x) + tirx.exp(-x))


def _softplus(x: tirx.Expr) -> tirx.Expr:
    small = tirx.exp(-tirx.abs(x)).astype("float64")  # 1 + small keeps all digits of small
    return tirx.log(like(1, small) + small).astype(x.ty.dtype) + tirx.max(x, like(0, x))


def _sign(x: tirx.Expr) -> tirx.Expr:
    zero = like(0, x)
    signless = tirx.Select(tirx.EQ(x, zero), zero, x)  # NaN is left
    return tirx.Select(x > zero, like(1, x), tirx.Select(x < zero, like(0 if is_unsigned(x) else -1, x), signless))


def gelu(x: tirx.Expr) -> tirx.Expr:
    """The exact form, by erf."""
    return like(0.5, x) * x * (like(1, x) + tirx.erf(x * like(math.sqrt(0.5), x)))


def gelu_tanh(x: tirx.Expr) -> tirx.Expr:
    """The tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415)."""
    inner = like(math.sqrt(2 / math.pi), x) * (x + like(0.044715, x) * x * x * x)
    return like(0.5, x) * x * (like(1, x) + tirx.tanh(inner))


def swish(x: tirx.Expr, alpha: float) -> tirx.Expr:
    """``x * sigmoid(alpha * x)``."""
    return x / (like(1, x) + tirx.exp(-product(x, like(alpha, x))))


def _asinh(x: tirx.Expr) -> tirx.Expr:
    size = tirx.abs(x)
    positive = tirx.log(size + tirx.sqrt(size * size + like(1, x)))
    return tirx.Select(x < like(0, x), -positive, positive)


UNARY: dict[str, Scalar] = {
    "Abs": lambda x: x if is_unsigned(x) else tirx.abs(x),
    "Neg": lambda x: -x,
    "Relu": lambda x: maximum(x, like(0, x)),
    "Sign": _sign,
    "Not": negated,
    "BitwiseNot": lambda x: ~x,
    "Identity": lambda x: x,
    "IsNaN": is_nan,
    "Floor": in_float32(tirx.floor),
    "Ceil": in_float32(tirx.ceil),
    "Round": in_float32(tirx.nearbyint),
    "Reciprocal": in_float32(lambda x: like(1, x) / x),
    "Sqrt": in_float32(tirx.sqrt),
    "Exp": in_float32(tirx.exp),
    "Log": in_float32(tirx.log),
    "Sin": in_float32(tirx.sin),
    "Cos": in_float32(tirx.cos),
    "Tan": in_float32(tirx.tan),
    "Acos": in_float32(tirx.acos),
    "Asin": in_float32(tirx.asin),
    "Atan": in_float32(tirx.atan),
    "Sinh": in_float64(lambda x: like(0.5, x) * (tirx.exp(x) - tirx.exp(-x))),
    "Cosh": in_float64(lambda x: like(0.5, x) * (tirx.exp(x) + tirx.exp(-x))),
    "Asinh": in_float64(_asinh),
    "Acosh": in_float64(lambda x: tirx.log(x + tirx.sqrt(x - like(1, x)) * tirx.sqrt(x + like(1, x)))),
    "Atanh": in_float64(lambda x: like(0.5, x) * tirx.log((like(1, x) + x) / (like(1, x) - x))),
    "Tanh": in_float32(tirx.tanh),
    "Erf": in_float32(tirx.erf),
    "Sigmoid": in_float32(_sigmoid),
    "Softplus": in_float32(_softplus),
    "Softsign": in_float32(lambda x: x / (like(1, x) + tirx.abs(x))),
}


# Functions of two elements


def _divide(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    if is_float(left):
        return quotient(left, right)
    return truncated_quotient(left, right)


def modulo(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """The remainder of integers with the sign of the divisor."""
    return tirx.floormod(left, divisor_of_remainder(right))


def c_modulo(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """The remainder with the sign of the dividend."""
    if is_float(left):
        # TVM has no fmod for processors; the quotient of two float32 is exact enough in float64.
        wide, divisor = left.astype("float64"), right.astype("float64")
        remainder = (wide - tirx.trunc(wide / divisor) * divisor).astype(left.ty.dtype)
        endless = tirx.all(tirx.abs(divisor) == like(math.inf, divisor), tirx.abs(wide) < like(math.inf, wide))
        return tirx.Select(endless, left, remainder)
    return tirx.truncmod(left, divisor_of_remainder(right))


def floor_modulo(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """The remainder of floats with the sign of the divisor."""
    remainder = c_modulo(left, right)
    zero = like(0, remainder)
    differs = tirx.any(tirx.all(remainder < zero, right > zero), tirx.all(remainder > zero, right < zero))
    return tirx.Select(differs, remainder + right, remainder)


def _root(base: tirx.Expr) -> tirx.Expr:
    """``base ** 0.5``, which is not its square root where that is -0 or -inf (IEEE 754-2019, 9.2.1)."""
    return tirx.Select(base == like(-math.inf, base), like(math.inf, base), tirx.abs(tirx.sqrt(base)))


def _power(base: tirx.Expr, exponent: tirx.Expr) -> tirx.Expr:
    dtype = str(base.ty.dtype)
    if isinstance(exponent, (tirx.FloatImm, tirx.IntImm)):
        number = float(exponent.value)
        if number in (1.0, 2.0, 3.0):
            return math.prod([base] * (int(number) - 1), start=base)
        if number == 0.5 and is_float(base):
            return in_float32(_root)(base)
    wide = "float64" if dtype in ("float64", "int64", "int32") else "float32"
    return tirx.pow(base.astype(wide), exponent.astype(wide)).astype(dtype)


def _comparison(compare: Callable[[Any, Any], Any]) -> Scalar:
    def scalar(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
        if str(left.ty.dtype) == "bool":
            left, right = left.astype("int32"), right.astype("int32")
        return compare(left, right)

    return scalar


BINARY: dict[str, Scalar] = {
    "Add": lambda a, b: a + b,
    "Sub": difference,
    "Mul": product,
    "Div": _divide,
    "Pow": _power,
    "Max": maximum,
    "Min": minimum,
    "And": lambda a, b: tirx.And(a, b),
    "Or": lambda a, b: tirx.Or(a, b),
    "Xor": _comparison(lambda a, b: tirx.NE(a, b)),
    "Equal": _comparison(lambda a, b: tirx.EQ(a, b)),
    "Less": _comparison(lambda a, b: tirx.LT(a, b)),
    "LessOrEqual": _comparison(lambda a, b: tirx.LE(a, b)),
    "Greater": _comparison(lambda a, b: tirx.GT(a, b)),
    "GreaterOrEqual": _comparison(lambda a, b: tirx.GE(a, b)),
    "BitwiseAnd": lambda a, b: a & b,
    "BitwiseOr": lambda a, b: a | b,
    "BitwiseXor": lambda a, b: a ^ b,
}
