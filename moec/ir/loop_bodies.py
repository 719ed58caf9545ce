"""A common view of Loop and Scan: the body as a graph by itself, and its surroundings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir.graphs import is_op, outer_values, replace_inside
from moec.ir.weights.stored import constant


@dataclasses.dataclass(frozen=True)
class Result:
    """An output of the node: a state after the last step, or the slices of all steps joined along ``axis``, with those
    of the last step first if ``is_backward``. ``kept``: a value from outside that no step changes."""

    axis: int | None = None
    is_backward: bool = False
    kept: ir.Value | None = None


@dataclasses.dataclass(frozen=True)
class LoopBody:
    """A copy of a body that reads nothing but its inputs and constants.

    ``graph`` takes the number of the step (int64), whether the loop goes on (bool), the states that steps change, and
    the values that all steps read. It returns whether the loop goes on, if it ``asks`` for that, the same states, and
    slices.
    """

    graph: ir.Graph
    asks: bool
    states: Mapping[ir.Value, ir.Value]
    """The state inputs of the graph, by the output that updates each."""
    outside: Mapping[ir.Value, ir.Value]
    """The values outside that inputs of the graph, except the first two, have before the first step."""
    trips: ir.Value | None
    going: ir.Value | None
    scanned: Sequence[tuple[ir.Value, int]]
    """Values outside, and the axes of them that have as many places as there are steps."""
    results: Sequence[Result]


def body_of(node: ir.Node) -> LoopBody:
    """Raises UnsupportedError where the node and its body do not fit each other."""
    parts = _scan_parts(node) if is_op(node, "Scan") else _loop_parts(node)
    kept = [inner for inner, after in zip(parts.carried, parts.outputs, strict=False) if _source(after) is inner]
    changed = {inner: outer for inner, outer in parts.carried.items() if inner not in kept}
    results = [Result(kept=outer if inner in kept else None) for inner, outer in parts.carried.items()]
    results += [Result(axis, is_backward) for axis, is_backward in parts.axes]
    graph, outside = parts.graph, {**changed, **_closed(parts, kept)}
    results_made = [after for result, after in zip(results, parts.outputs, strict=True) if result.kept is None]
    condition = None if parts.condition is None else _source(parts.condition)
    asks = condition is not None and condition is not parts.going and not _is_true(condition)
    graph.inputs[:] = [parts.number, parts.going, *outside]
    asked = [_scalar_output(graph, condition)] if asks and condition is not None else []
    graph.outputs[:] = [*asked, *(_output(graph, value) for value in results_made)]
    states = dict(zip(graph.outputs[int(asks) :], changed, strict=False))
    return LoopBody(graph, asks, states, outside, parts.trips, parts.start, parts.scanned, results)


@dataclasses.dataclass
class _BodyParts:
    """``carried`` and ``read``: values inside, with those outside that they are at first, or always. ``outputs``: new
    values of what is carried, and slices, to which ``axes`` belong, with whether the last step's come first."""

    graph: ir.Graph
    number: ir.Value
    going: ir.Value
    condition: ir.Value | None
    carried: dict[ir.Value, ir.Value]
    read: dict[ir.Value, ir.Value]
    outputs: list[ir.Value]
    axes: list[tuple[int, bool]]
    trips: ir.Value | None = None
    start: ir.Value | None = None
    scanned: list[tuple[ir.Value, int]] = dataclasses.field(default_factory=list)


def _loop_parts(node: ir.Node) -> _BodyParts:
    graph = _copied(node)
    _expect(len(node.inputs) >= 2 and len(graph.inputs) == len(node.inputs) and len(graph.outputs) > 0, node, graph)
    inner = graph.inputs[2:]
    number, going = _scalar_inputs(graph)
    condition, *outputs = graph.outputs
    carried = dict(zip(inner, _present(node, 2), strict=True))
    _expect(len(outputs) >= max(len(node.outputs), len(carried)), node, graph)
    axes = [(0, False)] * (len(outputs) - len(carried))
    return _BodyParts(graph, number, going, condition, carried, {}, outputs, axes, node.inputs[0], node.inputs[1])


def _scan_parts(node: ir.Node) -> _BodyParts:
    graph, count = _copied(node), node.attributes.get_int("num_scan_inputs", 0)
    outer, first = _present(node, 0), len(node.inputs) - count
    _expect(0 < count <= len(outer) == len(graph.inputs), node, graph)
    _expect(len(graph.outputs) >= max(len(node.outputs), first), node, graph)
    number, going = _value("step", ir.DataType.INT64), _value("going", ir.DataType.BOOL)
    sources = _directed(node, "scan_input", count)
    carried, read = dict(zip(graph.inputs[:first], outer[:first], strict=True)), dict[ir.Value, ir.Value]()
    backwards = ir.node("Sub", [_constant("last", np.array(-1)), number])
    slices = [backwards]
    for inner, value, (axis, is_backward) in zip(graph.inputs[first:], outer[first:], sources, strict=True):
        whole = ir.Value(name=f"{inner.name}.whole", type=value.type, shape=value.shape)
        taken = ir.node("Gather", [whole, backwards.outputs[0] if is_backward else number], {"axis": axis})
        taken.outputs[0].name, taken.outputs[0].type = f"{inner.name}.slice", value.type
        inner.replace_all_uses_with(taken.outputs[0], replace_graph_outputs=True)
        slices.append(taken)
        read[whole] = value
    _put_first(graph, slices)
    scanned = [(value, axis) for value, (axis, _) in zip(outer[first:], sources, strict=True)]
    axes = _directed(node, "scan_output", len(graph.outputs) - first)
    return _BodyParts(graph, number, going, None, carried, read, list(graph.outputs), axes, scanned=scanned)


