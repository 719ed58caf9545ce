"""Rounding of rows before a product (:class:`~moec.ir.dialect.ProductSpec`) in ONNX operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ProductSpec
from moec.passes.graph.writer import Writer

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The largest magnitude of a rounded element less its scale, by arithmetic."""
ROUNDED = ("float32", "bfloat16", *LARGEST)
"""The arithmetics that ONNX operators spell: none rounds as tf32 does."""


def write_rounded(write: Writer, constants: Writer, spec: ProductSpec, rows: ir.Value) -> ir.Value:
    """Write rows [...,K] as the arithmetic of ``spec`` rounds them. ``constants``: the writer of the graph that may
    have constants."""
    if spec.arithmetic == "float32":
        return rows
    narrow = write.add("Cast", rows, to=ir.DataType.FLOAT, label="narrow_rows")
    if spec.arithmetic == "bfloat16":
        rounded = write.add("Cast", narrow, to=ir.DataType.BFLOAT16, label="rounded")
    else:
        rounded = _ScaledRows(write, constants, spec).rounded(narrow)
    return write.add("CastLike", rounded, rows, label="rounded_rows")


class _ScaledRows:
    """Rows as integers or small floats times a scale for each group."""

    def __init__(self, write: Writer, constants: Writer, spec: ProductSpec) -> None:
        self._write, self._constants, self._spec = write, constants, spec

    def _number(self, number: float) -> ir.Value:
        return self._constants.constant(np.array(number, np.float32), "number")

    def rounded(self, rows: ir.Value) -> ir.Value:
        """Rows in float32. A group with an infinity or a NaN becomes NaN, and with it its row of the product."""
        write, numbers, largest = self._write, self._constants.numbers, LARGEST[self._spec.arithmetic]
        grouped = self._grouped(rows) if self._spec.activation_group else rows
        magnitude = write.add("ReduceMax", write.add("Abs", grouped), numbers(-1), keepdims=1, label="largest")
        scale = write.add("Div", magnitude, self._number(largest), label="row_scale")
        divisor = write.add("Where", write.add("Equal", scale, self._number(0)), self._number(1), scale)
        share = write.add("Clip", write.add("Div", grouped, divisor), self._number(-largest), self._number(largest))
        if self._spec.arithmetic == "int8":
            elements = write.add("Round", share, label="elements")
        else:
            small = write.add("Cast", share, to=ir.DataType.FLOAT8E4M3FN, label="elements")
            elements = write.add("Cast", small, to=ir.DataType.FLOAT, label="elements")
        rounded = write.add("Mul", elements, scale, label="rounded")
        return self._flat(rounded, rows) if self._spec.activation_group else rounded

    def _grouped(self, rows: ir.Value) -> ir.Value:
        """Rows [...,groups,group], zeros after the last element."""
        write, numbers, group = self._write, self._constants.numbers, self._spec.activation_group
        width = write.add("Shape", rows, start=-1, label="row_width")
        missing = write.add("Mod", write.add("Neg", width), numbers(group), label="missing")
        pads = write.add("Concat", numbers(0), missing, axis=0, label="pads")
        padded = write.add("Pad", rows, pads, None, numbers(-1), label="padded")
        count = write.add("Div", write.add("Add", width, missing), numbers(group), label="groups")
        shape = write.add("Concat", self._before_last(rows), count, numbers(group), axis=0, label="grouped_shape")
        return write.add("Reshape", padded, shape, allowzero=1, label="grouped")

    def _flat(self, grouped: ir.Value, rows: ir.Value) -> ir.Value:
        write, numbers = self._write, self._constants.numbers
        ends = write.add("Shape", grouped, start=-2, label="group_sizes")
        width = write.add("ReduceProd", ends, keepdims=1, label="padded_width")
        shape = write.add("Concat", self._before_last(rows), width, axis=0, label="flat_shape")
        flat = write.add("Reshape", grouped, shape, allowzero=1, label="flat_rows")
        return write.add("Slice", flat, numbers(0), write.add("Shape", rows, start=-1), numbers(-1), label="rounded")

    def _before_last(self, rows: ir.Value) -> ir.Value:
        return self._write.add("Shape", rows, end=-1, label="row_shape")
