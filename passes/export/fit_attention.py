"""Attention in the form in which onnxruntime computes it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir
import sympy

from moec.common.names import node_name
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import constant, is_op, value_names
from moec.passes.graph.writer import Writer
from moec.passes.shapes.symbolic import expression

_MASK = 3


@dataclasses.dataclass(frozen=True)
class FitAttention:
    """Changes ONNX's ``Attention`` where onnxruntime takes less than the standard, or computes something else.

    onnxruntime runs it faster than the operators that it is fused from and than ``com.microsoft.GroupQueryAttention``,
    with keys and values that Concat appends as well as with those that the operator appends itself.

    1. A mask that is not known to have as many rows as there are queries is expanded to these, since onnxruntime
       broadcasts only batch and heads.
    2. The lowest number of the mask's type becomes half of it, if the mask may hold it: onnxruntime takes the lowest
       number for -inf, so that a query whose every key is masked by it would yield zeros instead of a mean.
    3. A negative scale, which onnxruntime refuses, becomes a positive one of the negated query.

    4. onnxruntime refuses an empty batch, and an empty sequence of queries or keys. A note says so wherever a size may
       be 0.

    ::

        (float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,4] v, bool[B,1,1,P] mask) => (float[B,2,S,4] y) {
           y = Attention <scale = -0.5> (q, k, v, mask)
        }
            infer-shapes,fit-attention ->
        (float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,4] v, bool[B,1,1,P] mask) => (float[B,2,S,4] y)
           <int64[1] "y.numbers" = {1}> {
           "y.count" = Shape <end = 3, start = 2> (q)
           "y.sizes" = Concat <axis = 0> ("y.count", "y.numbers")
           "y.mask" = Expand (mask, "y.sizes")
           "y.query" = Neg (q)
           y = Attention <scale = 0.5> ("y.query", k, v, "y.mask")
        }
    """

    name: ClassVar[str] = "fit-attention"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph.all_nodes() if is_op(node, "Attention")]:
            write = Writer(node, value_names(model.graph))
            mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
            if mask is not None:
                fitted = _expanded(write, _without_lowest(write, mask))
                node.replace_input_with(_MASK, fitted)
                changed |= fitted is not mask
            scale = node.attributes.get_float("scale", 1.0)
            if scale < 0:
                node.replace_input_with(0, write.add("Neg", node.inputs[0], label="query"))
                node.attributes["scale"] = ir.AttrFloat32("scale", -scale)
                changed = True
            if _may_be_empty(node):
                report.note(self.name, node_name(node), "onnxruntime refuses it for an empty batch or sequence")
        return changed


def _may_be_empty(node: ir.Node) -> bool:
    """Whether a size of the query or of the keys is not known to be at least 1."""
    operands = [value for value in node.inputs[:2] if value is not None]
    return any(
        value.shape is None or not all(isinstance(size, int) and size for size in value.shape) for value in operands
    )


def _without_lowest(write: Writer, mask: ir.Value) -> ir.Value:
    """The mask with half of the lowest number in the place of the lowest."""
    if mask.dtype is None or not mask.dtype.is_floating_point():
        return mask
    numbers = constant(mask, limit=1 << 20)
    kind = mask.dtype.numpy()
    lowest = np.array(ml_dtypes.finfo(kind).min, kind)
    if numbers is not None and not (numbers == lowest).any():
        return mask
    bottom, half = write.constant(lowest, "lowest"), write.constant(lowest / kind.type(2), "half")
    return write.add("Where", write.add("Equal", mask, bottom), half, mask, label="finite")


def _expanded(write: Writer, mask: ir.Value) -> ir.Value:
    """The mask with a row for each query."""
    query = write.node.inputs[0]
    assert query is not None
    axis = 1 if query.shape is not None and len(query.shape) == 3 else 2
    rows = _size(query, axis)
    if rows is not None and _size(mask, -2) == rows:
        return mask
    count = write.add("Shape", query, start=axis, end=axis + 1, label="count")
    sizes = write.add("Concat", count, write.numbers(1), axis=0, label="sizes")
    return write.add("Expand", mask, sizes, label="mask")


def _size(value: ir.Value, axis: int) -> sympy.Expr | None:
    """The size of an axis; None where it is not known, or there is no such axis."""
    shape = value.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    return expression(shape[axis])
