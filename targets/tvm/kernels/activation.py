"""The dialect's activations as float32 expressions, built from a target's elementary functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.targets.tvm.kernels.comparisons import maximum, minimum

Expression = Any  # a float32 PrimExpr, scalar or vector
Function = Callable[[Expression], Expression]


def at_most(x: Expression, limit: float) -> Expression:
    """``min(x, limit)`` that keeps a NaN, as numpy does."""
    return minimum(x, T.float32(limit))


def at_least(x: Expression, limit: float) -> Expression:
    """``max(x, limit)`` that keeps a NaN, as numpy does."""
    return maximum(x, T.float32(limit))


def total_to_divide_by(spec: RouteSpec, total: Expression) -> Expression:
    """Divisor that normalises a token's weights: their sum plus ``normalize_epsilon``, at least ``normalize_floor``."""
    total = total + T.float32(spec.normalize_epsilon)
    return at_least(total, spec.normalize_floor) if spec.normalize_floor > 0 else total


def within(limit: float, x: Expression) -> Expression:
    """``x`` clamped to [-limit, limit]; unchanged where ``limit`` is 0."""
    return at_most(at_least(x, -limit), limit) if limit > 0 else x


@dataclasses.dataclass(frozen=True)
class Activations:
    """All activations, built from three elementary functions of a target."""

    sigmoid: Function
    tanh: Function
    erf: Function

    def activate(self, spec: ExpertsSpec, x: Expression) -> Expression:
        if spec.activation == "silu":
            return x * self.sigmoid(x if spec.alpha == 1 else x * T.float32(spec.alpha))
        return self._without_options[spec.activation](x)

    def experts_epilogue(self, spec: ExpertsSpec) -> Callable[..., Expression]:
        """Function from sums to hidden values: ``f(gate, up)`` where the experts are gated, else ``f(sum)``."""
        return _ExpertsEpilogue(self, spec)

    @property
    def _without_options(self) -> dict[str, Function]:
        """All activations except silu, the only one that depends on ``alpha``."""
        return {
            "gelu": lambda x: T.float32(0.5) * x * (T.float32(1) + self.erf(x * T.float32(0.7071067811865476))),
            "gelu_tanh": self._gelu_tanh,
            "relu": lambda x: at_least(x, 0.0),
            "relu2": lambda x: at_least(x, 0.0) * at_least(x, 0.0),
            "sigmoid": self.sigmoid,
            "tanh": self.tanh,
            "identity": lambda x: x,
        }

    def _gelu_tanh(self, x: Expression) -> Expression:
        inner = T.float32(0.7978845608028654) * (x + T.float32(0.044715) * x * x * x)
        return T.float32(0.5) * x * (T.float32(1) + self.tanh(inner))


@dataclasses.dataclass(frozen=True)
class _ExpertsEpilogue:
    """The epilogue of the experts' first product. Equal ones are one key of the functions that kernels keep
    (:func:`moec.targets.tvm.kernels.kernel.built_once`), which a closure per node would not be."""

    activations: Activations
    spec: ExpertsSpec

    def __call__(self, *sums: Expression) -> Expression:
        spec, activate = self.spec, self.activations.activate
        if not spec.gated:
            (hidden,) = sums
            return activate(spec, hidden)
        gate, up = sums
        if spec.limit > 0:
            gate, up = at_most(gate, spec.limit), within(spec.limit, up)
        return activate(spec, gate) * (up if spec.up_offset == 0 else up + T.float32(spec.up_offset))


def identity(total: Expression) -> Expression:
    """The epilogue of a product that is a result itself."""
    return total
