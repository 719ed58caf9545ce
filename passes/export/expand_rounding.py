"""Rounding of rows in ONNX operators."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import LinearSpec, ProductSpec
from moec.passes.export.rounding import LARGEST, ROUNDED, write_rounded
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import replace_node, value_names
from moec.passes.graph.writer import Writer

_SMALLEST_SCALE = 2.0**-126


@dataclasses.dataclass(frozen=True)
class ExpandRounding:
    """Spells what ``moec.Linear`` rounds its rows to, and ``moec.RoundRows``, in ONNX operators.

    1. Rows are rounded in front of a product, which then has no arithmetic of its own.
    2. A product whose arithmetic ONNX cannot spell stays; a warning says so.

    ::

        (float[T,8] x) => (float[T,4] y) <float[4,8] w> {
           y = moec.Linear <arithmetic = "bfloat16"> (x, w)
        }
            ->
        (float[T,8] x) => (float[T,4] y) <float[4,8] w> {
           "y.narrow_rows" = Cast <to = 1> (x)
           "y.rounded" = Cast <to = 16> ("y.narrow_rows")
           "y.rounded_rows" = CastLike ("y.rounded", x)
           y = moec.Linear ("y.rounded_rows", w)
        }
    """

    name: ClassVar[str] = "expand-rounding"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph.all_nodes() if dialect.is_moec(node)]:
            graph = node.graph
            assert isinstance(graph, ir.Graph)
            if node.op_type == "RoundRows":
                replace_node(node, [_rounded_rows(Writer(node, value_names(model.graph)))])
                changed = True
            if node.op_type != "Linear" or (spec := dialect.spec_of(node, LinearSpec)).arithmetic == "float32":
                continue
            if spec.arithmetic not in ROUNDED:
                report.warn(self.name, node_name(node), f"stays as it is: ONNX does not round to {spec.arithmetic}")
                continue
            write = Writer(node, value_names(model.graph))
            rows = write_rounded(write, write, spec, write.required(0, "x"))
            rows.type, rows.shape = write.required(0, "x").type, write.required(0, "x").shape
            node.replace_input_with(0, rows)
            for field in dataclasses.fields(ProductSpec):
                node.attributes.pop(field.name, None)
            changed = True
        return changed


def _rounded_rows(write: Writer) -> ir.Value:
    """Integers times a scale in bfloat16, as moec.RoundRows has them."""
    x = write.required(0, "x")
    rows = write.add("Cast", x, to=ir.DataType.FLOAT, label="narrow_rows")
    largest = write.add("ReduceMax", write.add("Abs", rows), write.numbers(-1), keepdims=1, label="largest")
    share, least = (
        write.constant(np.array(number, np.float32), "number") for number in (LARGEST["int8"], _SMALLEST_SCALE)
    )
    scale = write.add("Max", write.add("Div", largest, share), least, label="row_scale")
    scale = write.add(
        "Cast", write.add("Cast", scale, to=ir.DataType.BFLOAT16), to=ir.DataType.FLOAT, label="row_scale"
    )
    rounded = write.add("Mul", write.add("Round", write.add("Div", rows, scale)), scale, label="rounded")
    return write.add("CastLike", rounded, x, label="rounded_rows")
