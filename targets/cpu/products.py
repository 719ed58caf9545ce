"""Matrix products: MatMul, Gemm, and what other operators reduce to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.errors import UnsupportedError
from moec.ir.weights.encode import Encoded
from moec.targets.base import Eligibility
from moec.targets.cpu.grouped_product import product_attributes, quantized_rows
from moec.targets.cpu.kernels.batched_matmul import batched_matmul
from moec.targets.cpu.kernels.convert_rows import convert_rows
from moec.targets.cpu.kernels.gather import SPARE_ROWS, row_width
from moec.targets.cpu.kernels.gemm import Epilogue, gemm
from moec.targets.cpu.kernels.grouped_gemm import GroupedProblem
from moec.targets.cpu.kernels.stored import TiledFormat
from moec.targets.cpu.machine import Machine, tile_of
from moec.targets.cpu.stored_weights import Parts, add_weights
from moec.targets.tvm.attributes import attribute, optional_input, required_input
from moec.targets.tvm.batches import as_batches
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import call, flatten, record_of, reshape, static_size, transpose
from moec.targets.tvm.selection import STORAGE_TYPES, Kernel, by_storage, select


@dataclasses.dataclass(frozen=True)
class MatmulProblem:
    """``packed``: sizes and format of the right factor where it is one constant matrix."""

    dtype: str
    packed: GroupedProblem | None = None


def _packed(problem: MatmulProblem, machine: Machine) -> Eligibility:
    if problem.packed is None:
        return Eligibility(False, "the right factor is not a constant matrix, so it cannot be packed ahead")
    return by_storage(problem.dtype, f"constant weight packed ahead; {problem.packed.multiplications[0].how}")


def _batched(problem: MatmulProblem, machine: Machine) -> Eligibility:
    how = f"copies its columns of the right factor into a panel in every call; {tile_of(machine)}"
    return by_storage(problem.dtype, how)


def _convert(dtype: str, machine: Machine) -> Eligibility:
    return by_storage(dtype, "one pass over the rows", sums=False)


CONVERT = (Kernel("convert_rows", "rows[M, K] in another type, zero filled", _convert),)
KERNELS = (
    Kernel("gemm", "y[M, N] = x[M, K] @ weight[K, N] + bias[N]", _packed),
    Kernel("batched_matmul", "y[B, M, N] = a[B, M, K] @ b[B, K, N]", _batched),
)


@dataclasses.dataclass(frozen=True)
class ConstantMatrix:
    """A constant [K, N] that a product packs: ``load`` makes it, ``name`` identifies value and layout."""

    name: str
    inner: int
    columns: int
    load: Callable[[], np.ndarray]


def multiply_constant(
    lowering: LoweringContext,
    node: ir.Node,
    machine: Machine,
    left: relax.Expr,
    right: ConstantMatrix,
    bias: relax.Expr | None = None,
) -> relax.Var:
    """``left[M, K] @ right + bias`` with the weight packed at compile time."""
    dtype = str(left.ty.dtype)
    if dtype not in STORAGE_TYPES:
        raise UnsupportedError(f"no CPU kernel multiplies {dtype}; expected {', '.join(STORAGE_TYPES)}")
    problem = GroupedProblem(1, right.inner, right.columns, False, machine, (TiledFormat(dtype),))
    return multiply_packed(lowering, node, problem, left, right.name, lambda _: [Encoded(right.load())], bias)


def multiply_packed(
    lowering: LoweringContext,
    node: ir.Node,
    problem: GroupedProblem,
    left: relax.Expr,
    name: str,
    parts: Parts,
    bias: relax.Expr | None = None,
    epilogue: Epilogue = lambda total: total,
    **attributes: Any,
) -> relax.Var:
    """``epilogue(left[M, K] @ weight + bias)``; ``name`` identifies the weight, ``parts`` makes what is stored."""
    dtype, rows = str(left.ty.dtype), left.ty.shape[0]
    if problem.width == 0:  # there is nothing to pack
        return lowering.emit(relax.op.zeros([rows, 0], dtype))
    if static_size(left.ty.shape[1]) != problem.inner:
        left = lowering.assume_shape(left, [rows, problem.inner])
    chosen = select(KERNELS, MatmulProblem(dtype, problem), problem.machine)
    operands = _rows(lowering, node, problem, left)
    weights = add_weights(lowering, f"{name}.tiles", problem, parts)
    if bias is None:
        bias = zeros(lowering, problem.width, dtype)
    record = record_of(node, chosen, {**product_attributes(problem), **attributes})
    record.requirements = problem.multiplications[0].requirements
    width = static_size(operands[0].ty.shape[1])
    assert width is not None, "the operand was given the weight's inner size"
    kernel = gemm(problem, input_width=width, dtype=dtype, epilogue=epilogue)
    output = relax.TensorType([rows, problem.width], dtype)
    return lowering.call_kernel(kernel, [*operands, *weights, bias], [output], record)[0]


def _rows(lowering: LoweringContext, node: ir.Node, problem: GroupedProblem, left: relax.Expr) -> list[relax.Expr]:
    """The left factor as the product takes it: itself where its type and width are right."""
    dtype, rows = str(left.ty.dtype), left.ty.shape[0]
    if problem.arithmetic == "float32" and problem.padded_inner == problem.inner:
        return [left]
    spare = rows + SPARE_ROWS
    if problem.arithmetic == "int8":
        return quantized_rows(lowering, node, problem, left, spare)
    out_dtype = problem.arithmetic if problem.arithmetic != "float32" else dtype
    kernel = convert_rows(problem.inner, dtype, problem.padded_inner, out_dtype)
    width = row_width(problem.padded_inner, 2 if out_dtype == "bfloat16" else 4)
    record = record_of(node, select(CONVERT, dtype, problem.machine), {"width": problem.inner, "to": out_dtype})
    return [*lowering.call_kernel(kernel, [left], [relax.TensorType([spare, width], out_dtype)], record)]


def zeros(lowering: LoweringContext, count: int, dtype: str) -> relax.Expr:
    """A bias of zeros."""
    return lowering.add_weight(
        f"zeros.{dtype}.{count}", (count,), dtype, lambda: np.zeros(count, np.float32).astype(numpy_dtype(dtype))
    )


def numpy_dtype(dtype: str) -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def multiply_batches(
    lowering: LoweringContext, node: ir.Node, machine: Machine, left: relax.Expr, right: relax.Expr
) -> relax.Var:
    """``left[B|1, M, K] @ right[B|1, K, N]``."""
    dtype = str(left.ty.dtype)
    chosen = select(KERNELS, MatmulProblem(dtype), machine)
    shared_left, shared_right = (static_size(factor.ty.shape[0]) == 1 for factor in (left, right))
    if shared_left and shared_right:
        shared_left = shared_right = False
    batch = right.ty.shape[0] if shared_left else left.ty.shape[0]
    return call(
        lowering,
        node,
        batched_matmul(machine, dtype, shared_left, shared_right),
        [left, right],
        [batch, left.ty.shape[1], right.ty.shape[2]],
        dtype,
        chosen,
        register_tile=[machine.row_tile, machine.column_tile],
    )


def lower_matmul(lowering: LoweringContext, node: ir.Node, machine: Machine) -> relax.Expr:
    """ONNX MatMul: numpy's ``matmul``, vectors and broadcast batches included."""
    left_value, right_value = required_input(node, 0), required_input(node, 1)
    left, right_shape = lowering.tensor(left_value), lowering.shape(right_value)
    left_shape = list(left.ty.shape)
    if len(left_shape) == 1:
        left = reshape(lowering, left, [1, *left_shape])
    rows = left_shape[:-1]
    if len(right_shape) == 2 and lowering.is_constant(right_value):
        inner, columns = (int(size) for size in right_shape)
        right = ConstantMatrix(str(right_value.name), inner, columns, lambda: _loaded(lowering, right_value))
        result = multiply_constant(lowering, node, machine, flatten(lowering, left, len(left.ty.shape) - 1), right)
        return reshape(lowering, result, [*rows, columns])
    right_tensor = lowering.tensor(right_value)
    columns_kept = right_shape[-1:]
    if len(right_shape) == 1:
        right_tensor, columns_kept = reshape(lowering, right_tensor, [*right_shape, 1]), []
    batch = lowering.broadcast_shape([left_shape[:-2], right_shape[:-2]])
    result = multiply_batches(
        lowering, node, machine, as_batches(lowering, left, batch), as_batches(lowering, right_tensor, batch)
    )
    return reshape(lowering, result, [*batch, *rows[-1:], *columns_kept])


