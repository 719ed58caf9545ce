"""Matrix product with a weight known at compile time: ``y[M, N] = activation(x[M, K] @ w[K, N] + bias[N])``.

M is dynamic (0 and up), K and N are static and of any size. The weight is packed once, at compile time, in tiles of
columns (:mod:`moec.targets.cpu.kernels.tiled_format`): the weight of one expert, so to say, that serves every row.

Tasks are (block of rows, column tile) pairs with the column tile running fastest: with few rows the threads share the
weight's columns and each streams its part once; with many rows a block of x stays in the second-level cache.
An output is one sum in a fixed order: results depend neither on the number of threads nor on M.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.batched_matmul import MatmulProblem
from moec.targets.cpu.kernels.dispatch import BLOCK_ROWS
from moec.targets.cpu.kernels.emit import Parameter, column_parts, emit_kernel, loop, named, quotient, remainder
from moec.targets.cpu.kernels.grouped_gemm import PackedProduct, weight_parameters
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Weights, WeightTile
from moec.targets.cpu.kernels.multiply import multiply
from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored

Epilogue = Callable[[Any], Any]


def row_parameters(problem: PackedProduct, input_width: int, dtype: str) -> list[Parameter]:
    """The left factor: rows of ``dtype`` with float32 arithmetic, else as the arithmetic has them."""
    rows = Parameter("rows", ("R", input_width), dtype)
    if problem.arithmetic != "int8":
        return [rows]
    return [rows, Parameter("row_scales", ("R", "A"), "float32"), Parameter("row_sums", ("R", "S"), "int32")]


class _Gemm:
    """The code of one kernel, while it is emitted."""

    def __init__(self, problem: PackedProduct, epilogue: Epilogue) -> None:
        self._problem, self._epilogue = problem, epilogue
        self._product: Multiplication = problem.multiplications[0]

    def emit(self, bias: Any, y: Any, **operands: Any) -> None:
        rows = Rows(operands["rows"], operands.get("row_scales"), operands.get("row_sums"))
        tiles, M = self._problem.column_tiles, y.shape[0]
        data, scales = self._problem.tile_sizes(0)
        with loop("task", T.parallel(T.ceildiv(M, BLOCK_ROWS) * tiles)) as task:
            index = named("index", T.bind(remainder(task, tiles)))
            first = named("first", T.bind(quotient(task, tiles) * BLOCK_ROWS))
            count = named("count", T.bind(T.min(BLOCK_ROWS, M - first)))
            sums = named("sums", T.alloc_buffer((BLOCK_ROWS, self._problem.columns), "float32"))
            starts = named("data_start", T.bind(index * data)), named("scales_start", T.bind(index * scales))
            tile = WeightTile(*starts, self._problem.padded_inner)
            multiply(self._product, rows, self._weights(operands), tile, sums, first, count)
            self._store(sums, bias, y, first, count, index)

    def _weights(self, operands: dict[str, Any]) -> Weights:
        crossover = T.cast(operands["crossover"][0], "int64") if self._product.tiles_used else None
        return Weights.of(operands, 0, crossover)

    def _store(self, sums: Any, bias: Any, y: Any, first: Any, count: Any, index: Any) -> None:
        """Emit ``y = epilogue(sums + bias)``, leaving out the columns that only pad the last tile."""
        width, columns = self._problem.columns, self._problem.width
        if columns % width == 0:
            self._store_columns(sums, bias, y, first, count, index, 0, width)
            return
        with T.If(index < columns // width):
            with T.Then():
                self._store_columns(sums, bias, y, first, count, index, 0, width)
            with T.Else():
                for start, length in column_parts(columns % width, width):
                    self._store_columns(sums, bias, y, first, count, index, start, length)

    def _store_columns(self, sums: Any, bias: Any, y: Any, first: Any, count: Any, index: Any, start: int, length: int):
        with loop("row", T.serial(count)) as row:
            with loop("j", T.vectorized(length)) as j:
                column = index * self._problem.columns + start + j
                value = self._epilogue(sums[row, start + j] + T.cast(bias[column], "float32"))
                T.buffer_store(sums, value, [row, start + j])
            # Apart, because a conversion to bfloat16 repeats its operand.
            with loop("j", T.vectorized(length)) as j:
                column = index * self._problem.columns + start + j
                T.buffer_store(y, T.cast(sums[row, start + j], y.dtype), [first + row, column])


def gemm(
    problem: PackedProduct, *, input_width: int, dtype: str = "float32", epilogue: Epilogue = lambda total: total
) -> tirx.PrimFunc:
    """``(rows[R, input_width] (, row_scales[R, A], row_sums[R, S]), weights..., bias[N], y[M, N])``, R >= M.

    ``problem`` has one expert. The first ``padded_inner`` of the ``input_width`` columns of ``rows`` are used. With
    float32 arithmetic rows have the type of bias and y, ``dtype``; with matrix tiles, rows up to 31 behind the last one
    are read.
    """
    row_dtype = dtype if problem.arithmetic == "float32" else problem.arithmetic
    parameters = [
        *row_parameters(problem, input_width, row_dtype),
        *weight_parameters(problem),
        Parameter("bias", (problem.width,), dtype),
        Parameter("y", ("M", problem.width), dtype),
    ]
    return emit_kernel(parameters, _Gemm(problem, epilogue).emit, problem.multiplications[0].llvm_functions)


def _why_not(product: MatmulProblem) -> str | None:
    if product.packed is None:
        return "the right factor is not a constant matrix, so it cannot be packed ahead"
    return why_not_stored(product.dtype)


GEMM = Kernel(
    "gemm",
    "y[M, N] = x[M, K] @ weight[K, N] + bias[N]",
    gemm,
    how=lambda product, _: in_storage(
        f"constant weight packed ahead; {product.packed.multiplications[0].how}", product.dtype
    ),
    why_not=lambda product, _: _why_not(product),
)
