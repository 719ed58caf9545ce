"""Activations as vectorisable float32 expressions, for use in the epilogue of a matrix product.

The error of erf is 2e-7 absolute (Abramowitz and Stegun 7.1.26). NaN and infinity give what the mathematical function
gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from moec.ir.dialect import ExpertsSpec
from moec.targets.cpu.kernels.elementary import exponential, let

Expression = Any  # a float32 PrimExpr, scalar or vector

_ERF_POLYNOMIAL = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _float(number: float) -> Expression:
    return T.float32(number)


def _polynomial(coefficients: tuple[float, ...], x: Expression) -> Expression:
    """Horner's rule, highest coefficient first."""
    result = _float(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _float(coefficient)
    return result


def at_most(x: Expression, limit: float) -> Expression:
    """``min(x, limit)`` that keeps a NaN, as numpy does."""
    return T.Select(x > _float(limit), _float(limit), x)


def at_least(x: Expression, limit: float) -> Expression:
    """``max(x, limit)`` that keeps a NaN, as numpy does."""
    return T.Select(x < _float(limit), _float(limit), x)


def sigmoid(x: Expression) -> Expression:
    return _float(1) / (_float(1) + exponential(-x))


def tanh(x: Expression) -> Expression:
    return _float(1) - _float(2) / (exponential(x * _float(2)) + _float(1))


def erf(x: Expression) -> Expression:
    magnitude = T.Select(x < _float(0), -x, x)
    inverse = _float(1) / (_float(1) + _float(0.3275911) * magnitude)
    tail = let("t", inverse, lambda t: _polynomial(_ERF_POLYNOMIAL, t) * t) * exponential(-(x * x))
    return let("positive", _float(1) - tail, lambda positive: T.Select(x < _float(0), -positive, positive))


def softplus(x: Expression) -> Expression:
    """log(1 + e**x), without overflow. Scalar: the logarithm is the C library's."""
    magnitude = T.Select(x < _float(0), -x, x)
    return at_least(x, 0.0) + T.log(_float(1) + exponential(-magnitude))


def _gelu_tanh(x: Expression) -> Expression:
    return _float(0.5) * x * (_float(1) + tanh(_float(0.7978845608028654) * (x + _float(0.044715) * x * x * x)))


ACTIVATIONS: dict[str, Callable[[Expression], Expression]] = {
    "gelu": lambda x: _float(0.5) * x * (_float(1) + erf(x * _float(0.7071067811865476))),
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: at_least(x, 0.0),
    "relu2": lambda x: at_least(x, 0.0) * at_least(x, 0.0),
    "sigmoid": sigmoid,
    "tanh": tanh,
    "identity": lambda x: x,
}
"""All activations but silu, which alone depends on ``alpha``."""


def activate(spec: ExpertsSpec, x: Expression) -> Expression:
    if spec.activation == "silu":
        return x * sigmoid(x if spec.alpha == 1 else x * _float(spec.alpha))
    return ACTIVATIONS[spec.activation](x)


def experts_epilogue(spec: ExpertsSpec) -> Callable[..., Expression]:
    """What turns sums into hidden values: ``f(gate, up)`` where the experts are gated, else ``f(sum)``."""
    if not spec.gated:
        return lambda hidden: activate(spec, hidden)

    def gated(gate: Expression, up: Expression) -> Expression:
        if spec.limit > 0:
            gate = at_most(gate, spec.limit)
            up = at_most(at_least(up, -spec.limit), spec.limit)
        return activate(spec, gate) * (up if spec.up_offset == 0 else up + _float(spec.up_offset))

    return gated
