"""RNN, GRU and LSTM become a Scan over their steps, however many."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.dialect import REFUSAL_KEY
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import is_op, replace_node, value_names
from moec.passes.graph.writer import NotDecomposableError, Writer, dtype_of, width_of
from moec.passes.recurrent import cells
from moec.passes.recurrent.activations import Activation, activations_of

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Whether each direction starts at the end of the sequence."""


@dataclasses.dataclass(frozen=True)
class _CellKind:
    """One of the three operators: number of gates, default activations, inputs with initial states, and its step."""

    gates: int
    activations: tuple[str, ...]
    states: tuple[int, ...]
    step: Callable[[Writer, cells.Cell, ir.Value, list[ir.Value]], list[ir.Value]]


_KINDS = {
    "RNN": _CellKind(1, ("Tanh",), (5,), cells.rnn),
    "GRU": _CellKind(3, ("Sigmoid", "Tanh"), (5,), cells.gru),
    "LSTM": _CellKind(4, ("Sigmoid", "Tanh", "Tanh"), (5, 6), cells.lstm),
}


@dataclasses.dataclass(frozen=True)
class DecomposeRecurrent:
    """Decomposes RNN, GRU and LSTM into products, activations and Scan. :class:`InlineControlFlow` unrolls the Scan if
    the number of steps is fixed.

    1. A single product multiplies the inputs of all steps with their weights, biases included. The rest of a step is
       the body of a Scan per direction; the reverse one reads and writes from the end.
    2. With ``sequence_lens``, a step after the end of a sequence carries its state on and its output is 0.
    3. A node with an activation that ONNX does not name stays, and is reported.

    ::

        (float[3,2,4] x) => (float[3,1,2,5] y) <float[1,5,4] w, float[1,5,5] r> {
           y = RNN <hidden_size = 5> (x, w, r)
        }
            infer-shapes,decompose-recurrent,fold-constants,fold-shapes,simplify,remove-dead-nodes ->
        (float[3,2,4] x) => (float[3,1,2,5] y)
           <int64[1] "y.numbers_2" = {1}, float[4,5] "y.Transpose", float[5,5] "y.Transpose_2",
            int64[2] "y.Concat" = {2, 5}> {
           "y.MatMul" = MatMul (x, "y.Transpose")
           "y.ConstantOfShape" = ConstantOfShape <value: tensor = float[1] {0.0}> ("y.Concat")
           "y.last", "y.outputs" = Scan <body: graph = step (float[] "y.state", float[] "y.x") =>
              (float[2,5] "y.Tanh", float[2,5] "y.Identity")
           {
              "y.MatMul_2" = MatMul ("y.state", "y.Transpose_2")
              "y.Add" = Add ("y.x", "y.MatMul_2")
              "y.Tanh" = Tanh ("y.Add")
              "y.Identity" = Identity ("y.Tanh")
           }, num_scan_inputs = 1, scan_input_directions = [0], scan_output_directions = [0]>
              ("y.ConstantOfShape", "y.MatMul")
           y = Unsqueeze ("y.outputs", "y.numbers_2")
        }
    """

    name: ClassVar[str] = "decompose-recurrent"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        pending = [node for node in model.graph if is_op(node, *_KINDS)]
        taken = value_names(model.graph) if pending else set[str]()
        for node in pending:
            try:
                values = _decompose(Writer(node, taken), _KINDS[node.op_type])
            except NotDecomposableError as reason:
                report.warn(self.name, node_name(node), f"{node.op_type} stays as it is: {reason}")
                node.metadata_props[REFUSAL_KEY] = str(reason)
                continue
            replace_node(node, values)
            changed = True
        return changed


def _decompose(write: Writer, kind: _CellKind) -> list[ir.Value | None]:
    """Y and the last states."""
    _expect_input(write)
    x = write.required(0, "X")
    directions = _DIRECTIONS.get(write.attribute("direction", "forward"))
    if directions is None:
        raise NotDecomposableError(f"direction is {write.attribute('direction', None)!r}; expected {[*_DIRECTIONS]}")
    width_of(write.required(2, "R"), "R")
    dtype_of(x, "X")
    activations = activations_of(write, kind.activations, len(directions))
    batch_first = bool(write.attribute("layout", 0))
    if batch_first:
        x = write.add("Transpose", x, perm=[1, 0, 2])
    directions_made = [
        _direction(write, kind, x, number, is_reverse, activations[number])
        for number, is_reverse in enumerate(directions)
    ]
    outputs, *states = zip(*directions_made, strict=True)
    y = _stacked(write, outputs, 1)
    last = [_stacked(write, state, 0) for state in states]
    if batch_first:
        y = write.add("Transpose", y, perm=[2, 0, 1, 3])
        last = [write.add("Transpose", state, perm=[1, 0, 2]) for state in last]
    return [y, *last]


