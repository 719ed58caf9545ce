"""A loop over experts that adds the results of each to the rows that they belong to.

It holds no sequence of tensors, which few programs besides onnxruntime have, and no size of a weight.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from moec.passes.export.loop_body import loop_body
from moec.passes.graph.writer import Writer

Step = Callable[[Writer, ir.Value], tuple[ir.Value, ir.Value]]
"""Function that writes the computation of one expert. Arguments: the writer of the body, the number of the expert.
Returns numbers of rows [n,1], and the results [n,N] for these."""


def used_experts(write: Writer, ids: ir.Value, count: ir.Value) -> ir.Value:
    """Write the numbers, in ascending order, of those of ``count`` [1] experts that occur in ``ids`` (int64)."""
    flat = write.add("Reshape", ids, write.numbers(-1), label="flat")
    stored = write.add("Min", flat, count, label="stored")  # identity experts join the pairs of none, -1, at the end
    size = write.add("Add", count, write.numbers(1), label="slots")
    none, some = (ir.tensor(np.full(1, number, np.int64)) for number in (0, 1))
    flags = write.add("ConstantOfShape", size, value=none, label="flags")
    ones = write.add("ConstantOfShape", write.add("Shape", flat), value=some, label="ones")
    flags = write.add("ScatterElements", flags, stored, ones, axis=0, label="flags")
    flags = write.add("Slice", flags, write.numbers(0), count, label="flags")
    return write.add("Reshape", write.add("NonZero", flags), write.numbers(-1), label="used")


def accumulated(write: Writer, used: ir.Value, nothing: ir.Value, dtype: ir.DataType, step: Step) -> ir.Value:
    """Write the loop over the experts ``used`` [m]. Returns ``nothing`` [R,N], of ``dtype``, plus all results."""
    steps = write.add("Reshape", write.add("Shape", used), write.constant(np.zeros(0, np.int64), "scalar"))
    true = write.constant(np.array(True), "true")

    def update(inner: Writer, expert: ir.Value, before: ir.Value) -> ir.Value:
        rows, results = step(inner, expert)
        return inner.add("ScatterND", before, rows, results, reduction="add", label="after")

    body = loop_body(write, used, ir.TensorType(dtype), update)
    return write.add("Loop", steps, true, nothing, body=body, label="sum")