def _scalar_inputs(graph: ir.Graph) -> list[ir.Value]:
    """The number of the step and whether the loop goes on, which the body may take with one axis, without axes."""
    sources, shaped = list[ir.Value](), list[ir.Node]()
    for value, dtype in zip(graph.inputs[:2], (ir.DataType.INT64, ir.DataType.BOOL), strict=True):
        source = _value(str(value.name), dtype)
        sources.append(source)
        if value.shape is not None and len(value.shape) == 1:
            shaped.append(ir.node("Reshape", [source, _constant(f"{value.name}.axis", np.array([1]))]))
            source = shaped[-1].outputs[0]
            source.name = f"{value.name}.shaped"
        value.replace_all_uses_with(source, replace_graph_outputs=True)
    _put_first(graph, shaped)
    return sources


def _copied(node: ir.Node) -> ir.Graph:
    return node.attributes["body"].as_graph().clone(allow_outer_scope_values=True)


def _present(node: ir.Node, first: int) -> list[ir.Value]:
    present = [value for value in node.inputs[first:] if value is not None]
    if len(present) < len(node.inputs) - first:
        raise UnsupportedError("an input that its body takes is missing; expected all of them")
    return present


def _expect(fits: bool, node: ir.Node, graph: ir.Graph) -> None:
    if not fits:
        raise UnsupportedError(
            f"its body takes {len(graph.inputs)} values and makes {len(graph.outputs)}, which does not fit its "
            f"{len(node.inputs)} inputs and {len(node.outputs)} outputs"
        )


def _directed(node: ir.Node, kind: str, count: int) -> list[tuple[int, bool]]:
    axes = list(node.attributes.get_ints(f"{kind}_axes", ()) or [0] * count)
    directions = list(node.attributes.get_ints(f"{kind}_directions", ()) or [0] * count)
    if len(axes) != count or len(directions) != count:
        raise UnsupportedError(f"{kind}_axes and {kind}_directions are {axes} and {directions}; expected {count} each")
    return [(axis, bool(direction)) for axis, direction in zip(axes, directions, strict=True)]


def _closed(parts: _BodyParts, kept: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Let the body read inputs in the place of values from outside, and constants of its own. The result is what all
    steps read: these inputs and the states that are ``kept``, with the values outside."""
    read = {**{inner: parts.carried[inner] for inner in kept}, **parts.read}
    for outer in dict.fromkeys(outer_values(parts.graph)):
        if outer not in (parts.number, parts.going, *parts.read):
            read[ir.Value(name=outer.name, type=outer.type, shape=outer.shape)] = outer
    constants = {inner: _constant_like(outer) for inner, outer in read.items() if constant(outer) is not None}
    instead = {outer: inner for inner, outer in read.items() if inner not in parts.carried and inner not in parts.read}
    instead = {outer: constants.get(inner, inner) for outer, inner in instead.items()} | constants
    replace_inside(parts.graph, instead)
    parts.outputs[:] = [instead.get(value, value) for value in parts.outputs]
    parts.condition = parts.condition and instead.get(parts.condition, parts.condition)
    return {inner: outer for inner, outer in read.items() if inner not in constants}


def _output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The value as an output of its own."""
    copy = ir.node("Identity", [value])
    copy.outputs[0].name, copy.outputs[0].type = f"{value.name}.made", value.type
    graph.append(copy)
    return copy.outputs[0]


def _scalar_output(graph: ir.Graph, condition: ir.Value) -> ir.Value:
    """The condition without axes."""
    flat = ir.node("Reshape", [condition, _constant("no_axes", np.array([], np.int64))])
    graph.append(flat)
    flat.outputs[0].name, flat.outputs[0].type = f"{condition.name}.made", condition.type
    return flat.outputs[0]


def _put_first(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    if len(graph):
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)


def _value(name: str, dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(()))


def _constant(name: str, data: np.ndarray) -> ir.Value:
    tensor = ir.tensor(data)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(data.shape), const_value=tensor)


def _constant_like(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=constant(value))


def _is_true(value: ir.Value) -> bool:
    tensor = constant(value)
    return tensor is not None and tensor.size == 1 and bool(tensor.numpy().item())


def _source(value: ir.Value) -> ir.Value:
    """The value that this is a copy of, by any number of Identity nodes."""
    producer = value.producer()
    while is_op(producer, "Identity") and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value