def lower_gemm(lowering: LoweringContext, node: ir.Node, machine: Machine) -> relax.Expr:
    """ONNX Gemm: ``alpha * A' @ B' + beta * C``, each of A' and B' transposed or not."""
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    left = lowering.tensor(required_input(node, 0))
    if attribute(node, "transA", 0):
        left = transpose(lowering, left, [1, 0])
    right_value, transposed = required_input(node, 1), bool(attribute(node, "transB", 0))
    if lowering.is_constant(right_value):
        result = multiply_constant(lowering, node, machine, left, _gemm_weight(lowering, right_value, transposed))
    else:
        right = transpose(lowering, lowering.tensor(right_value), [1, 0] if transposed else [0, 1])
        factors = [reshape(lowering, factor, [1, *factor.ty.shape]) for factor in (left, right)]
        product_3d = multiply_batches(lowering, node, machine, *factors)
        result = reshape(lowering, product_3d, list(product_3d.ty.shape)[1:])
    if alpha != 1.0:
        result = lowering.emit(relax.op.multiply(result, relax.const(alpha, str(result.ty.dtype))))
    given = optional_input(node, 2)
    if given is None:
        return result
    addend = lowering.tensor(given)
    if beta != 1.0:
        addend = lowering.emit(relax.op.multiply(addend, relax.const(beta, str(addend.ty.dtype))))
    return relax.op.add(result, lowering.broadcast_to(addend, result.ty.shape))


def _gemm_weight(lowering: LoweringContext, value: ir.Value, transposed: bool) -> ConstantMatrix:
    first, second = (int(size) for size in lowering.shape(value))
    if transposed:
        return ConstantMatrix(f"{value.name}.transposed", second, first, lambda: _loaded(lowering, value).T)
    return ConstantMatrix(str(value.name), first, second, lambda: _loaded(lowering, value))


def _loaded(lowering: LoweringContext, value: ir.Value) -> np.ndarray:
    data = lowering.constant(value)
    assert data is not None, f"{value.name} was a constant before"
    return data
