"""MatMul and Gemm on a GPU: kernels of moec's own where a factor is one constant matrix, TVM's schedules for others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tvm import relax, te

from moec.targets.cuda.dense_products import bias_operand, multiply_matrix
from moec.targets.cuda.expert_matrices import as_stored
from moec.targets.cuda.kernels.dense_problem import dense_problem
from moec.targets.tvm.attributes import attribute, optional_input, required_input
from moec.targets.tvm.batches import as_batches
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import reshape, static_size, transpose
from moec.targets.tvm.selection import STORAGE_TYPES


def lower_matmul(lowering: LoweringContext, node: ir.Node, architecture: str) -> relax.Expr:
    """ONNX MatMul: numpy's ``matmul``, vectors and broadcast batches included."""
    left, right = lowering.tensor(required_input(node, 0)), required_input(node, 1)
    if not _is_matrix(lowering, right):
        return multiply(lowering, left, lowering.tensor(right))
    return _multiply_constant(lowering, node, architecture, left, right, transposed=False)


def lower_gemm(lowering: LoweringContext, node: ir.Node, architecture: str) -> relax.Expr:
    """ONNX Gemm: ``alpha * A' @ B' + beta * C``, each of A' and B' transposed or not."""
    right, transposed = required_input(node, 1), bool(attribute(node, "transB", 0))
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    left = transpose(
        lowering, lowering.tensor(required_input(node, 0)), [1, 0] if attribute(node, "transA", 0) else [0, 1]
    )
    given = optional_input(node, 2)
    if _is_matrix(lowering, right):
        width = lowering.shape(right)[0 if transposed else 1]
        if alpha == 1.0 and given is not None and _is_vector(lowering, given, static_size(width)):
            bias = bias_operand(lowering, given, int(width), beta)
            return _multiply_constant(lowering, node, architecture, left, right, transposed=transposed, bias=bias)
        result = _multiply_constant(lowering, node, architecture, left, right, transposed=transposed)
    else:
        result = multiply(lowering, left, transpose(lowering, lowering.tensor(right), [1, 0] if transposed else [0, 1]))
    result = lowering.emit(_scaled(lowering.emit(result), alpha))
    if given is None:
        return result
    return relax.op.add(
        result, lowering.broadcast_to(lowering.emit(_scaled(lowering.tensor(given), beta)), result.ty.shape)
    )


def _is_matrix(lowering: LoweringContext, value: ir.Value) -> bool:
    """Whether it is a constant matrix that moec's own kernels multiply with."""
    return len(lowering.shape(value)) == 2 and lowering.is_constant(value) and lowering.dtype(value) in STORAGE_TYPES


def _is_vector(lowering: LoweringContext, value: ir.Value, width: int | None) -> bool:
    """Whether every row gets the same ``width`` numbers of it."""
    *others, last = lowering.shape(value) or [1]
    return static_size(last) == width and all(static_size(size) == 1 for size in others)


def _multiply_constant(
    lowering: LoweringContext,
    node: ir.Node,
    architecture: str,
    left: relax.Expr,
    right: ir.Value,
    *,
    transposed: bool,
    bias: relax.Expr | None = None,
) -> relax.Expr:
    """``left[..., K] @ right + bias``; ``right`` is [K, N], or [N, K] where ``transposed``, and kept as [1, N, K]."""
    rows, columns = (int(size) for size in lowering.shape(right))
    inner, width = (columns, rows) if transposed else (rows, columns)
    dtype = str(left.ty.dtype)
    if static_size(left.ty.shape[-1]) != inner:
        left = lowering.assume_shape(left, [*list(left.ty.shape)[:-1], inner])

    def load() -> np.ndarray:
        numbers = lowering.constant(right)
        assert numbers is not None, f"{right.name} was a constant before"
        return as_stored(numbers if transposed else numbers.T, dtype)[None]

    matrix = lowering.add_weight(f"{right.name}.{'rows' if transposed else 'columns'}", (1, width, inner), dtype, load)
    problem = dense_problem(inner, width, dtype=dtype, matrix_dtype=dtype, out_dtype=dtype)
    operands = [matrix, bias_operand(lowering, None, width) if bias is None else bias]
    vector = len(left.ty.shape) == 1
    if vector:
        left = reshape(lowering, left, [1, inner])
    result = multiply_matrix(lowering, node, architecture, problem, left, operands)
    return reshape(lowering, result, [width]) if vector else result


def _scaled(tensor: relax.Expr, factor: float) -> relax.Expr:
    return tensor if factor == 1.0 else relax.op.multiply(tensor, relax.const(factor, str(tensor.ty.dtype)))


def multiply(lowering: LoweringContext, left: relax.Expr, right: relax.Expr) -> relax.Expr:
    """``left[..., M, K] @ right[..., K, N]``, with sums in float32."""
    left_shape, right_shape = list(left.ty.shape), list(right.ty.shape)
    rows, columns = left_shape[:-1][-1:], right_shape[-1:] if len(right_shape) > 1 else []
    if len(left_shape) == 1:
        left = reshape(lowering, left, [1, *left_shape])
    if len(right_shape) == 1:
        right = reshape(lowering, right, [*right_shape, 1])
    batch = lowering.broadcast_shape([left_shape[:-2], right_shape[:-2]])
    factors = [as_batches(lowering, factor, batch) for factor in (left, right)]
    result = multiply_batches(lowering, *factors)
    return reshape(lowering, result, [*batch, *rows, *columns])


def multiply_batches(lowering: LoweringContext, left: relax.Expr, right: relax.Expr) -> relax.Var:
    """``left[B|1, M, K] @ right[B|1, K, N]``. TVM's own operator wants it proved that sizes are equal."""
    dtype = str(left.ty.dtype)
    right = lowering.assume_shape(right, [right.ty.shape[0], left.ty.shape[2], right.ty.shape[2]])
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype

    def build(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        x_alone, y_alone = (static_size(factor.shape[0]) == 1 for factor in (x, y))
        inner = te.reduce_axis((0, x.shape[2]), name="inner")
        batches = y.shape[0] if x_alone else x.shape[0]
        sums = te.compute(
            (batches, x.shape[1], y.shape[2]),
            lambda b, m, n: te.sum(
                x[0 if x_alone else b, m, inner].astype(wide) * y[0 if y_alone else b, inner, n].astype(wide),
                axis=[inner],
            ),
            name="sums",
        )
        return te.compute(sums.shape, lambda *at: sums(*at).astype(dtype), name="product") if wide != dtype else sums

    return lowering.compute(build, [left, right], "matmul")[0]
