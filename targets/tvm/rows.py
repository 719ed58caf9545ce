"""Operators over rows, for any target: tensors become matrices whose rows a kernel takes one by one, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from tvm import relax

from moec.targets.tvm.attributes import attribute, required_input
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import flatten, product, reshape, transpose


def along_axis(lowering: LoweringContext, node: ir.Node, compute: Callable[[relax.Expr], relax.Expr]) -> relax.Expr:
    """``compute`` of the matrix [M, N] whose rows run along the node's axis: that is brought to the end and back."""
    x = lowering.tensor(required_input(node, 0))
    rank = len(x.ty.shape)
    axis = attribute(node, "axis", -1) % rank
    to_end = [*(other for other in range(rank) if other != axis), axis]
    moved = transpose(lowering, x, to_end)
    result = compute(flatten(lowering, moved, rank - 1))
    result = reshape(lowering, result, moved.ty.shape)
    return transpose(lowering, result, [to_end.index(position) for position in range(rank)])


def row_parameter(lowering: LoweringContext, value: ir.Value, shape: Sequence[Any]) -> relax.Expr:
    """A scale or bias as one vector over axes of these sizes."""
    tensor = lowering.tensor(value)
    tensor = lowering.broadcast_to(tensor, shape)
    return tensor if len(shape) == 1 else reshape(lowering, tensor, [product(shape)])
