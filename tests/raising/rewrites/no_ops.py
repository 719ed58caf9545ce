"""Detours that change nothing: after computed values, and after weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..edit import Writer, detour, ints, is_float, rank, some
from ..registry import register

Way = Callable[[Writer, ir.Value], ir.Value]


def _values(model: ir.Model) -> list[ir.Value]:
    """Floats of a known rank, at least 2: computed ones, and weights."""
    constants = [value for value in model.graph.initializers.values() if value.uses()]
    computed = [value for node in model.graph for value in node.outputs]
    return [value for value in (*constants, *computed) if is_float(value) and (rank(value) or 0) >= 2]


def _no_op(name: str, way: Way) -> None:
    def apply(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
        values = some(random, _values(model))
        for value in values[:6]:
            detour(model, value, way)
        return model if values else None

    register(f"no-op: {name}", apply)


def _axis_one(value: ir.Value) -> np.ndarray:
    return ints((rank(value) or 0) // 2)


def _transposed_twice(write: Writer, value: ir.Value) -> ir.Value:
    turned = [*range(1, rank(value) or 0), 0]
    back = [int(place) for place in np.argsort(turned)]
    return write.op("Transpose", write.op("Transpose", value, perm=turned), perm=back)


def _expanded(write: Writer, value: ir.Value) -> ir.Value:
    return write.op("Expand", value, ints(*[1] * (rank(value) or 0)))


def _padded(write: Writer, value: ir.Value) -> ir.Value:
    return write.op("Pad", value, ints(*[0] * 2 * (rank(value) or 0)))


def _reshaped(write: Writer, value: ir.Value) -> ir.Value:
    shape = write.op("Shape", value)
    return write.op("Reshape", write.op("Reshape", value, ints(-1)), shape, allowzero=1)


def _through_float64(write: Writer, value: ir.Value) -> ir.Value:
    return write.op("Cast", write.op("Cast", value, to=ir.DataType.DOUBLE), to=ir.DataType.FLOAT)


def _summed_alone(write: Writer, value: ir.Value) -> ir.Value:
    axis = _axis_one(value)
    return write.op("ReduceSum", write.op("Unsqueeze", value, axis), axis, keepdims=0)


_no_op("identity", lambda write, value: write.op("Identity", value))
_no_op("times one", lambda write, value: write.op("Mul", value, 1.0))
_no_op("plus zero", lambda write, value: write.op("Add", 0.0, value))
_no_op("minus zero", lambda write, value: write.op("Sub", value, 0.0))
_no_op("over one", lambda write, value: write.op("Div", value, 1.0))
_no_op("to the power of one", lambda write, value: write.op("Pow", value, 1.0))
_no_op("padded by nothing", _padded)
_no_op("expanded to its shape", _expanded)
_no_op("sum over an axis of one", _summed_alone)
_no_op("cast to its type", lambda write, value: write.op("Cast", value, to=ir.DataType.FLOAT))
_no_op("float64 and back", _through_float64)
_no_op("concat of one", lambda write, value: write.op("Concat", value, axis=0))
_no_op("sum of one", lambda write, value: write.op("Sum", value))
_no_op("dropout", lambda write, value: write.op("Dropout", value))
_no_op("slice of all", lambda write, value: write.op("Slice", value, ints(0), ints(2**62), ints(0)))
_no_op(
    "unsqueezed and squeezed",
    lambda write, value: write.op("Squeeze", write.op("Unsqueeze", value, _axis_one(value)), _axis_one(value)),
)
_no_op("transposed twice", _transposed_twice)
_no_op("reshaped and back", _reshaped)
_no_op("negated twice", lambda write, value: write.op("Neg", write.op("Neg", value)))
_no_op("split into one", lambda write, value: write.ops("Split", 1, value, axis=0, num_outputs=1)[0])
_no_op("where true", lambda write, value: write.op("Where", np.array(True), value, 0.0))
