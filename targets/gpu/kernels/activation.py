"""Activations as float32 expressions of one thread, for the epilogue of a matrix product.

NaN and infinity have the same results as in numpy, see :mod:`moec.ir.semantics`. Results that are rounded to 16 bits
use CUDA's fast exponential and quotient. Their error is a few units in the last place of float32, at most 105 for the
largest exponentials (CUDA C++ Programming Guide, intrinsic functions). That is 1 / 80000 of the result, a fortieth of
the error of rounding to float16. The precise functions take a hundred instructions.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from moec.ir.dialect import ExpertsSpec
from moec.targets.tvm.kernels.activation import Activations, Expression, at_least


def sigmoid(x: Expression) -> Expression:
    """1 / (1 + e**-x). If the exponential overflows, the quotient is 0, which is the limit."""
    return T.float32(1) / (T.float32(1) + T.exp(-x))


def softplus(x: Expression) -> Expression:
    """log(1 + e**x), without overflow."""
    return at_least(x, 0.0) + T.log1p(T.exp(-T.abs(x)))


def _fast_sigmoid(x: Expression) -> Expression:
    """1 / (1 + e**-x) by fast instructions. If the exponential is above 2**126, the quotient is 0."""
    exponential = T.call_pure_extern("float32", "__expf", -x)
    return T.call_pure_extern("float32", "__fdividef", T.float32(1), T.float32(1) + exponential)


_PRECISE = Activations(sigmoid, T.tanh, T.erf)
_FAST = Activations(_fast_sigmoid, T.tanh, T.erf)


def activate(spec: ExpertsSpec, x: Expression, out_dtype: str) -> Expression:
    """The activation of ``x``, for a result of ``out_dtype``."""
    return _activations(out_dtype).activate(spec, x)


def experts_epilogue(spec: ExpertsSpec, out_dtype: str) -> Callable[..., Expression]:
    """The function from sums to hidden values of ``out_dtype``: ``f(gate, up)`` if experts are gated, else
    ``f(sum)``."""
    return _activations(out_dtype).experts_epilogue(spec)


def _activations(out_dtype: str) -> Activations:
    return _PRECISE if out_dtype == "float32" else _FAST
