"""Look-ups of rows of a table whose numbers of 8 bits lie in two packed halves, as products need them.

The embedding of a language model is often the matrix of its last product, too. It is then in the file once.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from moec.passes.graph.edits import is_op, replace_node, value_names
from moec.passes.graph.writer import Writer


def use_halves(table: ir.Value, width: int, high: ir.Value, low: ir.Value, zero: int) -> None:
    """Let look-ups of rows of ``table`` [N,width] take them from the upper and lower 4 bits of its numbers plus
    ``zero``, [N,blocks,bytes] each."""
    for node in [use.node for use in table.uses() if use.idx == 0 and is_op(use.node, "Gather")]:
        if node.attributes.get_int("axis", 0) == 0 and isinstance(node.graph, ir.Graph):
            replace_node(node, [_rows(Writer(node, value_names(node.graph)), width, high, low, zero)])


def _rows(write: Writer, width: int, high: ir.Value, low: ir.Value, zero: int) -> ir.Value:
    (table, ids), size = write.node.inputs, high.shape
    assert table is not None and ids is not None and size is not None
    upper, lower = (write.add("Gather", half, ids, axis=0, label="bytes") for half in (high, low))
    four, first, second = (write.constant(np.array(bits, np.uint8), "bits") for bits in (4, 15, 240))

    def pairs(upper: ir.Value, lower: ir.Value) -> ir.Value:
        return write.add("Unsqueeze", write.add("BitwiseOr", upper, lower), write.numbers(-1), label="numbers")

    even = pairs(write.add("BitShift", upper, four, direction="LEFT"), write.add("BitwiseAnd", lower, first))
    odd = pairs(write.add("BitwiseAnd", upper, second), write.add("BitShift", lower, four, direction="RIGHT"))
    length = write.numbers(2 * math.prod(size.numpy()[1:]))
    shape = write.add("Concat", write.add("Shape", ids), length, axis=0, label="shape")
    numbers = write.add("Reshape", write.add("Concat", even, odd, axis=-1), shape, allowzero=1, label="numbers")
    numbers = write.add("Slice", numbers, write.numbers(0), write.numbers(width), write.numbers(-1), label="numbers")
    whole = write.add("Cast", numbers, to=ir.DataType.INT32, label="numbers")
    own = write.add("Sub", whole, write.constant(np.array(zero, np.int32), "zero"), label="numbers")
    return write.add("Cast", own, to=table.dtype, label="rows")
