"""The check that all operators of a graph can be compiled, before any is."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name, operator_name
from moec.ir.dialect import REFUSAL_KEY
from moec.ir.opsets import later_attributes
from moec.ir.weight_operands import decoding_nodes


def refuse_unknown_operators(model: ir.Model, operators: Collection[str]) -> None:
    """Raises UnsupportedError that lists them, where the graph has nodes of other operators than ``operators``."""
    decoding = decoding_nodes(model.graph)
    unknown = [
        node
        for node in model.graph
        if (operator_name(node) not in operators or later_attributes(node)) and node not in decoding
    ]
    if not unknown:
        return
    first: dict[str, ir.Node] = {}
    for node in unknown:
        first.setdefault(operator_name(node), node)
    imports = model.graph.opset_imports
    listed = ", ".join(
        f"{node.op_type} (domain {node.domain or 'ai.onnx'!r}, opset {imports.get(node.domain, '?')}, "
        f"first at node {node_name(node)!r}{_reason(node)})"
        for node in first.values()
    )
    raise UnsupportedError(
        f"{len(unknown)} node(s) use operators that cannot be compiled: {listed}; "
        "expected operators of the default domain or moec; rewrite these parts of the model before compiling"
    )


def _reason(node: ir.Node) -> str:
    """Why an earlier pass left the node as it is, where it said so."""
    reason = node.metadata_props.get(REFUSAL_KEY)
    return f": {reason}" if reason else ""
