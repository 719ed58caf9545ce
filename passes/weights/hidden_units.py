"""The hidden units of experts, read and rearranged independently of the layout and the format of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.weights.encode import decode, per_element
from moec.ir.weights.format import WeightFormat
from moec.passes.weights.selection import ExpertSelection, select

Array = np.ndarray[Any, Any]


class HiddenUnits:
    """The hidden units of a ``moec.Experts`` or ``moec.MoE`` node, whose weights and biases have to be constants.

    Raises UnsupportedError for a weight that is not stored in one of the ways of :mod:`moec.ir.weights.stored`.
    """

    def __init__(self, node: ir.Node) -> None:
        self.weights = ExpertWeights(node)
        self.count = self.weights.hidden
        self._node = node

    def numbers(self, part: Part, expert: int) -> Array:
        """One expert's weights [unit, ...] of the part, in float32 where they are stored quantised."""
        form, encoded = self._format(part, expert), self.weights.encoded(part, expert)
        return _units_first(part, decode(encoded, form, 0) if form.quantized else encoded.data)

    def zeros(self, part: Part, expert: int) -> Array:
        """Flags of the units whose weights in the part are all stored as zeros. Reads little of a part that has
        none."""
        encoded = self.weights.encoded(part, expert)
        if self._format(part, expert).minima:
            return zero_rows(self.numbers(part, expert), np.zeros((), np.float32))
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
        """Rewrite the node so that the ``kept`` units of every expert come first, among ``width`` in all."""
        order = [np.concatenate([units, np.setdiff1d(np.arange(self.count), units)])[:width] for units in kept]
        both = [self.positions_of_both(units) for units in order] if self.weights.spec.fused else order
        everyone = range(self.weights.experts)
        for name, positions in {"up": both, "gate": order, "down": order, "up_bias": both, "gate_bias": order}.items():
            select(graph, self._node, name, ExpertSelection(everyone, self.axis(name), positions))
        self._node.attributes.pop("hidden_sizes", None)
        sizes = [len(units) for units in kept]
        if any(size != width for size in sizes):
            self._node.attributes["hidden_sizes"] = ir.AttrInt64s("hidden_sizes", sizes)

    def axis(self, name: str) -> int:
        """The axis of the units in an operand: that of the inputs of down and that of the outputs of the others."""
        if name == "down":
            return 1 if self.weights.spec.down_transposed else 2
        return 2 if self.weights.spec.up_transposed and name in ("up", "gate") else 1

    def positions_of_both(self, units: Array) -> Array:
        """The positions of gate and up of the units in a weight that holds both, in the order of its layout."""
        if self.weights.spec.gate_layout == "interleaved":
            return np.stack([2 * units, 2 * units + 1], axis=1).ravel()
        return np.concatenate([units, self.count + units])


def readable_units(node: ir.Node) -> HiddenUnits | str:
    """The node's hidden units, or the reason why they cannot be read."""
    inputs = dialect.inputs_of(node)
    for name in ("up_bias", "gate_bias"):
        bias = inputs[name]
        if bias is not None and (bias.const_value is None or bias.is_graph_input()):
            return f"{name} is computed when the model runs"
    try:
        units = HiddenUnits(node)
    except UnsupportedError as error:
        return str(error)
    if units.weights.spec.arithmetic == "int8":
        return "hidden values are quantised together; run this pass before quantize-experts"
    grouped = next((run for run in units.weights.operands["down"].runs if run.format.group), None)
    if grouped is not None:
        return f"down is {grouped.format}, in groups of units; run this pass before quantize-experts"
    return units


def _units_first(part: Part, matrix: Array) -> Array:
    """A part [in, out] with its hidden units along the first axis."""
    return matrix if part == "down" else matrix.T


_READ_FIRST = (1, 64)
"""Numbers of weights of every unit that are read before the rest. One weight that is not zero decides, and most come
early."""


def zero_rows(matrix: Array, zero: Array) -> Array:
    """Flags of the rows of a matrix that are zero; ``zero``: the number that stands for zero, one or one for each
    element."""
    is_zero, expected = np.ones(len(matrix), bool), np.broadcast_to(zero, matrix.shape)
    ends = [*(end for end in _READ_FIRST if end < matrix.shape[1]), matrix.shape[1]]
    for start, end in zip([0, *ends], ends, strict=False):
        rows = np.flatnonzero(is_zero)
        is_zero[rows] = (matrix[rows, start:end] == expected[rows, start:end]).all(axis=1)
    return is_zero
