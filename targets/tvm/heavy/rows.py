"""Operators over rows, on any target: Softmax, LayerNormalization, RMSNormalization.

The operand is reshaped to a matrix, a kernel computes its rows, and the result gets the operand's shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from tvm import relax

from moec.common.names import operator_name
from moec.targets.tvm.kernels.kernel import Kernel, KernelCall, select
from moec.targets.tvm.lowering.attributes import attribute, optional_input, required_input
from moec.targets.tvm.lowering.context import HeavyConverter, LoweringContext
from moec.targets.tvm.lowering.nodes import call, flatten, refuse_outputs, reshape, transpose
from moec.targets.tvm.sizes.shapes import product, static_size


@dataclasses.dataclass(frozen=True)
class RowProblem:
    """Rows of ``size`` elements of type ``dtype``; None where the size is dynamic.

    For normalisations there are ``epsilon`` and ``parameters``: the types of the scale and, if there is one, the
    bias."""

    size: int | None
    dtype: str
    epsilon: float = 0.0
    parameters: tuple[str, ...] = ()


SOFTMAX_FORMULA = "y[M, N] = exp(x - max(x)) / sum(exp(x - max(x))) along N"
RMS_NORM_FORMULA = "y[M, N] = x / sqrt(mean(x^2) + epsilon) * scale[N] along N"
LAYER_NORM_FORMULA = "y[M, N] = (x - mean) / sqrt(variance + epsilon) * scale[N] + bias[N] along N"


@dataclasses.dataclass(frozen=True)
class RowOps:
    """Converters that use a target's kernels for ``machine``. A kernel's ``build(problem, machine)`` takes x[M, N], the
    parameters [N] and y[M, N]. ``needs_bias``: layer norm takes a bias also where the node has none; ``adds_bias``: RMS
    norm takes one, which the only reader of its result adds."""

    machine: Any
    softmax: Kernel
    rms_norm: Kernel
    layer_norm: Kernel
    needs_bias: bool = False
    adds_bias: bool = False

    def converters(self) -> Mapping[str, HeavyConverter]:
        return {
            "LayerNormalization": self._lower_layer_norm,
            "RMSNormalization": self._lower_rms_norm,
            "Softmax": self._lower_softmax,
        }

    def _lower_softmax(self, lowering: LoweringContext, node: ir.Node) -> relax.Expr:
        """Softmax over any axis."""
        return along_axis(lowering, node, lambda matrix: self._call(lowering, node, self.softmax, matrix))

    def _lower_rms_norm(self, lowering: LoweringContext, node: ir.Node) -> relax.Expr:
        """Opset 23 RMSNormalization; sums are float32 whatever ``stash_type`` says."""
        added = _added_vector(lowering, node) if self.adds_bias else None
        if added is not None and lowering.leave_out(added[0], node.outputs[0]):
            return self._normalize(lowering, node, self.rms_norm, [required_input(node, 1), added[1]])
        return self._normalize(lowering, node, self.rms_norm, [required_input(node, 1)])

    def _lower_layer_norm(self, lowering: LoweringContext, node: ir.Node) -> relax.Expr:
        """Opset 17 LayerNormalization; sums are float32 whatever ``stash_type`` says. Only the first output is
        computed."""
        refuse_outputs(node, 1)
        scale, bias = required_input(node, 1), optional_input(node, 2)
        return self._normalize(
            lowering, node, self.layer_norm, [scale] if bias is None and not self.needs_bias else [scale, bias]
        )

    def _normalize(
        self, lowering: LoweringContext, node: ir.Node, kernel: Kernel, values: Sequence[ir.Value | None]
    ) -> relax.Expr:
        x = lowering.tensor(required_input(node, 0))
        shape, dtype = list(x.ty.shape), str(x.ty.dtype)
        axis = attribute(node, "axis", -1) % len(shape)
        matrix = flatten(lowering, x, axis)
        epsilon = float(attribute(node, "epsilon", 1e-5))
        tensors = [None if value is None else lowering.tensor(value) for value in values]
        if not any(tensor is not None and _differs_by_row(lowering, tensor, shape, axis) for tensor in tensors):
            parameters = [_row_parameter(lowering, value, shape[axis:], dtype) for value in values]
            return reshape(lowering, self._call(lowering, node, kernel, matrix, parameters, epsilon), shape)
        size = [product(shape[axis:])]  # scales differ by row: normalise with neutral ones, then apply them
        neutral = [lowering.emit(relax.op.ones(size, dtype)), lowering.emit(relax.op.zeros(size, dtype))]
        result = self._call(lowering, node, kernel, matrix, neutral[: len(values)], epsilon)
        result = reshape(lowering, result, shape)
        for apply, tensor in zip((relax.op.multiply, relax.op.add), tensors, strict=False):
            if tensor is not None:
                result = lowering.emit(apply(result, lowering.broadcast_to(tensor, shape)))
        return result

    def _call(
        self,
        lowering: LoweringContext,
        node: ir.Node,
        kernel: Kernel,
        matrix: relax.Expr,
        parameters: Sequence[relax.Expr] = (),
        epsilon: float = 0.0,
    ) -> relax.Expr:
        dtype = str(matrix.ty.dtype)
        types = tuple(str(parameter.ty.dtype) for parameter in parameters)
        problem = RowProblem(static_size(matrix.ty.shape[1]), dtype, epsilon, types)
        chosen = select((kernel,), problem, self.machine)
        facts = {"size": problem.size, **({"epsilon": epsilon} if parameters else {})}
        called = KernelCall(chosen, kernel.build(problem, self.machine), [matrix, *parameters], facts)
        return call(lowering, node, called, matrix.ty.shape, dtype)


def along_axis(lowering: LoweringContext, node: ir.Node, compute: Callable[[relax.Expr], relax.Expr]) -> relax.Expr:
    """Apply ``compute`` to the matrix [M, N] whose rows run along the node's axis; this moves to the end and back."""
    x = lowering.tensor(required_input(node, 0))
    rank = len(x.ty.shape)
    axis = attribute(node, "axis", -1) % rank
    to_end = [*(other for other in range(rank) if other != axis), axis]
    moved = transpose(lowering, x, to_end)
    result = compute(flatten(lowering, moved, rank - 1))
    result = reshape(lowering, result, moved.ty.shape)
    return transpose(lowering, result, [to_end.index(position) for position in range(rank)])


