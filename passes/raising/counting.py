"""Nodes in which how many tokens there are, or which place one has, becomes a number."""

from __future__ import annotations

import onnx_ir as ir

from moec.passes.raising.dataflow import DataFlow


def counts(node: ir.Node) -> bool:
    """Whether a node numbers things, or makes a float of an integer."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    return node.op_type in ("CumSum", "Range", "Size", "Trilu") or (
        source is not None
        and source.dtype is not None
        and source.dtype.is_integer()
        and ir.DataType(node.attributes.get_int("to", 1)).is_floating_point()
    )


def reduces_tokens(dataflow: DataFlow, node: ir.Node) -> bool:
    """Whether a reduction goes over another axis than the last."""
    if not node.op_type.startswith("Reduce"):
        return False
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axes is None or shape is None or not dataflow.constant(axes):
        return True
    return any(int(axis) % len(shape) != len(shape) - 1 for axis in dataflow.array(axes).ravel())
