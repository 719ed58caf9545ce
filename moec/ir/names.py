"""How messages and records call nodes and operators."""

from __future__ import annotations

import onnx_ir as ir


def node_name(node: ir.Node) -> str:
    """The node's name; where it has none that of its first output, or else its operator's type."""
    return node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type


def operator_name(node: ir.Node) -> str:
    """``MatMul`` in the default domain, ``moec.Route`` in another."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
