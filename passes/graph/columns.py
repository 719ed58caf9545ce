"""Some columns of a value: of a constant, of a product with a constant matrix, or picked by a Gather."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import LinearSpec
from moec.ir.graphs import add_constant
from moec.ir.weights.stored import constant
from moec.passes.graph.edits import fresh_name, is_op, remove_unused

_ELEMENTWISE = (
    *("Abs", "Add", "Cast", "Clip", "Div", "Exp", "Identity", "Max", "Min", "Mul", "Neg", "Relu", "Sigmoid"),
    *("Softplus", "Sqrt", "Sub", "Tanh", "Where"),
)


def keep_columns(graph: ir.Graph, user: ir.Node, position: int, kept: Sequence[int]) -> None:
    """Replace input ``position`` [..., n] of ``user`` by its columns ``kept``, in this order.

    If the input depends only on constants, products with constant matrices and elementwise operators, and nothing else
    uses it, these are cut. Otherwise the columns are gathered.
    """
    value = user.inputs[position]
    assert value is not None
    if _can_be_cut(value, _columns(value)):
        user.replace_input_with(position, _cut(graph, value, kept))
        remove_unused(graph, value)
        return
    ids = add_constant(graph, ir.tensor(np.array(kept, np.int64)), fresh_name(graph, f"{value.name}_kept"))
    gather = ir.node("Gather", [value, ids], {"axis": -1})
    gather.outputs[0].name, gather.outputs[0].type = fresh_name(graph, f"{value.name}_used"), value.type
    gather.outputs[0].shape = _narrowed(value, len(kept))
    graph.insert_before(user, gather)
    user.replace_input_with(position, gather.outputs[0])


def has_own_columns(value: ir.Value) -> bool:
    """Whether every column of a value [..., n] depends on the same column of constants and of matrices alone, so that
    the others stay as they are where the model has fewer. False where that is not known."""
    return _is_by_column(value, _columns(value), may_be_shared=True)


def _columns(value: ir.Value | None) -> int | None:
    """The size of the last axis where it is a known number; 1 for a scalar."""
    shape = None if value is None else value.shape
    if shape is None:
        return None
    last = shape[-1] if len(shape) else 1
    return last if isinstance(last, int) else None


def _narrowed(value: ir.Value, width: int) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([*value.shape[:-1], width])


def _can_be_cut(value: ir.Value, width: int | None) -> bool:
    """Whether columns of a value [..., width] can be left out where it is computed."""
    return _is_by_column(value, width, may_be_shared=False)


def _is_by_column(value: ir.Value, width: int | None, may_be_shared: bool) -> bool:
    """Whether each column of a value [..., width] is computed without the others. ``may_be_shared``: also where values
    have several users, or are outputs of the model."""
    if constant(value) is not None:
        return True
    node = value.producer()
    if node is None or width is None or _columns(value) != width:
        return False
    if not may_be_shared and (value.is_graph_output() or len(value.uses()) != 1):
        return False
    if (matrix := _matrix(node)) is not None:
        bias = _bias(node)
        return constant(node.inputs[matrix[0]]) is not None and (bias is None or constant(bias) is not None)
    if is_op(node, "Reshape"):
        return _reshapes_rows(node, width) and _is_operand_by_column(node, 0, width, may_be_shared)
    positions = range(len(node.inputs))
    return is_op(node, *_ELEMENTWISE) and all(_is_operand_by_column(node, i, width, may_be_shared) for i in positions)


def _is_operand_by_column(node: ir.Node, position: int, width: int, may_be_shared: bool) -> bool:
    """The same of an operand, which may also serve all columns. One that is computed may be a sum of all columns,
    unless these have no other user."""
    operand = node.inputs[position]
    if operand is not None and _columns(operand) == 1 != width:
        return not may_be_shared or constant(operand) is not None
    return operand is None or (_columns(operand) == width and _is_by_column(operand, width, may_be_shared))


def _matrix(node: ir.Node) -> tuple[int, int] | None:
    """The operand of a product that is its matrix, and the axis of the result's columns in it."""
    if is_op(node, "MatMul") and node.inputs[1] is not None and len(node.inputs[1].shape or ()) == 2:
        return 1, 1
    if is_op(node, "Gemm"):
        return 1, 0 if node.attributes.get_int("transB", 0) else 1
    if dialect.is_moec(node, "Linear"):
        return 1, 1 if dialect.spec_of(node, LinearSpec).transposed else 0
    return None


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if node.op_type in ("Gemm", "Linear") and len(node.inputs) > 2 else None


def _reshapes_rows(node: ir.Node, width: int) -> bool:
    """Whether a Reshape keeps columns as they are, and says how many there are by their number."""
    shape = constant(node.inputs[1])
    return _columns(node.inputs[0]) == width and shape is not None and int(shape.numpy()[-1]) == width


def _cut(graph: ir.Graph, value: ir.Value, kept: Sequence[int]) -> ir.Value:
    """The columns of a value for which ``_can_be_cut`` holds: a new constant, or the value itself, changed."""
    if constant(value) is not None:
        return _taken(graph, value, kept, -1)
    node = value.producer()
    assert node is not None
    width = _columns(value)
    if (matrix := _matrix(node)) is not None:
        position, axis = matrix
        _replace(graph, node, position, _taken(graph, _operand(node, position), kept, axis))
        if _bias(node) is not None and _columns(_bias(node)) != 1:
            _replace(graph, node, 2, _taken(graph, _operand(node, 2), kept, -1))
    elif node.op_type == "Reshape":
        _replace(graph, node, 0, _cut(graph, _operand(node, 0), kept))
        shape = constant(node.inputs[1])
        assert shape is not None
        target = np.array([*shape.numpy()[:-1], len(kept)], np.int64)
        name = fresh_name(graph, f"{value.name}_shape")
        _replace(graph, node, 1, add_constant(graph, ir.tensor(target), name))
    else:
        for position, operand in enumerate(node.inputs):
            if operand is not None and _columns(operand) == width:
                _replace(graph, node, position, _cut(graph, operand, kept))
    value.shape = _narrowed(value, len(kept))
    return value


def _operand(node: ir.Node, position: int) -> ir.Value:
    operand = node.inputs[position]
    assert operand is not None
    return operand


def _replace(graph: ir.Graph, node: ir.Node, position: int, new: ir.Value) -> None:
    old = _operand(node, position)
    if new is not old:
        node.replace_input_with(position, new)
        remove_unused(graph, old)


def _taken(graph: ir.Graph, value: ir.Value, kept: Sequence[int], axis: int) -> ir.Value:
    tensor = constant(value)
    assert tensor is not None
    taken = np.take(tensor.numpy(), np.array(kept, np.int64), axis)
    name = fresh_name(graph, f"{value.name}_used")
    return add_constant(graph, ir.Tensor(taken, dtype=tensor.dtype), name)
