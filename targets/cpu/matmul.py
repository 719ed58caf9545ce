"""Matrix products on a CPU: with a constant matrix, packed ahead, and of batches."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.common.dtypes import dtype_of
from moec.common.work import BatchedWork, MatmulWork
from moec.ir.weights.encode import Encoded
from moec.targets.cpu.expert_steps import crossovers_of, product_attributes, quantized_rows
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.batched_matmul import BATCHED_MATMUL, MatmulProblem
from moec.targets.cpu.kernels.convert_rows import CONVERT
from moec.targets.cpu.kernels.gather import SPARE_ROWS, row_width
from moec.targets.cpu.kernels.gemm import GEMM, Epilogue
from moec.targets.cpu.kernels.grouped_gemm import PackedProduct
from moec.targets.cpu.kernels.tiled_format import TiledFormat
from moec.targets.cpu.packed_weights import Parts, add_weights
from moec.targets.tvm.heavy.matmul import Bias, ConstantMatrix
from moec.targets.tvm.kernels.kernel import KernelCall, select
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import call, reshape
from moec.targets.tvm.sizes.shapes import static_size

KERNELS = (GEMM, BATCHED_MATMUL)


@dataclasses.dataclass(frozen=True)
class PackedProducts:
    """The products of MatMul, Gemm and Einsum for a machine."""

    repeats: ClassVar[bool] = False
    machine: Machine

    def with_constant(
        self, lowering: LoweringContext, node: ir.Node, left: relax.Expr, right: ConstantMatrix, bias: Bias | None
    ) -> relax.Expr:
        """``left[M, K] @ right + bias`` with the matrix packed at compile time."""
        dtype: Any = str(left.ty.dtype)
        problem = PackedProduct(1, right.inner, right.columns, False, self.machine, (TiledFormat(dtype),))
        name = f"{right.value.name}{'.transposed' if right.transposed else ''}"
        addend = None if bias is None else _addend(lowering, bias, right.columns, dtype)
        return multiply_packed(lowering, node, problem, left, name, lambda _: [Encoded(right.load(lowering))], addend)

    def of_batches(self, lowering: LoweringContext, node: ir.Node, left: relax.Expr, right: relax.Expr) -> relax.Expr:
        """``left[B|1, M, K] @ right[B|1, K, N]``."""
        machine, dtype = self.machine, str(left.ty.dtype)
        chosen = select(KERNELS, MatmulProblem(dtype), machine)
        shared_left, shared_right = (static_size(factor.ty.shape[0]) == 1 for factor in (left, right))
        if shared_left and shared_right:
            shared_left = shared_right = False
        batch = right.ty.shape[0] if shared_left else left.ty.shape[0]
        function = chosen.kernel.build(machine, dtype, shared_left, shared_right)
        shape, tile = [batch, left.ty.shape[1], right.ty.shape[2]], [machine.row_tile, machine.column_tile]
        called = KernelCall(chosen, function, [left, right], {"register_tile": tile}, work=BatchedWork())
        return call(lowering, node, called, shape, dtype)


def _addend(lowering: LoweringContext, bias: Bias, columns: int, dtype: str) -> relax.Expr:
    """A bias as a vector [columns]."""
    vector = reshape(lowering, lowering.tensor(bias.value), [columns])
    if bias.factor == 1.0:
        return vector
    return lowering.emit(relax.op.multiply(vector, relax.const(bias.factor, dtype)))


def multiply_packed(
    lowering: LoweringContext,
    node: ir.Node,
    problem: PackedProduct,
    left: relax.Expr,
    name: str,
    parts: Parts,
    bias: relax.Expr | None = None,
    epilogue: Epilogue = lambda total: total,
    **attributes: Any,
) -> relax.Var:
    """``epilogue(left[M, K] @ weight + bias)``; ``name`` identifies the weight, ``parts`` loads it."""
    dtype, rows = str(left.ty.dtype), left.ty.shape[0]
    if problem.width == 0:  # there is nothing to pack
        return lowering.emit(relax.op.zeros([rows, 0], dtype))
    left = lowering.assume_shape(left, [rows, problem.inner])
    chosen = select(KERNELS, MatmulProblem(dtype, problem), problem.machine)
    operands = _rows(lowering, node, problem, left)
    weights = add_weights(lowering, f"{name}.tiles", problem, parts)
    if bias is None:
        bias = zeros(lowering, problem.width, dtype)
    width = static_size(operands[0].ty.shape[1])
    assert width is not None, "the operand was given the weight's inner size"
    function = chosen.kernel.build(problem, input_width=width, dtype=dtype, epilogue=epilogue)
    called = KernelCall(
        chosen,
        function,
        [*operands, *weights, bias],
        {**product_attributes(problem), **attributes},
        crossovers_of(problem),
        requires=problem.multiplications[0].requirements,
        work=MatmulWork(problem.inner, problem.width, problem.arithmetic),
    )
    return call(lowering, node, called, [rows, problem.width], dtype)


def _rows(lowering: LoweringContext, node: ir.Node, problem: PackedProduct, left: relax.Expr) -> list[relax.Expr]:
    """The left factor as the product takes it: itself where its type and width are right."""
    dtype, rows = str(left.ty.dtype), left.ty.shape[0]
    if problem.arithmetic == "float32" and problem.padded_inner == problem.inner:
        return [left]
    spare = rows + SPARE_ROWS
    if problem.arithmetic == "int8":
        return quantized_rows(lowering, node, problem, left, spare)
    out_dtype = problem.arithmetic if problem.arithmetic != "float32" else dtype
    function = CONVERT.build(problem.inner, dtype, problem.padded_inner, out_dtype)
    width = row_width(problem.padded_inner, 2 if out_dtype == "bfloat16" else 4)
    chosen, attributes = select((CONVERT,), dtype, problem.machine), {"width": problem.inner, "to": out_dtype}
    return [call(lowering, node, KernelCall(chosen, function, [left], attributes), [spare, width], out_dtype)]


def zeros(lowering: LoweringContext, count: int, dtype: str) -> relax.Expr:
    """A bias of zeros."""
    return lowering.add_weight(f"zeros.{dtype}.{count}", (count,), dtype, lambda: np.zeros(count, dtype_of(dtype)))
