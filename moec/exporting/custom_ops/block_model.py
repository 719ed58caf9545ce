"""A MoE block as a model of its own: from the rows and logits, or from the rows and their weighted experts, to rows."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.expert_ids import routing_of

_ROWS = "tokens"
_PASSES = (
    "fuse-route-dispatch,infer-shapes,fold-constants,fold-shapes,simplify,eliminate-common-subexpressions,"
    "remove-dead-nodes,infer-shapes"
)


@dataclasses.dataclass(frozen=True)
class BlockModel:
    """A block as a model. ``inputs`` are the values of the whole model that it takes, in order."""

    model: ir.Model
    inputs: tuple[ir.Value, ...]


def block_model(graph: ir.Graph, node: ir.Node) -> BlockModel:
    """Copy the block of a ``moec.Experts`` or ``moec.MoE`` node, with its router where it has one, and with all that is
    computed from constants. Its names say nothing of the model, so that equal blocks are equal models. Raises
    UnsupportedError for another form of block, and for one that takes more than rows and their routing."""
    from moec.passes import pipeline

    if node.graph is not graph:
        raise UnsupportedError("it is inside a loop or a branch")
    if dialect.is_moec(node, "Dispatch"):
        raise UnsupportedError("its experts are a graph over dispatched rows")
    inputs = _inputs_of(node)
    for value in (*inputs, node.outputs[0]):
        if value.dtype is None or value.shape is None:
            raise UnsupportedError(f"type and shape of {value.name} are not known")
    try:
        copy = ir.convenience.extract(graph, list(inputs), [node.outputs[0]])
    except ValueError as error:
        raise UnsupportedError("its weights are computed from values that are not constant") from error
    _rename(copy)
    model = ir.Model(copy, ir_version=10)
    pipeline.run(model, pipeline.parse(_PASSES))
    return BlockModel(model, inputs)


def _inputs_of(node: ir.Node) -> tuple[ir.Value, ...]:
    """The rows, and the logits of the router, or the weights and ids where there is no router."""
    operands = dialect.inputs_of(node)
    try:
        route = routing_of(node).route
        values = (operands["x"], dialect.inputs_of(route)["logits"])
    except UnsupportedError:
        values = (operands["x"], operands["weights"], operands["experts"])
    return tuple(dict.fromkeys(value for value in values if value is not None))


def _rename(graph: ir.Graph) -> None:
    """Name values and nodes by their order, and the number of rows ``tokens`` where it is no constant."""
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None, "block_model asks for it"
        rows, *others = value.shape
        value.shape = ir.Shape([rows if isinstance(rows, int) else _ROWS, *others])
    read = dict.fromkeys(value for node in graph for value in node.inputs if value is not None)
    constants = [value for value in read if value.is_initializer()]
    computed = [output for node in graph for output in node.outputs if output not in graph.outputs]
    for prefix, values in (("in", graph.inputs), ("out", graph.outputs), ("w", constants), ("v", computed)):
        for number, value in enumerate(values):
            value.name = f"{prefix}{number}"
            if prefix == "v":
                value.shape = None
    for number, node in enumerate(graph):
        node.name = f"n{number}"
        node.metadata_props.clear()
    graph.initializers.clear()
    for value in constants:
        graph.initializers.add(value)
    graph.name = "block"
