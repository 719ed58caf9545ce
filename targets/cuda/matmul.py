"""MatMul, Gemm and Einsum on a GPU: moec's own kernels if one factor is a single constant matrix, otherwise TVM's
schedules."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from tvm import relax, te

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
        that the sizes K are equal."""
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
            return (
                te.compute(sums.shape, lambda *at: sums(*at).astype(dtype), name="product") if wide != dtype else sums
            )

        return lowering.compute(build, [left, right], "matmul")[0]
