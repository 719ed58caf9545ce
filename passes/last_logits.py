"""Logits of the last position alone, which is all that a next token is chosen by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.guards import bound_names
from moec.common.specs import tensor_specs
from moec.ir.dialect import INPUTS, is_moec
from moec.ir.graphs import add_constant
from moec.ir.names import node_name
from moec.ir.states import states_of
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import fresh_name, is_op, remove_unused
from moec.passes.raising.row_reading import ALONG, ELEMENTWISE, NORMALIZING

_FLAT = ("Reshape", "Squeeze", "Unsqueeze")
"""Operators that leave all elements in their order."""
_ALONE = (*ELEMENTWISE, "Identity")
_Moved = dict[ir.Node, list[ir.Value]]
"""Nodes that are to compute the last position alone, each with the values of which it reads that alone."""


@dataclasses.dataclass(frozen=True)
class LastLogits:
    """Logits [batch, length, vocabulary] become those of the last position, [batch, 1, vocabulary].

    It is lossy: logits of other positions are gone, those of the last one are what they were. A session and
    ``moec generate`` need no others; measures of quality do. Needs inferred shapes.

    1. The logits are the one output of floats [batch, length, vocabulary] that is a product (MatMul, Gemm or
       moec.Linear), or made of one by functions of single elements (a softcap), and no state. With no such output, or
       several, nothing happens but a warning.
    2. Gather takes the last position before the product, and before what makes its operand as far up as each token is
       treated alone and nothing else uses the results: functions of single elements, Softmax and normalisations along
       the last axis, products with matrices, moec.MoE, and Reshape between [batch, length, width] and
       [batch * length, width].
    3. Of no tokens there is no last one: the program has the guard ``1 <= length``. Where the length does not follow
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
        kept = {state.output for state in states_of(model)}
        found = [(value, node) for value in model.graph.outputs for node in _product(value) if value.name not in kept]
        if len(found) != 1:
            reason = "outputs that could be logits: a product [batch, length, vocabulary] of floats; expected one"
            report.warn(self.name, "model", f"nothing changed: {len(found) or 'no'} {reason}")
            return False
        logits, product = found[0]
        assert logits.shape is not None
        if logits.shape[1] == 1:
            return False
        if not _is_length_of_inputs(logits.shape[1], model.graph):
            reason = f"nothing tells that the length {logits.shape[1]} is at least 1"
            report.warn(self.name, str(logits.name), f"nothing changed: {reason}")
            return False
        moved = _movable(model.graph, logits)
        if product not in moved:
            reason = f"the last position cannot be taken before {node_name(product)}, for other nodes need more"
            report.warn(self.name, str(logits.name), f"nothing changed: {reason}")
            return False
        _move(model.graph, moved)
        return True


def _product(value: ir.Value) -> Iterator[ir.Node]:
    """The product that logits [batch, length, vocabulary] are, or are made of by functions of single elements."""
    if not _is_tokens(value) or value.dtype is None or not value.dtype.is_floating_point():
        return
    assert value.shape is not None
    node = value.producer()
    while node is not None and len(operands := _operands(node, value.shape[1])) == 1:
        if is_op(node, "MatMul", "Gemm") or is_moec(node, "Linear"):
            yield node
            return
        node = operands[0].producer() if is_op(node, *_ALONE, "Reshape") else None


