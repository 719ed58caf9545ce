"""Operators that work on rows: Softmax, LayerNormalization, RMSNormalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from tvm import relax

from moec.targets.base import Eligibility
from moec.targets.cpu.kernels.normalization import layer_norm, rms_norm
from moec.targets.cpu.kernels.softmax import softmax
from moec.targets.cpu.machine import Machine
from moec.targets.tvm.attributes import attribute, optional_input, required_input
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import call, flatten, product, refuse_outputs, reshape
from moec.targets.tvm.rows import along_axis, row_parameter
from moec.targets.tvm.selection import Kernel, Selection, by_storage, select


def _row_by_row(dtype: str, machine: Machine) -> Eligibility:
    return by_storage(dtype, f"rows dealt to the threads, {2 * machine.lanes} columns at a time ({machine.name})")


SOFTMAX = (Kernel("softmax", "y[M, N] = exp(x - max(x)) / sum(exp(x - max(x))) along N", _row_by_row),)
RMS_NORM = (Kernel("rms_norm", "y[M, N] = x / sqrt(mean(x^2) + epsilon) * scale[N] along N", _row_by_row),)
LAYER_NORM = (
    Kernel("layer_norm", "y[M, N] = (x - mean) / sqrt(variance + epsilon) * scale[N] + bias[N] along N", _row_by_row),
)


def lower_softmax(lowering: LoweringContext, node: ir.Node, machine: Machine) -> relax.Expr:
    """Softmax over any axis."""

    def compute(matrix: relax.Expr) -> relax.Expr:
        dtype = str(matrix.ty.dtype)
        chosen = select(SOFTMAX, dtype, machine)
        return call(lowering, node, softmax(machine, dtype), [matrix], matrix.ty.shape, dtype, chosen)

    return along_axis(lowering, node, compute)


def lower_rms_norm(lowering: LoweringContext, node: ir.Node, machine: Machine) -> relax.Expr:
    """Opset 23 RMSNormalization; sums are float32 whatever ``stash_type`` says."""
    epsilon = float(attribute(node, "epsilon", 1e-5))
    x = lowering.tensor(required_input(node, 0))
    dtype = str(x.ty.dtype)
    chosen = select(RMS_NORM, dtype, machine)
    kernel = rms_norm(epsilon, machine, dtype)
    return _normalize(lowering, node, kernel, [required_input(node, 1)], chosen)


def lower_layer_norm(lowering: LoweringContext, node: ir.Node, machine: Machine) -> relax.Expr:
    """Opset 17 LayerNormalization; sums are float32 whatever ``stash_type`` says. Only the first output is computed."""
    refuse_outputs(node, 1)
    epsilon = float(attribute(node, "epsilon", 1e-5))
    dtype = lowering.dtype(required_input(node, 0))
    chosen = select(LAYER_NORM, dtype, machine)
    bias = optional_input(node, 2)
    return _normalize(lowering, node, layer_norm(epsilon, machine, dtype), [required_input(node, 1), bias], chosen)


def _normalize(
    lowering: LoweringContext,
    node: ir.Node,
    kernel: Any,
    parameters: Sequence[ir.Value | None],
    chosen: Selection,
) -> relax.Expr:
    x = lowering.tensor(required_input(node, 0))
    shape, dtype = list(x.ty.shape), str(x.ty.dtype)
    axis = attribute(node, "axis", -1) % len(shape)
    matrix = flatten(lowering, x, axis)
    arguments = [_parameter(lowering, value, shape[axis:], dtype) for value in parameters]
    result = call(lowering, node, kernel, [matrix, *arguments], matrix.ty.shape, dtype, chosen, axis=axis)
    return reshape(lowering, result, shape)


def _parameter(lowering: LoweringContext, value: ir.Value | None, shape: Sequence[Any], dtype: str) -> relax.Expr:
    """A scale or bias as one vector over the normalised axes; zeros if absent."""
    if value is None:
        return lowering.emit(relax.op.zeros([product(shape)], dtype))
    return row_parameter(lowering, value, shape)
