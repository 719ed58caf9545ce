"""The hidden units of experts, read and rearranged in whatever layout and format their weights are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec
from moec.ir.encodings import Encoded, decode
from moec.ir.formats import WeightRun, decoding_node, weight_inputs, weight_runs
from moec.ir.stacks import ExpertStack, expert_data
from moec.passes.rewriting import add_constant, fresh_name, remove_unused

Array = np.ndarray[Any, Any]


class HiddenUnits:
    """The hidden units of a ``moec.Experts`` or ``moec.MoE`` node, whose weights and biases have to be constants.

    Parts are called ``gate`` (of gated experts), ``up`` and ``down``, also where one weight holds gate and up. Reading
    goes expert by expert: of a memory-mapped weight it touches what is looked at.

    Raises UnsupportedError for a weight that is not stored in one of the ways of :mod:`moec.ir.formats`.
    """

    def __init__(self, node: ir.Node) -> None:
        self.spec = dialect.spec_of(node, ExpertsSpec)
        self.runs = {name: weight_runs(value) for name, value in weight_inputs(node).items()}
        self._node = node
        self._inputs = dialect.inputs_of(node)
        down = self._inputs["down"]
        assert down is not None and down.shape is not None
        self.experts, self.count = int(down.shape.numpy()[0]), int(down.shape.numpy()[self._axis("down")])
        self.sizes = self.spec.hidden_sizes or (self.count,) * self.experts
        """How many units each expert has; the others among ``count`` are stored, but ignored."""
        self._last: dict[str, Any] = {}

    @property
    def parts(self) -> tuple[str, ...]:
        return ("gate", "up", "down") if self.spec.gated else ("up", "down")

    def weights(self, part: str, expert: int) -> Array:
        """One expert's weights [unit, ...] of the part, in float32 where they are stored quantised."""
        run, encoded = self._stored(part, expert)
        matrix = encoded.data if not run.format.quantized else decode(encoded, run.format, _inputs_axis(run))
        return self._units_first(part, matrix)

    def zero_weights(self, part: str, expert: int) -> Array:
        """Of which units all weights of the part are stored as zeros. Looks at little of one without such."""
        run, encoded = self._stored(part, expert)
        numbers = self._units_first(part, encoded.data)
        if encoded.zero_point is None:
            return zero_rows(numbers, np.zeros((), numbers.dtype))
        size = encoded.data.shape[_inputs_axis(run)]
        zeros = np.repeat(encoded.zero_point, run.format.group or size, axis=_inputs_axis(run))
        return zero_rows(numbers, self._units_first(part, np.take(zeros, np.arange(size), axis=_inputs_axis(run))))

    def _stored(self, part: str, expert: int) -> tuple[WeightRun, Encoded]:
        """What is stored of the operand that holds the part; made only once for neighbouring calls."""
        source = self._source(part)
        run = next(run for run in self.runs[source] if run.first <= expert < run.first + run.count)
        if self._last.get("expert") != expert:
            self._last = {"expert": expert}
        if source not in self._last:
            self._last[source] = run.encoded(expert)
        return run, self._last[source]

    def _units_first(self, part: str, matrix: Array) -> Array:
        return self._split(part, np.moveaxis(matrix, self._axis(self._source(part)) - 1, 0))

    def bias(self, part: str, expert: int) -> Array:
        """One expert's biases [unit] of the gate or up projection in float64; zeros where there are none."""
        value = self._inputs[f"{self._source(part)}_bias"]
        if value is None:
            return np.zeros(self.count)
        return self._split(part, expert_data(value, expert).astype(np.float64))

    def keep(self, graph: ir.Graph, kept: Sequence[Array], width: int) -> None:
        """Rewrite the node so that of every expert the ``kept`` units come first, among ``width`` in all."""
        order = [np.concatenate([one, np.setdiff1d(np.arange(self.count), one)])[:width] for one in kept]
        both = [self._positions_of_both(units) for units in order] if self._fused else order
        for name, positions in {"up": both, "gate": order, "down": order, "up_bias": both, "gate_bias": order}.items():
            value = self._inputs[name]
            if value is None:
                continue
            new = self._cut(graph, name, value, positions)
            self._node.replace_input_with(dialect.INPUTS[self._node.op_type].index(name), new)
            remove_unused(graph, value)
        self._node.attributes.pop("hidden_sizes", None)
        sizes = [len(one) for one in kept]
        if any(size != width for size in sizes):
            self._node.attributes["hidden_sizes"] = ir.AttrInt64s("hidden_sizes", sizes)

    @property
    def _fused(self) -> bool:
        """Whether one weight holds gate and up."""
        return self.spec.gated and self.spec.gate_layout != "separate"

    def _source(self, part: str) -> str:
        """The operand that holds the part."""
        return "up" if part == "gate" and self._fused else part

    def _axis(self, name: str) -> int:
        """The axis of the units in an operand: that of the inputs of down and that of the outputs of the others."""
        if name == "down":
            return 1 if self.spec.down_transposed else 2
        return 2 if self.spec.up_transposed and name in ("up", "gate") else 1

    def _split(self, part: str, rows: Array) -> Array:
        """The rows that belong to the part."""
        if part == "down" or not self._fused:
            return rows
        if self.spec.gate_layout == "interleaved":
            return rows[0 if part == "gate" else 1 :: 2]
        first_half = (part == "gate") == (self.spec.gate_layout == "gate_up")
        return rows[: self.count] if first_half else rows[self.count :]

    def _positions_of_both(self, units: Array) -> Array:
        """The positions of gate and up of the units where one weight holds both, in the order of its layout."""
        if self.spec.gate_layout == "interleaved":
            return np.stack([2 * units, 2 * units + 1], axis=1).ravel()
        return np.concatenate([units, self.count + units])

    def _cut(self, graph: ir.Graph, name: str, value: ir.Value, positions: Sequence[Array]) -> ir.Value:
        """The operand with these positions of each expert alone; every run of experts keeps its format."""
        if name not in self.runs:
            return _cut_constant(graph, value, self._axis(name), positions)
        parts = [self._cut_run(graph, name, value, run, positions) for run in self.runs[name]]
        if len(parts) == 1:
            return parts[0]
        joined = ir.node("Concat", parts, {"axis": 0})
        assert parts[0].shape is not None
        joined.outputs[0].shape = ir.Shape((self.experts, *parts[0].shape[1:]))
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


def _inputs_axis(run: WeightRun) -> int:
    """The axis of the inputs in the matrix of one expert, where that matters."""
    return -1 if run.axis is None else run.axis


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
