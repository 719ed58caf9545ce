"""Scales of two levels: integers or floats of 8 bits, with one float factor for every few of them.

In the place of a table of scales or minima [.., groups, ..] stands ``DequantizeLinear <axis, block_size> (codes,
factors)``: ``axis`` is that of the groups, and ``block_size`` of them share a factor. The product of a code of 8 bits
and a factor of 16 is exact in float32; one with a factor of 32 is rounded.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from moec.ir.weights.encode import Table

Array = np.ndarray[Any, Any]
LEVELS: dict[Literal["scale", "minimum"], tuple[Table, Table]] = {
    "scale": ("scale_code", "scale_factor"),
    "minimum": ("minimum_code", "minimum_factor"),
}
"""Codes and factors of the tables that may have two levels."""
_CODES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN)
_FACTORS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Levels:
    """The two constants whose product is a table. ``axis``: that of the groups, from the end; ``span``: groups that
    share a factor."""

    codes: ir.Value
    factors: ir.Value
    axis: int
    span: int

    def multiplied(self, codes: Array, factors: Array) -> Array:
        """The table in float32, from codes and factors of one expert or of all."""
        repeated = np.repeat(factors.astype(np.float32), self.span, axis=self.axis)
        return codes.astype(np.float32) * np.take(repeated, np.arange(codes.shape[self.axis]), axis=self.axis)


@dataclasses.dataclass(frozen=True)
class TableOfGroups:
    """Scales or minima as the graph has them."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    levels: Levels | None = None

    @staticmethod
    def of(value: ir.Value | None) -> TableOfGroups | None:
        """The table of a value; None if it is neither constant nor of two levels."""
        levels = levels_of(value)
        tensor = _constant(value if levels is None else levels.codes)
        if tensor is None:
            return None
        shape = tuple(int(size) for size in tensor.shape.numpy())
        return TableOfGroups(tensor.dtype if levels is None else ir.DataType.FLOAT, shape, levels)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Types, shape and levels, which have to be equal for the scales and the minima of one weight."""
        levels = self.levels
        stored = () if levels is None else (levels.codes.dtype, levels.factors.dtype, levels.axis, levels.span)
        return self.dtype, self.shape, *stored


def levels_of(value: ir.Value | None) -> Levels | None:
    """The two levels of a table of scales or minima; None if it is not a product of constants of the module's form."""
    node = None if value is None else value.producer()
    if node is None or node.domain or node.op_type != "DequantizeLinear" or len(node.inputs) != 2:
        return None
    codes, factors = node.inputs
    shapes = [tuple(tensor.shape.numpy()) for operand in node.inputs if (tensor := _constant(operand)) is not None]
    if codes is None or factors is None or len(shapes) < 2:
        return None
    if codes.dtype not in _CODES or factors.dtype not in _FACTORS:
        return None
    axis, span = (node.attributes.get_int(key, 0) for key in ("axis", "block_size"))
    rank = len(shapes[0])
    axis -= rank if axis >= 0 else 0
    if axis not in (-1, -2) or span <= 0 or rank < 2:
        return None
    expected = list(shapes[0])
    expected[axis] = -(-expected[axis] // span)
    return Levels(codes, factors, axis, span) if list(shapes[1]) == expected else None


def product_of_levels(
    graph: ir.Graph, before: ir.Node | None, codes: ir.Value, factors: ir.Value, axis: int, span: int
) -> ir.Value:
    """Add :func:`levels_node` in front of ``before``, or at the graph's end; return its result."""
    node = levels_node(codes, factors, axis, span)
    graph.append(node) if before is None else graph.insert_before(before, node)
    return node.outputs[0]


def levels_node(codes: ir.Value, factors: ir.Value, axis: int, span: int) -> ir.Node:
    """A node that computes the table in float32."""
    assert codes.shape is not None
    attributes = {"axis": axis % codes.shape.rank(), "block_size": span, "output_dtype": int(ir.DataType.FLOAT)}
    node = ir.node("DequantizeLinear", [codes, factors], attributes)
    table = node.outputs[0]
    table.name, table.dtype, table.shape = f"{codes.name}.product", ir.DataType.FLOAT, codes.shape
    return node


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