def _added_vector(lowering: LoweringContext, node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads a normalisation along the last axis, and the constant vector that it adds to each
    row."""
    result, users = node.outputs[0], list(node.outputs[0].uses())
    if len(users) != 1 or result.is_graph_output() or operator_name(users[0].node) != "Add":
        return None
    addend = required_input(users[0].node, 1 - users[0].idx)
    shape, sizes = lowering.shape(required_input(node, 0)), lowering.shape(addend)
    is_vector = len(sizes) == 1 and lowering.sizes.equal(sizes[0], shape[-1]) and lowering.is_constant(addend)
    same = addend.dtype == result.dtype and attribute(node, "axis", -1) in (-1, len(shape) - 1)
    return (users[0].node, addend) if is_vector and same else None


def _differs_by_row(lowering: LoweringContext, tensor: relax.Expr, shape: Sequence[Any], axis: int) -> bool:
    """Whether a scale or bias differs by row: it broadcasts to ``shape`` and has more axes than are normalised."""
    sizes = list(tensor.ty.shape)
    own = list(shape)[len(shape) - len(sizes) :]
    fits = (
        lowering.sizes.equal(size, 1) or lowering.sizes.equal(size, own_size)
        for size, own_size in zip(sizes, own, strict=False)
    )
    return len(shape) - axis < len(sizes) <= len(shape) and all(fits)


def _row_parameter(lowering: LoweringContext, value: ir.Value | None, shape: Sequence[Any], dtype: str) -> relax.Expr:
    """A scale or bias as one vector over axes of these sizes; zeros of ``dtype`` where there is none."""
    if value is None:
        return lowering.emit(relax.op.zeros([product(shape)], dtype))
    tensor = lowering.broadcast_to(lowering.tensor(value), shape)
    return tensor if len(shape) == 1 else reshape(lowering, tensor, [product(shape)])