def _is_tokens(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 3


def _is_length_of_inputs(length: int | ir.SymbolicDim, graph: ir.Graph) -> bool:
    """Whether a guard can say that the length is not zero, or it is known not to be."""
    from moec.passes.shapes.symbolic import expression

    if isinstance(length, int):
        return length > 0
    size = expression(length)
    bound = bound_names([spec.shape for spec in tensor_specs(graph.inputs)])
    return size is not None and {str(name) for name in size.free_symbols} <= bound


def _movable(graph: ir.Graph, logits: ir.Value) -> _Moved:
    """The nodes before ``logits`` that can compute the last position alone. Where that is not so of what makes rows
    [batch * length, width], nothing can take the last position out of them, and what reads them stays, too."""
    stopped: set[ir.Node] = set()
    while True:
        moved = _sweep(graph, logits, stopped)
        rows = {value for value in _frontier(moved) if not _is_tokens(value)}
        stuck = {node for node, operands in moved.items() if not rows.isdisjoint(operands)}
        if not stuck:
            return moved
        stopped |= stuck


def _sweep(graph: ir.Graph, logits: ir.Value, stopped: set[ir.Node]) -> _Moved:
    assert logits.shape is not None
    moved: dict[ir.Node, list[ir.Value]] = {}
    wanted = {logits}
    for node in reversed(graph):
        value = node.outputs[0]
        if value not in wanted or node in stopped or (value is not logits and value.is_graph_output()):
            continue
        operands = _operands(node, logits.shape[1]) if _is_read_by(value, value, moved) else []
        if operands:
            moved[node] = operands
            wanted.update(operands)
    return moved


def _frontier(moved: _Moved) -> list[ir.Value]:
    """What moved nodes read and no moved node makes, without repetitions."""
    read = dict.fromkeys(value for operands in moved.values() for value in operands)
    return [value for value in read if value.producer() not in moved]


def _is_read_by(value: ir.Value, tokens: ir.Value, moved: _Moved) -> bool:
    """Whether no other node reads the value, which is the tokens or their elements in another shape."""
    return all(
        tokens in moved.get(node, ())
        or (is_op(node, *_FLAT) and _is_hidden(node.outputs[0]) and _is_read_by(node.outputs[0], tokens, moved))
        for node, _ in value.uses()
    )


def _is_hidden(value: ir.Value) -> bool:
    return not value.is_graph_output()


def _operands(node: ir.Node, length: int | ir.SymbolicDim) -> list[ir.Value]:
    """The values of which the node reads the same token for each token that it makes: [batch, length, width], or rows
    [batch * length, width]. None of them for a node that does not treat each token alone."""
    shape = node.outputs[0].shape
    if len(node.outputs) != 1 or shape is None or len(shape) not in (2, 3):
        return []
    if is_op(node, "Reshape"):
        return _reshaped(node, shape[-1], length)
    if is_op(node, *_ALONE):
        operands, others = [value for value in node.inputs if not _is_broadcast(value)], []
    else:
        count = _places(node, len(shape))
        operands, others = node.inputs[:count], node.inputs[count:]
    alike = [value for value in operands if value is not None and _is_like(value, shape) and value not in others]
    return alike if len(alike) == len(operands) else []


def _places(node: ir.Node, rank: int) -> int:
    """How many of its first inputs a node reads token by token."""
    if is_op(node, *ALONG, *NORMALIZING):
        is_last = node.attributes.get_int("axis", -1) in (-1, rank - 1)
        return int(is_last and all(_rank(value) <= 1 for value in node.inputs[1:]))
    if is_op(node, "MatMul"):
        return int(_rank(node.inputs[1]) == 2)
    if is_op(node, "Gemm"):
        return int(not node.attributes.get_int("transA", 0) and all(_rank(value) <= 1 for value in node.inputs[2:]))
    if is_moec(node, "MoE"):
        return INPUTS["MoE"].index("logits") + 1
    return int(is_moec(node, "Linear"))


def _rank(value: ir.Value | None) -> int:
    """-1 for an absent value; more than any for one whose shape is unknown."""
    if value is None:
        return -1
    return 99 if value.shape is None else len(value.shape)


def _is_like(value: ir.Value, shape: ir.Shape) -> bool:
    """Whether the value has as many tokens."""
    if value.shape is None or len(value.shape) != len(shape):
        return False
    size = value.shape[-2]
    return size == shape[-2] and (isinstance(size, int) or size.value is not None)


def _is_broadcast(value: ir.Value | None) -> bool:
    """Whether all tokens meet the same of the value in a function of single elements."""
    return _rank(value) < 2 or (value is not None and value.shape is not None and value.shape[-2] == 1)


def _reshaped(reshape: ir.Node, width: int | ir.SymbolicDim, length: int | ir.SymbolicDim) -> list[ir.Value]:
    """The tokens that a Reshape, and others before it, have in another shape."""
    value = reshape.inputs[0]
    while value is not None and isinstance(width, int) and width > 0:
        shape = [] if value.shape is None else list(value.shape)
        if shape[-1:] == [width] and (len(shape) == 2 or (len(shape) == 3 and shape[1] == length)):
            return [value]
        before = value.producer()
        value = before.inputs[0] if is_op(before, *_FLAT) else None
    return []


def _move(graph: ir.Graph, moved: _Moved) -> None:
    place = add_constant(graph, ir.tensor(np.array([-1], np.int64)), fresh_name(graph, "last_position"))
    taken = {value: _last_of(graph, value, place) for value in _frontier(moved)}
    for node, operands in reversed(moved.items()):
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
