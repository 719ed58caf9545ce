"""Small graphs whose values are known in each of several runs, with other sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .outcomes import Array, Case

OPSET = 21


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A tensor with its contents in each run. ``shape`` is how a graph that takes it as an input declares it.

    ``exact``: no rounding has touched it.
    """

    name: str
    arrays: list[Array]
    shape: Sequence[int | str]
    exact: bool = True

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.arrays[0].dtype

    @property
    def rank(self) -> int:
        return self.arrays[0].ndim


@dataclasses.dataclass(frozen=True, eq=False)
class Constant(Value):
    """The same in every run."""


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A node; None for an input that is left out."""

    op_type: str
    inputs: Sequence[Value | None]
    outputs: Sequence[Value]
    attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Graph:
    """Operations in order. Values that are neither constants nor computed are inputs."""

    operations: Sequence[Operation]
    outputs: Sequence[Value]
    runs: Sequence[int]
    """Which of the runs that values are known in are made."""

    def without_unused(self) -> Graph:
        used, kept = set(self.outputs), []
        for operation in reversed(self.operations):
            if used & set(operation.outputs):
                kept.append(operation)
                used |= {value for value in operation.inputs if value is not None}
        return dataclasses.replace(self, operations=kept[::-1])

    def inputs(self) -> list[Value]:
        computed = {value for operation in self.operations for value in operation.outputs}
        used = dict.fromkeys(value for operation in self.operations for value in operation.inputs if value is not None)
        return [value for value in used if not isinstance(value, Constant) and value not in computed]


def joined(graphs: Sequence[Graph]) -> Graph:
    """Graphs of the same runs and with different names side by side."""
    operations = [operation for graph in graphs for operation in graph.operations]
    return Graph(operations, [value for graph in graphs for value in graph.outputs], graphs[0].runs)


def case_of(graph: Graph, tolerance: float = 1e-4) -> Case:
    inputs = graph.inputs()
    feeds = [{value.name: value.arrays[run] for value in inputs} for run in graph.runs]
    return Case(model_of(graph.operations, inputs, graph.outputs), feeds, tolerance)


def model_of(operations: Sequence[Operation], inputs: Sequence[Value], outputs: Sequence[Value]) -> onnx.ModelProto:
    constants = dict.fromkeys(
        value for operation in operations for value in operation.inputs if isinstance(value, Constant)
    )
    graph = helper.make_graph(
        [_node(operation) for operation in operations],
        "random",
        [_declared(value, value.shape) for value in inputs],
        [_declared(value, None) for value in outputs],
        [numpy_helper.from_array(value.arrays[0], value.name) for value in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _node(operation: Operation) -> onnx.NodeProto:
    names = ["" if value is None else value.name for value in operation.inputs]
    while names and not names[-1]:
        names.pop()
    return helper.make_node(
        operation.op_type, names, [output.name for output in operation.outputs], **operation.attributes
    )


def _declared(value: Value, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)


def shrunk(graph: Graph, fails: Any) -> Graph:
    """A graph that fails too, which has no output, node or run to spare. ``fails`` takes a graph."""
    for smaller in _smaller(graph):
        if fails(smaller):
            return shrunk(smaller, fails)
    return graph


def _smaller(graph: Graph) -> list[Graph]:
    results = []
    if len(graph.outputs) > 1:
        results += [dataclasses.replace(graph, outputs=[output]).without_unused() for output in graph.outputs]
    if len(graph.operations) > 1:
        for operation in graph.operations:
            results += [_fed(graph, operation), _ending(graph, operation)]
    if len(graph.runs) > 1:
        results += [dataclasses.replace(graph, runs=[run]) for run in graph.runs]
    return [smaller for smaller in results if smaller.operations]


def _fed(graph: Graph, operation: Operation) -> Graph:
    """Replace the operation's results by inputs."""
    operations = [one for one in graph.operations if one is not operation]
    outputs = [value for value in graph.outputs if value not in operation.outputs]
    return dataclasses.replace(graph, operations=operations, outputs=outputs).without_unused()


def _ending(graph: Graph, operation: Operation) -> Graph:
    """Cut the graph after the operation; if it is the last one, return the graph without it."""
    if set(operation.outputs) & set(graph.outputs):
        return _fed(graph, operation)
    return dataclasses.replace(graph, outputs=list(operation.outputs)).without_unused()
