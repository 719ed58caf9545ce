"""Marking of states: outputs of a run that are inputs of the next run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from moec.common.specs import State
from moec.ir.graphs import carried_inputs
from moec.ir.movement import moving
from moec.ir.states import ATTENTION_CACHES, set_states, states_of
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import constant, is_op

_LONGEST_UPDATE = 16
"""Largest number of nodes between a state and its successor; a decay, a sum and a selection are a handful."""
_MOVES = moving()
_COMBINES = frozenset(["Add", "Concat", "Div", "Exp", "Max", "Min", "Mul", "Neg", "Sub", "Sum", "Where"])
_TENSOR_SCATTER_AXIS = -2
_STATE = 3
"""Input of LinearAttention that is the state before the first token; output 1 is the one after the last."""
_POSITIONS = 2
"""The axis of positions in the keys and values of Attention."""


@dataclasses.dataclass(frozen=True)
class HoldCache:
    """Marks states: inputs that take an output of the previous run (:mod:`moec.ir.states`).

    It adds no computation, and decides by the graph's computations and never by names. Needs inferred shapes.

    1. An output that is an input with new elements appended along one axis: by Concat, the past and present keys and
       values of Attention, or TensorScatter, all also with axes in another order (Transpose). The input may be padded
       at its end first. Concat needs an axis whose size is not fixed.
    2. An output with the type and shape of an input, computed from it by at most 16 nodes that move elements or combine
       them one by one: the last columns of a convolution's input, a recurrent state that decays and is added to. A
       value that a Loop or Scan carries counts as computed from its initial value, whatever the body does, and so does
       the state of LinearAttention. The input is a state only if another input has a size that it does not have, the
       length of a sequence. Otherwise the model may be a layer, whose input and output have the same shape, too.
    3. States that are already marked stay: a frontend knows some that the graph does not show, such as a recurrence's.
    4. An output that could be of several inputs, or an input of several outputs, stays unmarked, with a remark.

    ::

        (float[B,S,4] new, float[B,P,4] past, float[B,4] kept) => (float[B,R,4] present, float[B,4] next)
           <float half = {0.5}, int64[1] positions = {1}> {
           present = Concat <axis = 1> (past, new)
           sum = ReduceSum <keepdims = 0> (new, positions)
           decayed = Mul (kept, half)
           next = Add (decayed, sum)
        }
            infer-shapes,hold-cache ->
        (float[B,S,4] new, float[B,P,4] past, float[B,4] kept) => (float[B,R,4] present, float[B,4] next)
           <float half = {0.5}, int64[1] positions = {1}> {
           present = Concat <axis = 1> (past, new)
           sum = ReduceSum <keepdims = 0> (new, positions)
           decayed = Mul (kept, half)
           next = Add (decayed, sum)
        }
    """

    name: ClassVar[str] = "hold-cache"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        marked = _marked(model)
        marked_names = {name for state in marked for name in (state.input, state.output)}
        sources_of = {
            output: _sources(output, model.graph) for output in model.graph.outputs if output.name not in marked_names
        }
        sources_of = {
            output: [source for source in many if source[0].name not in marked_names]
            for output, many in sources_of.items()
        }
        times = Counter(value for sources in sources_of.values() for value, _ in sources)
        states = marked
        for output, sources in sources_of.items():
            names = ", ".join(repr(value.name) for value, _ in sources)
            if len(sources) > 1:
                self._leave(output, f"each of {names}", report)
            elif sources and times[sources[0][0]] > 1:
                self._leave(output, f"{names}, as other outputs could", report)
            elif sources:
                states.append(State(str(sources[0][0].name), str(output.name), sources[0][1]))
        return set_states(model, states)

    def _leave(self, output: ir.Value, what: str, report: Report) -> None:
        report.note(
            self.name, str(output.name), f"no state, for it could be the next of {what}; sessions ask for these"
        )


def _marked(model: ir.Model) -> list[State]:
    """The states that are marked already, of inputs and outputs that there are and that are alike. Raises MoecError for
    marks that nobody wrote so."""
    inputs, outputs = ({value.name: value for value in values} for values in (model.graph.inputs, model.graph.outputs))
    states = [(state, inputs.get(state.input), outputs.get(state.output)) for state in states_of(model)]
    return [
        state
        for state, value, output in states
        if value is not None and output is not None and value.dtype == output.dtype and _can_be(state, value, output)
    ]


def _can_be(state: State, value: ir.Value, output: ir.Value) -> bool:
    if value.shape is None or output.shape is None or len(value.shape) != len(output.shape):
        return False
    return value.shape == output.shape if state.axis is None else state.axis in range(len(value.shape))


def _sources(output: ir.Value, graph: ir.Graph) -> list[tuple[ir.Value, int | None]]:
    """The inputs that the output may be the next of, and the axis along which it has more."""
    written = _written(output)
    if written is not None:
        return [written]
    return [(value, None) for value in _replaced(output) if _is_beside_a_sequence(value, graph)]


def _written(output: ir.Value) -> tuple[ir.Value, int] | None:
    """The input that an output extends with new elements, and the axis."""
    if output.shape is None:
        return None
    value: ir.Value | None = output
    order, axis = list(range(len(output.shape))), None  # where the axes of the output, and the axis, are in ``value``
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "Transpose"):
            moves = list(node.attributes.get_ints("perm", [*reversed(order)]))
            order, axis = [moves[place] for place in order], None if axis is None else moves[axis]
        elif not is_op(node, "Identity"):
            along = _axis_written(node, value)
            if along is None or axis not in (None, along):
                return None
            axis = along
        past = ATTENTION_CACHES[value.index() or 0][0] if node.op_type == "Attention" else 0
        value = node.inputs[past]
    if value is None or not value.is_graph_input():
        return None
    if axis is None or order != sorted(order) or value.dtype != output.dtype:
        return None
    return (value, axis) if _can_be_given_back(value, output, axis) else None


def _axis_written(node: ir.Node, value: ir.Value) -> int | None:
    """The axis of ``value`` along which the node appends to its input; None for any other node."""
    rank = 0 if value.shape is None else len(value.shape)
    if is_op(node, "Concat") or (is_op(node, "TensorScatter") and _is_linear(node)):
        return node.attributes.get_int("axis", _TENSOR_SCATTER_AXIS) % max(rank, 1)
    if is_op(node, "Pad") and node.attributes.get_string("mode", "constant") == "constant":
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        return int(axes.item()) % max(rank, 1) if axes is not None and axes.size == 1 and _is_behind(node) else None
    return _POSITIONS if is_op(node, "Attention") and value.index() in ATTENTION_CACHES else None


def _is_linear(scatter: ir.Node) -> bool:
    return scatter.attributes.get_string("mode", "linear") == "linear"


def _is_behind(pad: ir.Node) -> bool:
    """Whether a Pad of one axis adds nothing in front."""
    pads = pad.inputs[1]
    node = None if pads is None else pads.producer()
    front = constant(node.inputs[0] if is_op(node, "Concat") else pads)
    return front is not None and front.size > 0 and front.ravel()[0] == 0


def _can_be_given_back(value: ir.Value, output: ir.Value, axis: int) -> bool:
    """Whether the input can take the output of the run before: its size along the axis is not fixed, or equal."""
    if value.shape is None or output.shape is None or len(value.shape) != len(output.shape):
        return False
    return not isinstance(value.shape[axis], int) or value.shape[axis] == output.shape[axis]


def _replaced(output: ir.Value) -> Iterator[ir.Value]:
    """The graph inputs with the type and shape of the output that a short path of nodes leads from."""
    reached = pending = {output: None}
    for _ in range(_LONGEST_UPDATE):
        pending = {operand: None for value in pending for operand in _combined(value) if operand not in reached}
        reached = {**reached, **pending}
    for value in reached:
        is_alike = value.dtype == output.dtype and value.shape is not None and value.shape == output.shape
        if is_alike and value is not output and value.is_graph_input():
            yield value


def _combined(value: ir.Value) -> list[ir.Value]:
    """The operands that the producer of a value moves or combines, element by element; empty for other operators."""
    node = value.producer()
    if node is None or node.domain != "":
        return []
    if is_op(node, "Loop", "Scan"):
        operands = carried_inputs(node)[value.index() or 0 :][:1]
    elif node.op_type == "LinearAttention":
        operands = node.inputs[_STATE : _STATE + (value.index() or 0)]
    elif node.op_type in _MOVES:
        operands = node.inputs[:1]
    else:
        operands = node.inputs[node.op_type == "Where" :] if node.op_type in _COMBINES else ()
    return [operand for operand in operands if operand is not None]


def _is_beside_a_sequence(state: ir.Value, graph: ir.Graph) -> bool:
    """Whether another input has a size that is not fixed and that the state does not have."""
    return any(
        size not in (state.shape or ())
        for value in graph.inputs
        for size in value.shape or ()
        if value is not state and not isinstance(size, int)
    )
