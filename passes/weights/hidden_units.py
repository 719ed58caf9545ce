"""The hidden units of experts, read and rearranged in whatever layout and format their weights are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.weights.encode import decode, per_element
from moec.ir.weights.experts import ExpertWeights, Part
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stacks import ExpertStack, expert_data
from moec.ir.weights.stored import WeightRun, decoding_node
from moec.passes.graph.edits import add_constant, fresh_name, remove_unused

Array = np.ndarray[Any, Any]


class HiddenUnits:
    """The hidden units of a ``moec.Experts`` or ``moec.MoE`` node, whose weights and biases have to be constants.

    Raises UnsupportedError for a weight that is not stored in one of the ways of :mod:`moec.ir.weights.stored`.
    """

    def __init__(self, node: ir.Node) -> None:
        self.weights = ExpertWeights(node)
        self.count = self.weights.hidden
        self._node = node
        self._inputs = dialect.inputs_of(node)

    def numbers(self, part: Part, expert: int) -> Array:
        """One expert's weights [unit, ...] of the part, in float32 where they are stored quantised."""
        form, encoded = self._format(part, expert), self.weights.encoded(part, expert)
        return _units_first(part, decode(encoded, form, 0) if form.quantized else encoded.data)

    def zeros(self, part: Part, expert: int) -> Array:
        """The units of which all weights of the part are stored as zeros. Looks at little of a part without such."""
        encoded = self.weights.encoded(part, expert)
        numbers = _units_first(part, encoded.data)
        if encoded.zero_point is None:
            return zero_rows(numbers, np.zeros((), numbers.dtype))
        zeros = per_element(encoded.zero_point, self._format(part, expert), len(encoded.data), 0)
        return zero_rows(numbers, _units_first(part, zeros))

    def bias(self, part: Part, expert: int) -> Array:
        """One expert's biases [unit] of the gate or up projection in float64; zeros where there are none."""
        bias = self.weights.bias(part)
        return np.zeros(self.count) if bias is None else bias[expert].astype(np.float64)

    def _format(self, part: Part, expert: int) -> WeightFormat:
        return self.weights.operand(part).run_of(expert).format

    def keep(self, graph: ir.Graph, kept: Sequence[Array], width: int) -> None:
        """Rewrite the node so that of every expert the ``kept`` units come first, among ``width`` in all."""
        order = [np.concatenate([units, np.setdiff1d(np.arange(self.count), units)])[:width] for units in kept]
        both = [self._positions_of_both(units) for units in order] if self.weights.spec.fused else order
        for name, positions in {"up": both, "gate": order, "down": order, "up_bias": both, "gate_bias": order}.items():
            value = self._inputs[name]
            if value is None:
                continue
            new = self._cut(graph, name, value, positions)
            self._node.replace_input_with(dialect.INPUTS[self._node.op_type].index(name), new)
            remove_unused(graph, value)
        self._node.attributes.pop("hidden_sizes", None)
        sizes = [len(units) for units in kept]
        if any(size != width for size in sizes):
            self._node.attributes["hidden_sizes"] = ir.AttrInt64s("hidden_sizes", sizes)

    def _axis(self, name: str) -> int:
        """The axis of the units in an operand: that of the inputs of down and that of the outputs of the others."""
        if name == "down":
            return 1 if self.weights.spec.down_transposed else 2
        return 2 if self.weights.spec.up_transposed and name in ("up", "gate") else 1

    def _positions_of_both(self, units: Array) -> Array:
        """The positions of gate and up of the units where one weight holds both, in the order of its layout."""
        if self.weights.spec.gate_layout == "interleaved":
            return np.stack([2 * units, 2 * units + 1], axis=1).ravel()
        return np.concatenate([units, self.count + units])

    def _cut(self, graph: ir.Graph, name: str, value: ir.Value, positions: Sequence[Array]) -> ir.Value:
        """The operand with these positions of each expert alone; every run of experts keeps its format."""
        if name not in self.weights.operands:
            return _cut_constant(graph, value, self._axis(name), positions)
        parts = [self._cut_run(graph, name, value, run, positions) for run in self.weights.operands[name].runs]
        if len(parts) == 1:
            return parts[0]
        joined = ir.node("Concat", parts, {"axis": 0})
        assert parts[0].shape is not None
        joined.outputs[0].shape = ir.Shape((self.weights.experts, *parts[0].shape[1:]))
        return self._inserted(graph, joined, value)

    def _cut_run(
        self, graph: ir.Graph, name: str, replaced: ir.Value, run: WeightRun, positions: Sequence[Array]
    ) -> ir.Value:
        axis, own = self._axis(name), positions[run.first : run.first + run.count]
        data = _cut_constant(graph, run.data, axis, own)
        scale, zero_point = (
            part if part is None or _shared(part, axis) else _cut_constant(graph, part, axis, own)
            for part in (run.scale, run.zero_point)
        )
        assert replaced.dtype is not None
        if not run.format.quantized and data.dtype == replaced.dtype:
            return data
        inputs_axis = 0 if run.axis is None else 1 + run.axis
        return self._inserted(
            graph, decoding_node(run.format, data, scale, zero_point, inputs_axis, replaced.dtype), replaced
        )

    def _inserted(self, graph: ir.Graph, new: ir.Node, replaced: ir.Value) -> ir.Value:
        """The output of a new node that makes what a value was, but for its number of units."""
        output = new.outputs[0]
        output.name, output.type = fresh_name(graph, f"{replaced.name}_used"), replaced.type
        graph.insert_before(self._node, new)
        return output


def _units_first(part: Part, matrix: Array) -> Array:
    """A part [in, out] with its units first."""
    return matrix if part == "down" else matrix.T


def _shared(value: ir.Value, axis: int) -> bool:
    """Whether one element serves all positions of the axis, as the scale of an output does for its inputs."""
    assert value.const_value is not None
    return value.const_value.shape[axis] == 1


def _cut_constant(graph: ir.Graph, value: ir.Value, axis: int, positions: Sequence[Array]) -> ir.Value:
    tensor = value.const_value
    assert tensor is not None
    shape = list(tensor.shape.numpy())
    shape[axis] = len(positions[0])

    def load(expert: int) -> Array:
        return np.take(expert_data(value, expert), positions[expert], axis - 1)

    name = fresh_name(graph, f"{value.name}_used")
    return add_constant(graph, ExpertStack(name, tensor.dtype, shape, load), name)


_READ_FIRST = (1, 64)
"""So many weights of every unit are looked at before the rest: one that is not zero decides, and most come early."""


def zero_rows(matrix: Array, zero: Array) -> Array:
    """Which rows of a matrix are zero; ``zero``: the number that means it, one for all or for each element."""
    found, expected = np.ones(len(matrix), bool), np.broadcast_to(zero, matrix.shape)
    ends = [*(end for end in _READ_FIRST if end < matrix.shape[1]), matrix.shape[1]]
    for start, end in zip([0, *ends], ends, strict=False):
        rows = np.flatnonzero(found)
        found[rows] = (matrix[rows, start:end] == expected[rows, start:end]).all(axis=1)
    return found
