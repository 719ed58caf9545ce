"""States that each run replaces and that do not depend on how tokens were split into runs.

Drafts that are rejected leave such a state behind tokens that the text does not have. The session goes back to the
state before them and computes the right ones again, which has to give the bits of a session that never saw the others:

1. LinearAttention adds one token after the other.
2. A convolution over tokens keeps its last inputs (:mod:`moec.compiling.batch_states`).

Between the state and such an operator, in both directions, nodes may only combine it with constants. A recurrence in
another form, such as a sum over the tokens of a run, adds in an order that depends on the run.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.compiling.batch_states import appends_inputs, followers, takes_last
from moec.ir.graphs import is_op
from moec.ir.states import states_of
from moec.ir.weights.stored import constant

_STATE = 3
"""Input of LinearAttention; its output 1 is the state after the last token."""


def stepwise_states(model: ir.Model) -> list[str]:
    """Inputs of these states, in the order of the model's states."""
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    replaced = [state for state in states_of(model) if state.axis is None]
    return [
        state.input
        for state in replaced
        if _is_read_in_steps(values[state.input], model) and _is_made_in_steps(values[state.output])
    ]


def _is_read_in_steps(state: ir.Value, model: ir.Model) -> bool:
    moved = followers(model.graph, {state})
    uses = [(node, place) for value in moved for node, place in value.uses() if not is_op(node, "Shape")]
    readers = [(node, place) for node, place in uses if not moved.issuperset(node.outputs)]
    return bool(readers) and all(
        (is_op(node, "LinearAttention") and place == _STATE) or appends_inputs(node, moved) for node, place in readers
    )


def _is_made_in_steps(state: ir.Value) -> bool:
    value: ir.Value | None = state
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "LinearAttention"):
            return value is node.outputs[1]
        if takes_last(node):
            return True
        operands = [operand for operand in node.inputs if operand is not None and constant(operand) is None]
        value = operands[0] if len(operands) == 1 else None
    return False
