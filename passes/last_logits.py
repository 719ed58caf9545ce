"""Logits of the last position alone, which is all that a next token is chosen by."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.guards import bound_names
from moec.common.names import node_name
from moec.common.specs import tensor_specs
from moec.ir.graphs import add_constant
from moec.ir.last_tokens import TokenWise, frontier, logits_of, token_wise
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import fresh_name, is_op, remove_unused


@dataclasses.dataclass(frozen=True)
class LastLogits:
    """Logits [batch, length, vocabulary] become those of the last position, [batch, 1, vocabulary].

    It is lossy: logits of other positions are gone, those of the last one do not change. It is for plain runs of models
    whose other logits are not needed; sessions compute only the last ones anyway. Needs inferred shapes.

    1. The logits are the one output of floats [batch, length, vocabulary] that is a product (MatMul, Gemm or
       moec.Linear), or made of one by functions of single elements (a softcap), and no state. With no such output, or
       several, nothing happens but a warning.
    2. Gather takes the last position before the product, and before what makes its operand as far up as each token is
       treated alone and nothing else uses the results: functions of single elements, Softmax and normalisations along
       the last axis, products with matrices, moec.MoE, and Reshape between [batch, length, width] and
       [batch * length, width].
    3. Without tokens there is no last one: the program gets the guard ``1 <= length``. If the length does not follow
       from sizes of inputs, nothing happens but a warning.

    ::

        (float[B,L,4] x) => (float[B,L,9] logits) <float[4] scale, float[4,9] table, int64 axis = {1}> {
           rows = CumSum (x, axis)
           normal = RMSNormalization <axis = -1> (rows, scale)
           logits = MatMul (normal, table)
        }
            infer-shapes,last-logits ->
        (float[B,L,4] x) => (float[B,1,9] logits)
           <float[4] scale, float[4,9] table, int64 axis = {1}, int64[1] last_position = {-1}> {
           rows = CumSum (x, axis)
           rows_last = Gather <axis = 1> (rows, last_position)
           normal = RMSNormalization <axis = -1> (rows_last, scale)
           logits = MatMul (normal, table)
        }
    """

    name: ClassVar[str] = "last-logits"
    exactness: ClassVar[Exactness] = "lossy"

    def apply(self, model: ir.Model, report: Report) -> bool:
        candidates = logits_of(model)
        if len(candidates) != 1:
            reason = "outputs that could be logits: a product [batch, length, vocabulary] of floats; expected one"
            report.warn(self.name, "model", f"nothing changed: {len(candidates) or 'no'} {reason}")
            return False
        logits, product = candidates[0]
        assert logits.shape is not None
        if logits.shape[1] == 1:
            return False
        if not _is_length_of_inputs(logits.shape[1], model.graph):
            reason = f"nothing tells that the length {logits.shape[1]} is at least 1"
            report.warn(self.name, str(logits.name), f"nothing changed: {reason}")
            return False
        moved = token_wise(model.graph, logits)
        if product not in moved:
            reason = f"the last position cannot be taken before {node_name(product)}, for other nodes need more"
            report.warn(self.name, str(logits.name), f"nothing changed: {reason}")
            return False
        _move(model.graph, moved)
        return True


def _is_length_of_inputs(length: int | ir.SymbolicDim, graph: ir.Graph) -> bool:
    """Whether a guard can say that the length is not zero, or it is known not to be."""
    from moec.passes.shapes.symbolic import expression

    if isinstance(length, int):
        return length > 0
    size = expression(length)
    bound = bound_names([spec.shape for spec in tensor_specs(graph.inputs)])
    return size is not None and {str(name) for name in size.free_symbols} <= bound


def _move(graph: ir.Graph, moved: TokenWise) -> None:
    place = add_constant(graph, ir.tensor(np.array([-1], np.int64)), fresh_name(graph, "last_position"))
    taken = {value: _last_of(graph, value, place) for value in frontier(moved)}
    for node, operands in reversed(list(moved.items())):
        if is_op(node, "Reshape"):
            _reshape(graph, node, taken.get(operands[0], operands[0]))
        for position, value in enumerate(node.inputs):
            if value in taken and value in operands:
                node.replace_input_with(position, taken[value])
        _narrow(node.outputs[0], operands[0])


def _last_of(graph: ir.Graph, tokens: ir.Value, place: ir.Value) -> ir.Value:
    gather = ir.node("Gather", [tokens, place], {"axis": 1})
    (last,) = gather.outputs
    last.name, last.type, last.shape = fresh_name(graph, f"{tokens.name}_last"), tokens.type, tokens.shape
    _narrow(last, tokens)
    node = tokens.producer()
    if node is None:
        graph.insert_before(graph[0], gather)
    else:
        graph.insert_after(node, gather)
    return last


def _reshape(graph: ir.Graph, reshape: ir.Node, tokens: ir.Value) -> None:
    """Let a Reshape make its shape, of the last position alone, from the tokens."""
    shape = reshape.outputs[0].shape
    assert shape is not None
    numbers = [-1, *[1] * (len(shape) - 2), int(shape[-1])]  # type: ignore[arg-type]
    sizes = add_constant(graph, ir.tensor(np.array(numbers, np.int64)), fresh_name(graph, "last_shape"))
    for position, value in enumerate((tokens, sizes)):
        before = reshape.inputs[position]
        reshape.replace_input_with(position, value)
        if before is not None:
            remove_unused(graph, before)


def _narrow(value: ir.Value, tokens: ir.Value) -> None:
    """Shapes of a value that has one position left; of rows, as many as its first operand has by now."""
    assert value.shape is not None and tokens.shape is not None
    is_rows = len(value.shape) == 2
    value.shape = ir.Shape([tokens.shape[0], value.shape[-1]] if is_rows else [value.shape[0], 1, value.shape[-1]])
