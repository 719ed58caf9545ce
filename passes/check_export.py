"""Checks for faulty exports: facts of one traced example that are frozen into the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import sympy

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.movement import moving
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import constant, is_op
from moec.passes.shapes.symbolic import expression, shape_of

_MOVES = moving(drops=False)
"""Operators that do not change which rows their indices name."""
_ADVICE = "export the model again with torch.onnx.export(dynamo=True) and dynamic_shapes"


@dataclasses.dataclass(frozen=True)
class CheckExport:
    """Finds faults of exporters in Mixture-of-Experts layers. Changes nothing. Needs inferred shapes.

    Refused, because results are wrong for other inputs than the exporter's example:

    1. Reshape of a value whose size depends on the model's inputs to a fixed number of elements.
    2. Split of such an axis into parts of fixed sizes.
    3. Split of a list of active experts into fewer parts than there are experts: the example did not reach the others.
    4. ScatterElements or ScatterND that overwrites instead of adding, with more updates than rows or with indices that
       an integer division made equal: all but one contribution to a row are lost.

    Reported as a warning, because the data decides whether results are wrong:

    5. Such a scatter whose indices are several top-k lists joined: the lists may name the same row.
    6. Comparisons of the selected experts with some but not all expert ids.

    ::

        (float[T,8] x) => (float[2,8] y) <int64[2] target = {2, 8}> {
           y = Reshape (x, target)
        }
            ->
        MoecError: node 'y': Reshape makes [2, 8] of a value with 8*T elements
    """

    name: ClassVar[str] = "check-export"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        sizes = _input_sizes(model.graph)
        for node in model.graph:
            if is_op(node, "Reshape"):
                _check_reshape(node, sizes)
            elif is_op(node, "Split"):
                _check_split(node, sizes)
            elif is_op(node, "ScatterElements", "ScatterND"):
                self._check_scatter(node, report)
            elif is_op(node, "TopK"):
                self._check_compared_experts(node, report)
        return False

    def _check_scatter(self, node: ir.Node, report: Report) -> None:
        reduction = node.attributes.get("reduction")
        data, indices = node.inputs[0], node.inputs[1]
        overwrites = reduction is None or reduction.as_string() == "none"
        if not overwrites or data is None or indices is None or data.dtype is None or data.dtype.is_integer():
            return
        if _more_updates_than_rows(node, data, indices) or _divided(indices):
            raise MoecError(
                f"node {node_name(node)!r}: {node.op_type} overwrites rows that get several updates; a Mixture of "
                f"Experts adds them: the exporter lost the sum of an index_add: {_ADVICE}"
            )
        if _joins_top_k_lists(indices):
            report.warn(
                self.name,
                node_name(node),
                f"{node.op_type} overwrites instead of adding, and its indices are several top-k lists joined: where "
                f"two lists name one row, a contribution is lost; if experts are combined here, {_ADVICE}",
            )

    def _check_compared_experts(self, node: ir.Node, report: Report) -> None:
        scores = node.inputs[0]
        count = None if scores is None or scores.shape is None or len(scores.shape) == 0 else scores.shape[-1]
        compared = {expert for expert in _compared_with(node.outputs[1]) if expert >= 0}
        if isinstance(count, int) and 1 < len(compared) < count and max(compared) < count:
            missing = sorted(set(range(count)) - compared)
            report.warn(
                self.name,
                node_name(node),
                f"chooses among {count} experts, but only {len(compared)} have a body (missing: {missing}): the "
                f"exporter's example may not have reached the others; {_ADVICE}",
            )


def _input_sizes(graph: ir.Graph) -> set[sympy.Basic]:
    """The named sizes of the model's inputs: these differ from call to call."""
    dims = [expression(dim) for value in graph.inputs if value.shape is not None for dim in value.shape]
    return {symbol for dim in dims if dim is not None for symbol in dim.free_symbols}


def _check_reshape(node: ir.Node, sizes: set[sympy.Basic]) -> None:
    source = shape_of(node.inputs[0]) if node.inputs[0] is not None else None
    target = constant(node.inputs[1])
    if source is None or target is None or np.any(target <= 0):
        return
    elements = sympy.Integer(1) * sympy.prod(source)
    if elements.free_symbols and elements.free_symbols <= sizes:
        raise MoecError(
            f"node {node_name(node)!r}: Reshape makes {target.tolist()} of a value with {elements} elements, which is "
            f"true for one input size only; the exporter has frozen the size of its example: {_ADVICE}"
        )


