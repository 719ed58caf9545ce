"""The computation of ``moec.Experts`` between its products, in ONNX operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ExpertsSpec
from moec.passes.graph.writer import Writer


def activated(write: Writer, spec: ExpertsSpec, gate: ir.Value | None, up: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Add the input of the down projection, of type ``dtype``, as :func:`moec.ir.semantics.activated` computes it."""
    if gate is None:
        return _activation(write, spec, up, dtype)
    if spec.limit > 0:
        gate = write.add("Min", gate, _number(write, spec.limit, dtype))
        up = clamped(write, up, spec.limit, dtype)
    if spec.up_offset:
        up = write.add("Add", up, _number(write, spec.up_offset, dtype))
    return write.add("Mul", _activation(write, spec, gate, dtype), up, label="hidden")


def clamped(write: Writer, value: ir.Value, limit: float, dtype: ir.DataType) -> ir.Value:
    """Clamp the value to [-limit, limit]."""
    return write.add("Clip", value, _number(write, -limit, dtype), _number(write, limit, dtype))


def _activation(write: Writer, spec: ExpertsSpec, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    if spec.activation == "silu":
        inner = x if spec.alpha == 1 else write.add("Mul", x, _number(write, spec.alpha, dtype))
        return write.add("Mul", x, write.add("Sigmoid", inner), label="activated")
    return _ACTIVATIONS[spec.activation](write, x)


def _squared_relu(write: Writer, x: ir.Value) -> ir.Value:
    kept = write.add("Relu", x)
    return write.add("Mul", kept, kept, label="activated")


_ACTIVATIONS: dict[str, Callable[[Writer, ir.Value], ir.Value]] = {
    "gelu": lambda write, x: write.add("Gelu", x),
    "gelu_tanh": lambda write, x: write.add("Gelu", x, approximate="tanh"),
    "relu": lambda write, x: write.add("Relu", x),
    "relu2": _squared_relu,
    "sigmoid": lambda write, x: write.add("Sigmoid", x),
    "tanh": lambda write, x: write.add("Tanh", x),
    "identity": lambda write, x: x,
}
"""All activations except silu, the only one that depends on ``alpha``."""


def _number(write: Writer, number: float, dtype: ir.DataType) -> ir.Value:
    return write.weight(ir.tensor(np.array(number, dtype.numpy()), dtype=dtype), "number")
