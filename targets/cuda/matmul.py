"""MatMul, Gemm and Einsum on a GPU: moec's own kernels if one factor is a single constant matrix, otherwise TVM's
schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from moec.targets.cuda.dense_products import bias_operand, multiply_matrix, no_bias
from moec.targets.cuda.product_rows import padded, padded_inputs
from moec.targets.gpu.kernels.dense_problem import dense_problem
from moec.targets.gpu.lowering.expert_matrices import as_stored, filled, padded_name
from moec.targets.tvm.heavy.matmul import Bias, ConstantMatrix
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.sizes.shapes import static_size


@dataclasses.dataclass(frozen=True)
class DenseProducts:
    """The products of MatMul, Gemm and Einsum for GPUs of an architecture."""

    repeats: ClassVar[bool] = True
    architecture: str

    def with_constant(
        self, lowering: LoweringContext, node: ir.Node, left: relax.Expr, right: ConstantMatrix, bias: Bias | None
    ) -> relax.Expr:
        """Emit ``left[M, K] @ right + bias``; the matrix becomes a weight [1, N, K] of the program."""
        inner, width, dtype = right.inner, right.columns, str(left.ty.dtype)

        addend = no_bias(lowering) if bias is None else bias_operand(lowering, bias.value, width, bias.factor)
        types = {"dtype": dtype, "matrix_dtype": dtype, "out_dtype": dtype}
        problem = dense_problem(inner, width, biased=bias is not None, **types)
        problem = dataclasses.replace(problem, inner=padded_inputs([problem], self.architecture))

        def load() -> np.ndarray:
            return filled(as_stored(right.load(lowering).T, dtype), width, problem.inner)[None]

        name = padded_name(f"{right.value.name}.{'rows' if right.transposed else 'columns'}", (inner, problem.inner))
        matrix = lowering.add_weight(name, (1, width, problem.inner), dtype, load)
        left = padded(lowering, node, self.architecture, left, inner, problem.inner)
        return multiply_matrix(lowering, node, self.architecture, problem, left, [matrix, addend])

    def of_batches(self, lowering: LoweringContext, node: ir.Node, left: relax.Expr, right: relax.Expr) -> relax.Expr:
        """Emit ``left[B|1, M, K] @ right[B|1, K, N]`` as a tensor expression; TVM's own operator would need a proof
        that the sizes K are equal. A factor with fewer batches is repeated."""
        dtype = str(left.ty.dtype)
        right = lowering.assume_shape(right, [right.ty.shape[0], left.ty.shape[2], right.ty.shape[2]])
        wide = "float32" if dtype in ("float16", "bfloat16") else dtype

        def build(x: te.Tensor, y: te.Tensor) -> te.Tensor:
            inner = te.reduce_axis((0, x.shape[2]), name="inner")
            batches, of_x, of_y = _batches(x.shape[0], y.shape[0])
            sums = te.compute(
                (batches, x.shape[1], y.shape[2]),
                lambda b, m, n: te.sum(
                    x[of_x(b), m, inner].astype(wide) * y[of_y(b), inner, n].astype(wide),
                    axis=[inner],
                ),
                name="sums",
            )
            return (
                te.compute(sums.shape, lambda *at: sums(*at).astype(dtype), name="product") if wide != dtype else sums
            )

        return lowering.compute(build, [left, right], "matmul")[0]


def _batches(first: Any, second: Any) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """The number of batches of a product, and the functions from a batch to those of both factors. A factor with fewer
    batches has a static number of them."""
    counts = static_size(first), static_size(second)
    is_second = counts[0] is not None and (counts[1] is None or counts[1] > counts[0])
    batches = second if is_second else first

    def batch_of(count: int | None) -> Callable[[Any], Any]:
        if count == 1:
            return lambda _batch: 0
        if count in (None, static_size(batches)):
            return lambda batch: batch
        return lambda batch: tirx.floormod(batch, count)

    return batches, batch_of(counts[0]), batch_of(counts[1])