def _check_split(node: ir.Node, sizes: set[sympy.Basic]) -> None:
    source = shape_of(node.inputs[0]) if node.inputs[0] is not None else None
    parts = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or parts is None:
        return
    length = _along_axis(node, source)
    if length is None:
        return
    if length.free_symbols and length.free_symbols <= sizes:
        raise MoecError(
            f"node {node_name(node)!r}: Split cuts an axis of {length} elements into parts of {parts.tolist()}, which "
            f"is true for one input only; the exporter has frozen what its example did: {_ADVICE}"
        )
    experts = _active_of(node.inputs[0])
    if length.free_symbols and experts is not None and len(parts) < experts:
        raise MoecError(
            f"node {node_name(node)!r}: Split handles {len(parts)} active experts, but there are {experts}; the "
            f"exporter's example did not reach the others, so they are missing: {_ADVICE}"
        )


def _active_of(value: ir.Value | None) -> int | None:
    """Number of experts to choose from, if the value lists those that a top-k selection has chosen; else None."""
    node = _origin(value)
    if not is_op(node, "NonZero"):
        return None
    while is_op(node, *_MOVES, "NonZero", "Greater", "ReduceSum", "OneHot"):
        source = node.inputs[0]  # type: ignore[union-attr]
        node = None if source is None else source.producer()
    if not is_op(node, "TopK") or node.inputs[0] is None or node.inputs[0].shape is None:  # type: ignore[union-attr]
        return None
    count = node.inputs[0].shape[-1]  # type: ignore[union-attr]
    return count if isinstance(count, int) else None


def _origin(value: ir.Value | None) -> ir.Node | None:
    """The node before all operators that only move data."""
    node = None if value is None else value.producer()
    while is_op(node, *_MOVES):
        source = node.inputs[0]  # type: ignore[union-attr]
        node = None if source is None else source.producer()
    return node


def _more_updates_than_rows(node: ir.Node, data: ir.Value, indices: ir.Value) -> bool:
    rows, updates = shape_of(data), shape_of(indices)
    if rows is None or updates is None:
        return False
    if is_op(node, "ScatterND"):
        count, available = sympy.prod(updates[:-1]), sympy.prod(rows[: int(updates[-1])])
    else:
        count, available = _along_axis(node, updates), _along_axis(node, rows)
    if count is None or available is None:
        return False
    surplus = sympy.expand(count - available)
    return bool(surplus.is_nonnegative) and surplus != 0


def _along_axis(node: ir.Node, sizes: list[sympy.Expr]) -> sympy.Expr | None:
    """The size along the node's axis; None for one that is not there, of which whoever lowers the node complains."""
    attribute = node.attributes.get("axis")
    axis = 0 if attribute is None else attribute.as_int()
    return sizes[axis] if -len(sizes) <= axis < len(sizes) else None


def _divided(indices: ir.Value) -> bool:
    """Whether sorted positions were divided by the number of choices per token: each token appears that often."""
    node = _origin(indices)
    if not is_op(node, "Div"):
        return False
    divisor = constant(node.inputs[1])  # type: ignore[union-attr]
    sorted_positions = _origin(node.inputs[0])  # type: ignore[union-attr]
    return divisor is not None and divisor.size == 1 and divisor.item() > 1 and is_op(sorted_positions, "TopK")


def _joins_top_k_lists(indices: ir.Value) -> bool:
    """Whether top-k lists of several rows were flattened into one list of indices."""
    node = indices.producer()
    joined = False
    while is_op(node, *_MOVES):
        source = node.inputs[0]  # type: ignore[union-attr]
        dims = shape_of(source) if source is not None else None
        if is_op(node, "Reshape", "Flatten") and dims is not None:
            joined |= sum(dim != 1 for dim in dims) > sum(dim != 1 for dim in shape_of(node.outputs[0]) or dims)  # type: ignore[union-attr]
        node = None if source is None else source.producer()
    return joined and is_op(node, "TopK")


def _compared_with(chosen: ir.Value) -> Iterator[int]:
    """The constants that chosen expert ids are compared with."""
    for user, _ in chosen.uses():
        if is_op(user, *_MOVES):
            yield from _compared_with(user.outputs[0])
        elif is_op(user, "Equal"):
            for operand in user.inputs:
                data = constant(operand)
                if data is not None:
                    yield from (int(item) for item in data.ravel())
