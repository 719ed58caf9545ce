"""Masks of attention with a row for every query."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.ir.graphs import is_op
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import value_names
from moec.passes.graph.writer import Writer


@dataclasses.dataclass(frozen=True)
class RepeatMasks:
    """Gives the mask of an Attention a row for every query, because onnxruntime does not repeat the one that it has.

    1. A mask of rank 2 and more whose size before the last is not that of the queries is expanded to it.

    ::

        (float[B,2,T,8] q, float[B,2,S,8] k, float[B,2,S,8] v, bool[B,1,1,S] m) => (float[B,2,T,8] y) {
           y = Attention (q, k, v, m)
        }
            ->
        (float[B,2,T,8] q, float[B,2,S,8] k, float[B,2,S,8] v, bool[B,1,1,S] m) => (float[B,2,T,8] y)
           <int64[1] "y.numbers" = {1}> {
           "y.queries" = Shape <end = -1, start = -2> (q)
           "y.rows" = Concat <axis = 0> ("y.queries", "y.numbers")
           "y.mask" = Expand (m, "y.rows")
           y = Attention (q, k, v, "y.mask")
        }
    """

    name: ClassVar[str] = "repeat-masks"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph.all_nodes() if is_op(node, "Attention")]:
            queries, mask = node.inputs[0], node.inputs[3] if len(node.inputs) > 3 else None
            if queries is None or mask is None or not _lacks_rows(queries, mask):
                continue
            write = Writer(node, value_names(model.graph))
            count = write.add("Shape", queries, start=-2, end=-1, label="queries")
            rows = write.add("Concat", count, write.numbers(1), axis=0, label="rows")
            node.replace_input_with(3, write.add("Expand", mask, rows, label="mask"))
            changed = True
        return changed


def _lacks_rows(queries: ir.Value, mask: ir.Value) -> bool:
    if queries.shape is None or mask.shape is None or len(mask.shape) < 2:
        return False
    return mask.shape[-2] != queries.shape[-2]
