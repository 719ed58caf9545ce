"""Operators that work on rows, on a GPU: Softmax, LayerNormalization, RMSNormalization."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax

from moec.targets.base import Eligibility
from moec.targets.cuda.kernels import row_share
from moec.targets.cuda.kernels.normalization import normalize
from moec.targets.cuda.kernels.row_share import RowLayout
from moec.targets.cuda.kernels.softmax import softmax
from moec.targets.tvm.attributes import attribute, optional_input, required_input
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import call, flatten, product, refuse_outputs, reshape, static_size, transpose
from moec.targets.tvm.selection import Kernel, select


def _row_by_row(layout: RowLayout, architecture: str) -> Eligibility:
    reason = row_share.why_not(layout.dtype)
    if reason is not None:
        return Eligibility(False, reason)
    threads = "a warp" if layout.warps == 1 else f"a block of {layout.threads} threads"
    return Eligibility(True, f"{threads} per row; float32 sums in a fixed order")


SOFTMAX = (Kernel("softmax", "y[M, N] = exp(x - max(x)) / sum(exp(x - max(x))) along N", _row_by_row),)
RMS_NORM = (Kernel("rms_norm", "y[M, N] = x / sqrt(mean(x^2) + epsilon) * scale[N] along N", _row_by_row),)
LAYER_NORM = (
    Kernel("layer_norm", "y[M, N] = (x - mean) / sqrt(variance + epsilon) * scale[N] + bias[N] along N", _row_by_row),
)


def lower_softmax(lowering: LoweringContext, node: ir.Node, architecture: str) -> relax.Expr:
    """Softmax over any axis: the axis is brought to the end and back."""
    x = lowering.tensor(required_input(node, 0))
    rank, dtype = len(x.ty.shape), str(x.ty.dtype)
    axis = attribute(node, "axis", -1) % rank
    to_end = [*(other for other in range(rank) if other != axis), axis]
    moved = transpose(lowering, x, to_end)
    matrix = flatten(lowering, moved, rank - 1)
    layout = RowLayout(static_size(matrix.ty.shape[1]), dtype)
    chosen = select(SOFTMAX, layout, architecture)
    result = call(lowering, node, softmax(layout), [matrix], matrix.ty.shape, dtype, chosen, size=layout.size)
    result = reshape(lowering, result, moved.ty.shape)
    return transpose(lowering, result, [to_end.index(position) for position in range(rank)])


def lower_rms_norm(lowering: LoweringContext, node: ir.Node, architecture: str) -> relax.Expr:
    """Opset 23 RMSNormalization; sums are float32 whatever ``stash_type`` says."""
    return _normalize(lowering, node, architecture, RMS_NORM, None)


def lower_layer_norm(lowering: LoweringContext, node: ir.Node, architecture: str) -> relax.Expr:
    """Opset 17 LayerNormalization; sums are float32 whatever ``stash_type`` says. Only the first output is computed."""
    refuse_outputs(node, 1)
    return _normalize(lowering, node, architecture, LAYER_NORM, optional_input(node, 2))


def _normalize(
    lowering: LoweringContext, node: ir.Node, architecture: str, kernels: Sequence[Kernel], bias: ir.Value | None
) -> relax.Expr:
    x = lowering.tensor(required_input(node, 0))
    shape, dtype = list(x.ty.shape), str(x.ty.dtype)
    axis = attribute(node, "axis", -1) % len(shape)
    matrix = flatten(lowering, x, axis)
    layout = RowLayout(static_size(matrix.ty.shape[1]), dtype)
    chosen = select(kernels, layout, architecture)
    epsilon = float(attribute(node, "epsilon", 1e-5))
    given = [required_input(node, 1)] if bias is None else [required_input(node, 1), bias]
    parameters = [_parameter(lowering, value, shape[axis:]) for value in given]
    types = [str(parameter.ty.dtype) for parameter in parameters]
    kernel = normalize(layout, epsilon, kernels is LAYER_NORM, *types)
    facts = {"size": layout.size, "epsilon": epsilon}
    result = call(lowering, node, kernel, [matrix, *parameters], matrix.ty.shape, dtype, chosen, **facts)
    return reshape(lowering, result, shape)


def _parameter(lowering: LoweringContext, value: ir.Value, shape: Sequence[relax.Expr]) -> relax.Expr:
    """A scale or bias as one vector over the normalised axes."""
    tensor = lowering.tensor(value)
    own = list(tensor.ty.shape)
    same = len(own) == len(shape) and all(static_size(a) == static_size(b) for a, b in zip(own, shape, strict=True))
    if not same:
        tensor = lowering.emit(relax.op.broadcast_to(tensor, list(shape)))
    return tensor if len(shape) == 1 else reshape(lowering, tensor, [product(shape)])
