"""Scales and minima of weights as constants in the bits that the model has, and as numbers in float32.

Powers of two and floats of 8 bits, whose types few programs read, are bytes and pick from a table. A table of two
levels is the product of its codes and their factors. onnxruntime computes what depends on constants alone once, when it
loads the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from moec.ir.weights.encode import Table
from moec.ir.weights.levels import LEVELS
from moec.ir.weights.stored import WeightRun
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]
Change = Callable[[Array], Array]
Store = Callable[[Table, ir.DataType, Change], ir.Value]
"""Function that stores a table of the weights as a constant of a type, after a change of its numbers."""
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_IN_BYTES = (ir.DataType.FLOAT8E8M0, ir.DataType.FLOAT8E4M3FN)


class StoredTable:
    """Scales or minima of the weights of ``run``, as constants of the main graph. ``store`` writes them, ``groups`` of
    them along ``axis``, that of the inputs."""

    def __init__(
        self, write: Writer, run: WeightRun, name: Literal["scale", "minimum"], store: Store, groups: int, axis: int
    ) -> None:
        self._write, self._axis = write, axis
        levels = run.levels(name)
        if levels is None:
            value = run.scale if name == "scale" else run.minimum
            assert value is not None
            self._stored = [(name, value.dtype or ir.DataType.FLOAT)]
            self._span = None
        else:
            codes, factors = LEVELS[name]
            self._stored = [(codes, levels.codes.dtype), (factors, levels.factors.dtype)]
            self._span = write.constant(np.arange(groups) // levels.span, "spans")
        self._values = [store(table, *_stored_as(dtype)) for table, dtype in self._stored]

    def decoded(self, body: Writer, pick: Callable[[ir.Value], ir.Value] = lambda value: value) -> ir.Value:
        """Write the numbers in float32. ``body``: the writer of the graph that needs them. ``pick`` writes the part of
        a constant that is needed."""
        numbers = [
            self._wide(body, pick(value), dtype) for value, (_, dtype) in zip(self._values, self._stored, strict=True)
        ]
        if self._span is None:
            return numbers[0]
        factors = body.add("Gather", numbers[1], self._span, axis=self._axis, label="factors")
        return body.add("Mul", numbers[0], factors, label="scales")

    def _wide(self, body: Writer, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        if dtype is not None and dtype in _IN_BYTES:
            numbers = np.arange(256, dtype=np.uint8).view(dtype.numpy()).astype(np.float32)
            places = body.add("Cast", value, to=ir.DataType.INT32, label="places")
            return body.add("Gather", self._write.constant(numbers, "numbers"), places, axis=0, label="scales")
        return value if dtype == ir.DataType.FLOAT else body.add("Cast", value, to=ir.DataType.FLOAT, label="wide")


def _stored_as(dtype: ir.DataType | None) -> tuple[ir.DataType, Change]:
    """The type in which a table is stored, and its numbers in it."""
    if dtype in _IN_BYTES:
        return ir.DataType.UINT8, lambda numbers: np.ascontiguousarray(numbers).view(np.uint8)
    if dtype is not None and dtype in (*_NARROW, ir.DataType.INT8, ir.DataType.UINT8):
        return dtype, lambda numbers: numbers
    return ir.DataType.FLOAT, lambda numbers: numbers.astype(np.float32)
