"""The nodes that take a minimum for every group off a decoded weight: ``Sub (decoded, Gather (minima, groups))``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import add_constant


def less_minima(
    graph: ir.Graph, before: ir.Node | None, decoded: ir.Value, minimum: ir.Value, axis: int, group: int
) -> ir.Value:
    """The weight ``decoded`` (:func:`moec.ir.weights.stored.decoding_node`) less the minimum [.., groups, ..] of each
    group of inputs along ``axis``; the nodes go in front of ``before``, or to the end of the graph."""
    assert decoded.shape is not None and decoded.dtype is not None
    size, axis = int(decoded.shape.numpy()[axis]), axis % decoded.shape.rank()
    label = f"{decoded.name}.groups"
    groups = add_constant(graph, ir.tensor(np.arange(size, dtype=np.int64) // group), label)
    nodes = []
    if minimum.dtype != decoded.dtype:
        nodes.append(ir.node("Cast", [minimum], {"to": int(decoded.dtype)}))
        nodes[-1].outputs[0].name = f"{decoded.name}.minima"
        nodes[-1].outputs[0].dtype, nodes[-1].outputs[0].shape = decoded.dtype, minimum.shape
        minimum = nodes[-1].outputs[0]
    nodes.append(ir.node("Gather", [minimum, groups], {"axis": axis}))
    nodes.append(ir.node("Sub", [decoded, nodes[-1].outputs[0]]))
    for node, what in zip(nodes[-2:], ("minimum", "less_minimum"), strict=True):
        node.outputs[0].name = f"{decoded.name}.{what}"
        node.outputs[0].dtype, node.outputs[0].shape = decoded.dtype, decoded.shape
    graph.extend(nodes) if before is None else graph.insert_before(before, nodes)
    return nodes[-1].outputs[0]
