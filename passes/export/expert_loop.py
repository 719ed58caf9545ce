"""A loop over the experts that have rows, for rows that are sorted by expert (:class:`~moec.ir.dialect.DispatchSpec`).

Each step takes the rows of one expert and appends their results to a sequence, which is joined afterwards: no expert
without rows is computed, no row is computed twice, and all sizes stay dynamic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from moec.passes.export.loop_body import loop_body
from moec.passes.graph.writer import Writer

Body = Callable[[Writer, ir.Value, ir.Value], ir.Value]
"""Function that writes the computation of rows [n,in], by the expert with a number counted from the first of the loop.
Arguments: the writer of the body, the number, the rows. Returns rows [n,out]."""


class ExpertLoops:
    """Loops over runs of experts, whose results are those of all rows."""

    def __init__(self, write: Writer, rows: ir.Value, offsets: ir.Value, width: int, dtype: ir.DataType) -> None:
        self._write, self._rows, self._width, self._dtype = write, rows, width, dtype
        self._offsets = write.add("Cast", offsets, to=ir.DataType.INT64, label="bounds")
        self._results: list[ir.Value] = []

    def over(self, first: int, count: int, body: Body) -> None:
        """Add a loop over ``count`` experts."""
        write = self._write
        numbers = write.numbers
        starts = self._slice(self._offsets, first, first + count)
        ends = self._slice(self._offsets, first + 1, first + count + 1)
        used = write.add("NonZero", write.add("Greater", ends, starts), label="used")
        used = write.add("Reshape", used, numbers(-1), label="used")
        steps = write.add("Reshape", write.add("Shape", used), write.constant(np.zeros(0, np.int64), "scalar"))
        empty = write.constant(np.zeros((0, self._width), self._dtype.numpy()), "empty")
        first_results = write.add("SequenceConstruct", empty, label="first_results")
        graph = self._body(used, starts, ends, body)
        true = write.constant(np.array(True), "true")
        results = write.add("Loop", steps, true, first_results, body=graph, label="results")
        self._results.append(write.add("ConcatFromSequence", results, axis=0, label="rows"))

    def joined(self) -> ir.Value:
        """The results [R,width] of all rows, zeros for those of no expert."""
        write = self._write
        total = write.add("Shape", self._rows, start=0, end=1, label="row_count")
        left = write.add("Sub", total, self._slice(self._offsets, -1, 1 << 31), label="left")
        shape = write.add("Concat", left, write.numbers(self._width), axis=0, label="left_shape")
        zero = ir.tensor(np.zeros(1, self._dtype.numpy()), dtype=self._dtype)
        rest = write.add("ConstantOfShape", shape, value=zero, label="rest")
        return write.add("Concat", *self._results, rest, axis=0, label="results")

    def _slice(self, value: ir.Value, start: int, end: int) -> ir.Value:
        return self._write.add("Slice", value, self._write.numbers(start), self._write.numbers(end), label="part")

    def _body(self, used: ir.Value, starts: ir.Value, ends: ir.Value, body: Body) -> ir.Graph:
        def update(inner: Writer, expert: ir.Value, before: ir.Value) -> ir.Value:
            index = inner.add("Unsqueeze", expert, self._write.numbers(0), label="one")
            start, end = (inner.add("Gather", bounds, index, axis=0, label="bound") for bounds in (starts, ends))
            rows = inner.add("Slice", self._rows, start, end, self._write.numbers(0), label="own_rows")
            return inner.add("SequenceInsert", before, body(inner, expert, rows), label="after")

        return loop_body(self._write, used, ir.SequenceType(ir.TensorType(self._dtype)), update)
