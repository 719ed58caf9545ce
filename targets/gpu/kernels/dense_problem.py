"""Dense matrix product: all rows, in order, times one matrix.

``out[r] = epilogue(rows[r] @ matrix.T + bias)``. It is a grouped product of a single expert, in which all blocks of
rows except the last are full. It needs no dispatch, and the kernels of grouped products compute it, given
:func:`dense_kernel` as their form.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, Matrix, match_matrix, with_tables_needed
from moec.targets.gpu.kernels.launch import ATTRIBUTES, blocks_for


@dataclasses.dataclass(frozen=True)
class DenseOperands:
    """The tensors of a dense product; see :func:`dense_kernel`. A pair of a grouped product is a row here."""

    problem: GroupedProblem
    rows: Any
    matrix: Matrix
    bias: Any
    out: Any
    row_count: Any

    @property
    def blocks(self) -> Any:
        """Blocks of rows in the grid, at least one."""
        return blocks_for(self.row_count, self.problem.block_rows)

    @property
    def used_blocks(self) -> Any:
        """Blocks of rows that exist; 0 if there are no rows."""
        return T.ceildiv(self.row_count, self.problem.block_rows)

    @property
    def rows_follow_blocks(self) -> bool:
        return True

    def first_row(self, block: Any) -> Any:
        return block * self.problem.block_rows

    @property
    def divides_inputs(self) -> bool:
        """Whether a block multiplies only a part of the k-tiles (:mod:`.gemm_parts`)."""
        return False

    def is_used(self, block: Any) -> Any:
        return block * self.problem.block_rows < self.row_count

    def expert(self, block: Any) -> Any:
        return T.int32(0)

    def pair(self, block: Any, row: Any) -> Any:
        """The row of ``rows`` for a row of a block; negative after the last one."""
        place = block * self.problem.block_rows + row
        return T.Select(place < self.row_count, place, -1)

    def source(self, pair: Any, block: Any, row: Any) -> Any:
        return pair

    def destination(self, pair: Any, block: Any, row: Any) -> Any:
        return T.cast(pair, "int64")

    def factor(self, pair: Any) -> Any:
        return T.float32(1)

    def finished(self, total: Any, factor: Any, expert: Any, column: Any) -> Any:
        """A sum with its bias, the argument of the epilogue."""
        return total + self.bias[0, column] if self.problem.biased else total


def dense_problem(inner: int, width: int, **types: Any) -> GroupedProblem:
    """The product of rows of ``inner`` elements with a matrix [width, inner]; ``types``: other fields of the
    problem."""
    return GroupedProblem(1, inner, width, gathered=True, scattered=True, **types)


def dense_kernel(problem: GroupedProblem, body: Any) -> tirx.PrimFunc:
    """The kernel ``(rows[M, inner], matrix[1, width, inner], bias[1, width], out[M, width])``. The macro
    ``body(operands)`` emits its code, from ``T.device_entry()`` on. Bias is float32; M is dynamic and may be 0.

    A quantised matrix is three tensors, as in :func:`~moec.targets.gpu.kernels.grouped_problem.grouped_kernel`.
    """
    width, (row_width, row_dtype) = problem.width, problem.row_type

    @T.prim_func
    def kernel(
        rows_handle: T.handle,
        matrix_handle: T.handle,
        scales_handle: T.handle,
        zero_points_handle: T.handle,
        bias_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        M = T.int32()
        rows = T.match_buffer(rows_handle, (M, row_width), row_dtype)
        matrix = T.meta_var(match_matrix(problem, matrix_handle, scales_handle, zero_points_handle))
        bias = T.match_buffer(bias_handle, problem.bias_shape, "float32")
        out = T.match_buffer(out_handle, (M, width), problem.out_dtype)
        body(DenseOperands(problem, rows, matrix, bias, out, M))

    return with_tables_needed(kernel, problem)
