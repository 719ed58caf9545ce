"""The nodes of a graph that are in no project, which the caller has to compute elsewhere, and their share of all
operations.

A multiply-add counts as two operations, any other result as one, and moving data as none. Sizes are those of the
calibration data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.dialect import ExpertsSpec, RouteSpec, has_experts, inputs_of, is_moec, spec_of

Array = np.ndarray[Any, Any]

_MOVES = frozenset(
    {
        *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
        *("Identity", "Pad", "Range", "Reshape", "ScatterElements", "ScatterND", "Shape", "Slice", "Split", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze", "Where"),
    }
)
_MOST_NAMES = 3
"""The most nodes of one operator that a report names."""


class ProjectRegion(Protocol):
    """The part of a graph that a project computes: all nodes between two values."""

    @property
    def tokens(self) -> ir.Value: ...
    @property
    def output(self) -> ir.Value: ...


@dataclasses.dataclass(frozen=True)
class Operator:
    """Nodes of one operator that are in no project. ``nodes``: names of the first; ``share``: of all operations."""

    operator: str
    count: int
    nodes: tuple[str, ...]
    operations: int
    share: float


@dataclasses.dataclass(frozen=True)
class OutsideNodes:
    """The nodes in no project, by operator. ``share``: of all operations of the model. ``unknown``: nodes of unknown
    size, in projects or not, which no figure counts."""

    operators: tuple[Operator, ...]
    share: float
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        listed = ", ".join(
            f"{operator.count} {operator.operator} ({operator.share:.1%})" for operator in self.operators
        )
        return f"{self.share:.1%} of the operations are in no project: {listed}"


def find_outside(model: ir.Model, parts: Sequence[ProjectRegion], feeds: Mapping[ir.Value, Array]) -> OutsideNodes:
    """The nodes of a model that are in none of the ``parts``. ``feeds``: arrays for the model's inputs, which give
    symbolic sizes their values."""
    sizes = _ValueShapes(feeds)
    inside = {node for part in parts for node in _nodes_of(part)}
    nodes = [node for node in model.graph if node.op_type not in _MOVES]
    counted = {node: sizes.operations(node) for node in nodes}
    total = sum(count for count in counted.values() if count is not None) or 1
    groups: dict[str, list[ir.Node]] = {}
    for node in nodes:
        if node not in inside and counted[node] is not None:
            groups.setdefault(node.op_type, []).append(node)
    operators = [
        _operator(name, group, [counted[node] or 0 for node in group], total) for name, group in groups.items()
    ]
    operators.sort(key=lambda entry: (-entry.operations, entry.operator))
    return OutsideNodes(
        tuple(operators),
        sum(operator.operations for operator in operators) / total,
        tuple(node_name(node) for node, count in counted.items() if count is None),
    )


def _operator(name: str, nodes: Sequence[ir.Node], counts: Sequence[int], total: int) -> Operator:
    names = tuple(node_name(node) for node in nodes[:_MOST_NAMES])
    return Operator(name, len(nodes), names, sum(counts), sum(counts) / total)


def _nodes_of(part: ProjectRegion) -> Iterable[ir.Node]:
    """The nodes between the tokens that a block takes and its output."""
    nodes: set[ir.Node] = set()
    pending = [part.output]
    while pending:
        value = pending.pop()
        node = None if value is part.tokens else value.producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            pending += [operand for operand in node.inputs if operand is not None]
    return nodes


class _ValueShapes:
    """Shapes of values, with the symbolic sizes that the model's inputs have."""

    def __init__(self, feeds: Mapping[ir.Value, Array]) -> None:
        self._named: dict[str, int] = {}
        for value, array in feeds.items():
            for dim, size in zip(value.shape or (), array.shape, strict=False):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    self._named[dim.value] = size

    def operations(self, node: ir.Node) -> int | None:
        """The operations of a node; None where a size is unknown."""
        try:
            if has_experts(node):
                return self._experts(node)
            return _COUNTS.get(node.op_type, _ValueShapes._results)(self, node)
        except _UnknownSizeError:
            return None

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        if value is None or value.shape is None:
            raise _UnknownSizeError
        return tuple(self._size(dim) for dim in value.shape)

    def _size(self, dim: int | ir.SymbolicDim) -> int:
        if isinstance(dim, int):
            return dim
        size = None if dim.value is None else dim.evaluate(self._named)
        if not isinstance(size, int):
            raise _UnknownSizeError
        return size

    def _results(self, node: ir.Node) -> int:
        return sum(
            math.prod(self.shape(output)) for output in node.outputs if output.uses() or output.is_graph_output()
        )

    def _product(self, node: ir.Node) -> int:
        transposed = node.attributes.get("transA")
        inner = self.shape(node.inputs[0])[-2 if transposed is not None and transposed.as_int() else -1]
        return 2 * inner * math.prod(self.shape(node.outputs[0]))

    def _attention(self, node: ir.Node) -> int:
        """Two products for every query and key: its score, and its weighted value."""
        return 4 * math.prod(self.shape(node.inputs[0])) * self.shape(node.inputs[1])[-2]

    def _convolution(self, node: ir.Node) -> int:
        return 2 * math.prod(self.shape(node.inputs[1])[1:]) * math.prod(self.shape(node.outputs[0]))

    def _experts(self, node: ir.Node) -> int:
        """The products of the experts that tokens choose."""
        inputs, spec = inputs_of(node), spec_of(node, ExpertsSpec)
        tokens = math.prod(self.shape(inputs["x"])[:-1])
        chosen = spec_of(node, RouteSpec).k if is_moec(node, "MoE") else self.shape(inputs["experts"])[-1]
        matrices = [inputs["up"], inputs["down"], *([inputs["gate"]] if spec.gate_layout == "separate" else [])]
        return 2 * tokens * chosen * sum(math.prod(self.shape(matrix)[1:]) for matrix in matrices)


class _UnknownSizeError(Exception):
    pass


_COUNTS = {
    "MatMul": _ValueShapes._product,
    "Gemm": _ValueShapes._product,
    "Linear": _ValueShapes._product,
    "Attention": _ValueShapes._attention,
    "Conv": _ValueShapes._convolution,
}
