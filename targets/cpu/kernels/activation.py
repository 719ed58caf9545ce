"""Activations as vectorisable float32 expressions, for use in the epilogue of a matrix product.

The error of erf is 2e-7 absolute (Abramowitz and Stegun 7.1.26). NaN and infinity give what the mathematical function
gives.
"""

from __future__ import annotations

from tvm.script import tirx as T

from moec.targets.cpu.kernels.elementary import exponential, let
from moec.targets.tvm.kernels.activation import Activations, Expression, at_least

_ERF_POLYNOMIAL = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _float(number: float) -> Expression:
    return T.float32(number)


def _polynomial(coefficients: tuple[float, ...], x: Expression) -> Expression:
    """Horner's rule, highest coefficient first."""
    result = _float(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _float(coefficient)
    return result


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


_ACTIVATIONS = Activations(sigmoid, tanh, erf)
activate = _ACTIVATIONS.activate
experts_epilogue = _ACTIVATIONS.experts_epilogue
