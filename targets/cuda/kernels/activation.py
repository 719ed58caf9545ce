"""Activations as float32 expressions of one thread, for the epilogue of a matrix product.

NaN and infinity give what numpy gives, see :mod:`moec.ir.semantics`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from moec.ir.dialect import ExpertsSpec

Expression = Any  # a float32 PrimExpr


def at_most(x: Expression, limit: float) -> Expression:
    """``min(x, limit)`` that keeps a NaN, which CUDA's minimum does not."""
    return T.Select(x > T.float32(limit), T.float32(limit), x)


def at_least(x: Expression, limit: float) -> Expression:
    """``max(x, limit)`` that keeps a NaN."""
    return T.Select(x < T.float32(limit), T.float32(limit), x)


def sigmoid(x: Expression) -> Expression:
    """Where the exponential overflows, the quotient is the limit, 0."""
    return T.float32(1) / (T.float32(1) + T.exp(-x))


def softplus(x: Expression) -> Expression:
    """log(1 + e**x), without overflow."""
    return at_least(x, 0.0) + T.log1p(T.exp(-T.abs(x)))


def gelu(x: Expression) -> Expression:
    return T.float32(0.5) * x * (T.float32(1) + T.erf(x * T.float32(0.7071067811865476)))


def gelu_tanh(x: Expression) -> Expression:
    inner = T.float32(0.7978845608028654) * (x + T.float32(0.044715) * x * x * x)
    return T.float32(0.5) * x * (T.float32(1) + T.tanh(inner))


ACTIVATIONS: dict[str, Callable[[Expression], Expression]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: at_least(x, 0.0),
    "relu2": lambda x: at_least(x, 0.0) * at_least(x, 0.0),
    "sigmoid": sigmoid,
    "tanh": lambda x: T.tanh(x),
    "identity": lambda x: x,
}
"""All activations but silu, which alone depends on ``alpha``."""


def activate(spec: ExpertsSpec, x: Expression) -> Expression:
    if spec.activation == "silu":
        return x * sigmoid(x if spec.alpha == 1 else x * T.float32(spec.alpha))
    return ACTIVATIONS[spec.activation](x)


def experts_epilogue(spec: ExpertsSpec) -> Callable[..., Expression]:
    """What turns sums into hidden values: ``f(gate, up)`` where the experts are gated, else ``f(sum)``."""
    if not spec.gated:
        return lambda hidden: activate(spec, hidden)

    def gated(gate: Expression, up: Expression) -> Expression:
        if spec.limit > 0:
            gate = at_most(gate, spec.limit)
            up = at_most(at_least(up, -spec.limit), spec.limit)
        return activate(spec, gate) * (up if spec.up_offset == 0 else up + T.float32(spec.up_offset))

    return gated
