"""Helpers of the converters of heavy operators: reshape tensors, and call a selected kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax

from moec.common.errors import UnsupportedError
from moec.common.names import node_name, operator_name
from moec.targets.base import KernelRecord
from moec.targets.tvm.kernels.kernel import KernelCall
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.sizes.shapes import product, reshaped


def refuse_outputs(node: ir.Node, first: int) -> None:
    """Raises UnsupportedError if an optional output from position ``first`` on is used."""
    for output in node.outputs[first:]:
        if output.uses() or output.is_graph_output():
            raise UnsupportedError(f"optional output {output.name!r} is not computed; remove its uses")


def reshape(lowering: LoweringContext, tensor: relax.Expr, shape: Sequence[Any]) -> relax.Var:
    return lowering.emit(reshaped(tensor, shape))


def transpose(lowering: LoweringContext, tensor: relax.Expr, order: Sequence[int]) -> relax.Expr:
    """The tensor with its axes in the given order; the tensor itself if that is its own order, and the tensor that it
    was transposed from if that is the order of the other."""
    if list(order) == list(range(len(order))):
        return tensor
    source = transposed_from(lowering, tensor, order)
    return lowering.emit(relax.op.permute_dims(tensor, list(order))) if source is None else source


def transposed_from(lowering: LoweringContext, tensor: relax.Expr, order: Sequence[int]) -> relax.Expr | None:
    """The tensor of which ``tensor`` is a transposition that ``order`` undoes; None if there is none."""
    bound = lowering.bound_to(tensor)
    if not isinstance(bound, relax.Call) or bound.op != tvm.ir.Op.get("relax.permute_dims"):
        return None
    axes = [int(axis) for axis in bound.attrs.axes]
    return bound.args[0] if [axes[axis] for axis in order] == list(range(len(order))) else None


def flatten(lowering: LoweringContext, tensor: relax.Expr, axis: int) -> relax.Var:
    """The tensor as a matrix: axes before ``axis`` are the rows, the others the columns."""
    shape = list(tensor.ty.shape)
    return reshape(lowering, tensor, [product(shape[:axis]), product(shape[axis:])])


def call(
    lowering: LoweringContext,
    node: ir.Node,
    called: KernelCall,
    shape: Sequence[Any],
    dtype: str,
) -> relax.Var:
    """Call a kernel with one output and record why it was chosen."""
    output = relax.TensorType(list(shape), dtype)
    return lowering.call_kernel(called.function, called.arguments, [output], record_of(node, called))[0]


def record_of(node: ir.Node, called: KernelCall, prefix: str = "") -> KernelRecord:
    """Record of the artifact about a kernel that a node calls; ``prefix`` goes before the symbol's name."""
    kernel = called.chosen.kernel
    return KernelRecord(
        prefix + kernel.name,
        operator_name(node),
        [node_name(node)],
        called.chosen.candidates,
        called.attributes,
        computes=kernel.computes,
        description=kernel.description,
        crossovers=called.crossovers,
        requirements=called.requires,
        work=called.work,
        sized_work=called.sized_work,
    )
