"""Activations as float32 expressions of one thread, for the epilogue of a matrix product.

NaN and infinity give what numpy gives, see :mod:`moec.ir.semantics`.
"""

from __future__ import annotations

from tvm.script import tirx as T

from moec.targets.tvm.activation import Activations, Expression, at_least


def sigmoid(x: Expression) -> Expression:
    """Where the exponential overflows, the quotient is the limit, 0."""
    return T.float32(1) / (T.float32(1) + T.exp(-x))


def softplus(x: Expression) -> Expression:
    """log(1 + e**x), without overflow."""
    return at_least(x, 0.0) + T.log1p(T.exp(-T.abs(x)))


_ACTIVATIONS = Activations(sigmoid, T.tanh, T.erf)
activate = _ACTIVATIONS.activate
experts_epilogue = _ACTIVATIONS.experts_epilogue
