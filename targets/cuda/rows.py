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
from moec.targets.tvm.nodes import call, flatten, refuse_outputs, reshape, static_size
from moec.targets.tvm.rows import along_axis, row_parameter
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
    """Softmax over any axis."""

    def compute(matrix: relax.Expr) -> relax.Expr:
        dtype = str(matrix.ty.dtype)
        layout = RowLayout(static_size(matrix.ty.shape[1]), dtype)
        chosen = select(SOFTMAX, layout, architecture)
        return call(lowering, node, softmax(layout), [matrix], matrix.ty.shape, dtype, chosen, size=layout.size)

    return along_axis(lowering, node, compute)


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
    parameters = [row_parameter(lowering, value, shape[axis:]) for value in given]
    types = [str(parameter.ty.dtype) for parameter in parameters]
    kernel = normalize(layout, epsilon, kernels is LAYER_NORM, *types)
    facts = {"size": layout.size, "epsilon": epsilon}
    result = call(lowering, node, kernel, [matrix, *parameters], matrix.ty.shape, dtype, chosen, **facts)
    return reshape(lowering, result, shape)