def _expect_input(write: Writer) -> None:
    """Raises NotDecomposableError unless X has three axes."""
    x = write.required(0, "X")
    if x.shape is None or len(x.shape) != 3:
        raise NotDecomposableError(f"{x.name} has the shape {x.shape}; expected three axes")


def _direction(
    write: Writer, kind: _CellKind, x: ir.Value, number: int, is_reverse: bool, activations: list[Activation]
) -> list[ir.Value]:
    """Outputs [steps,batch,hidden] and last states [batch,hidden] of one direction."""
    hidden, dtype = width_of(write.required(2, "R"), "R"), dtype_of(write.required(0, "X"), "X")
    index = write.constant(np.array(number), "direction")

    def own(position: int, axis: int = 0) -> ir.Value | None:
        value = write.input(position)
        return None if value is None else write.add("Gather", value, index, axis=axis)

    weight, recurrence = (write.add("Transpose", own(position), perm=[1, 0]) for position in (1, 2))
    projected = write.add("MatMul", x, weight)
    bias, rest = own(3), None
    if bias is not None:
        bias, rest = cells.split(write, bias, [kind.gates * hidden] * 2)
        projected = write.add("Add", projected, bias)
        if not write.attribute("linear_before_reset", 0):
            projected, rest = write.add("Add", projected, rest), None
    peepholes = own(cells.PEEPHOLES) if write.node.op_type == "LSTM" else None
    cell = cells.Cell(hidden, dtype, recurrence, rest, peepholes, activations)
    axis = 1 if write.attribute("layout", 0) else 0
    states = [own(position, axis) or _zeros(write, x, hidden, dtype) for position in kind.states]
    return _scan(write, kind, cell, projected, states, is_reverse)


def _scan(
    write: Writer,
    kind: _CellKind,
    cell: cells.Cell,
    projected: ir.Value,
    states: list[ir.Value],
    is_reverse: bool,
) -> list[ir.Value]:
    body, tensor = _BodyWriter(write), ir.TensorType(cell.kind)
    carried = [ir.Value(name=write.name("state"), type=tensor) for _ in states]
    x = ir.Value(name=write.name("x"), type=tensor)
    inputs, scanned, lengths = [*carried, x], [projected], write.input(4)
    if lengths is None:
        results = kind.step(body, cell, x, carried)
        output = body.add("Identity", results[0])
    else:
        position = ir.Value(name=write.name("position"), type=ir.TensorType(ir.DataType.INT64))
        inputs.append(position)
        scanned.append(_positions(write, projected))
        column = body.add("Unsqueeze", body.add("Cast", lengths, to=ir.DataType.INT64), write.numbers(1))
        is_alive = body.add("Less", position, column)
        new = kind.step(body, cell, x, carried)
        results = [body.add("Where", is_alive, *pair) for pair in zip(new, carried, strict=True)]
        output = body.add("Where", is_alive, new[0], write.constant(np.array(0, cell.kind.numpy()), "zero"))
    step = ir.Graph(inputs, [*results, output], nodes=body.nodes, name="step")
    attributes = {
        "body": step,
        "num_scan_inputs": len(scanned),
        "scan_input_directions": [int(is_reverse)] * len(scanned),
    }
    attributes["scan_output_directions"] = [int(is_reverse)]
    scan = ir.node("Scan", [*states, *scanned], attributes=attributes, num_outputs=len(states) + 1)
    write.insert(scan, *("last" for _ in states), "outputs")
    return [scan.outputs[-1], *scan.outputs[:-1]]


class _BodyWriter(Writer):
    """Writes nodes of a body; constants are of the graph around it."""

    def __init__(self, outer: Writer) -> None:
        super().__init__(outer.node, outer.taken)
        self.nodes: list[ir.Node] = []

    def insert(self, node: ir.Node, *labels: str) -> ir.Value:
        for output, label in zip(node.outputs, labels, strict=True):
            output.name = self.name(label)
        self.nodes.append(node)
        return node.outputs[0]


def _positions(write: Writer, projected: ir.Value) -> ir.Value:
    """The number of each step, [steps]."""
    steps = write.add("Shape", projected, start=0, end=1)
    first, step = (write.constant(np.array(number), "number") for number in (0, 1))
    return write.add("Range", first, write.add("Squeeze", steps, write.numbers(0)), step)


def _zeros(write: Writer, x: ir.Value, hidden: int, dtype: ir.DataType) -> ir.Value:
    """The state [batch,hidden] that the first step begins with where none is given."""
    batch = write.add("Shape", x, start=1, end=2)
    shape = write.add("Concat", batch, write.numbers(hidden), axis=0)
    return write.add("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, dtype.numpy()), dtype=dtype))


def _stacked(write: Writer, values: Sequence[ir.Value], axis: int) -> ir.Value:
    """One value per direction along a new axis."""
    return write.add("Concat", *(write.add("Unsqueeze", value, write.numbers(axis)) for value in values), axis=axis)
