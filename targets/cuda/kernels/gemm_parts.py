"""Dense products with too few tiles to keep a GPU busy: their inputs are divided into parts, too ("split-K").

A block of threads computes a tile's sums over one part of the inputs, in float32, as :mod:`.grouped_gemm_mma` does over
all inputs. :func:`join_parts` adds the sums up in the order of the parts. The number of parts depends on sizes only and
not on the GPU, and so do the bits of results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma, why_not
from moec.targets.cuda.kernels.mma_tile import COLUMNS, k_tile_depth
from moec.targets.gpu.kernels.dense_problem import DenseOperands
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, match_matrix, with_tables_needed
from moec.targets.gpu.kernels.launch import ATTRIBUTES, EARLY_ATTRIBUTES, blocks_for, read_at_once
from moec.targets.gpu.kernels.tiled_kernels import DenseLaunch
from moec.targets.tvm.kernels.kernel import Kernel

BUSY_BLOCKS = 128
"""Tiles that keep a device busy: about as many as it has multiprocessors."""
ROWS = 64
"""Rows of a tile."""
_LEAST_K_TILES = 4
"""The fewest k-tiles of a part. With fewer, computing a part would take no longer than joining it."""
_THREADS = 128
"""Threads of a block that joins parts."""


def _most_parts(problem: GroupedProblem) -> int:
    return -(-problem.inner // k_tile_depth(problem.dtype)) // _LEAST_K_TILES


def _tiles_across(problem: GroupedProblem) -> int:
    return -(-problem.columns // COLUMNS)


def most_rows(problem: GroupedProblem) -> int:
    """The largest number of rows for which there are at least two parts; 0 if there never are."""
    if _most_parts(problem) < 2:
        return 0
    return BUSY_BLOCKS // 2 // _tiles_across(problem) * ROWS


def parts_for(problem: GroupedProblem, rows: Any, dtype: str) -> Any:
    """The number of parts that the inputs are divided into, at least one. ``rows``: an expression of ``dtype``, as is
    the result."""
    least, most = tirx.const(1, dtype), tirx.const(max(_most_parts(problem), 1), dtype)
    tiles = tirx.max((rows + (ROWS - 1)) // ROWS, least) * _tiles_across(problem)
    return tirx.max(tirx.min(BUSY_BLOCKS // tiles, most), least)


@dataclasses.dataclass(frozen=True)
class PartOperands(DenseOperands):
    """The tensors of a dense product in parts. Blocks of rows, and rows of ``out``, are those of the first part,
    followed by those of the next."""

    @property
    def blocks(self) -> Any:
        return super().blocks * self._parts

    def is_used(self, block: Any) -> Any:
        return super().is_used(self._block_in_part(block))

    def pair(self, block: Any, row: Any) -> Any:
        return super().pair(self._block_in_part(block), row)

    @property
    def divides_inputs(self) -> bool:
        return True

    def k_tiles_before(self, block: Any, k_tiles: int) -> Any:
        """The number of k-tiles in earlier parts, which is the first k-tile of the block's part. All parts have about
        the same number of k-tiles, at least one."""
        return T.truncdiv(self._part(block) * k_tiles, self._parts)

    def k_tiles_behind(self, block: Any, k_tiles: int) -> Any:
        """The first k-tile of the next part, the end of the block's part."""
        return T.truncdiv((self._part(block) + 1) * k_tiles, self._parts)

    def destination(self, pair: Any, block: Any, row: Any) -> Any:
        return T.cast(self._part(block) * self.row_count + pair, "int64")

    @property
    def _parts(self) -> Any:
        return parts_for(self.problem, self.row_count, "int32")

    def _part(self, block: Any) -> Any:
        return T.truncdiv(block, super().blocks)

    def _block_in_part(self, block: Any) -> Any:
        return T.truncmod(block, super().blocks)


def part_kernel(problem: GroupedProblem, body: Any) -> tirx.PrimFunc:
    """The kernel ``(rows[M, inner], matrix[1, width, inner], sums[Q, width])``, where Q is at least M times the number
    of parts. A quantised matrix is three tensors, as in
    :func:`~moec.targets.gpu.kernels.grouped_problem.grouped_kernel`."""
    width, (row_width, row_dtype) = problem.width, problem.row_type

    @T.prim_func
    def kernel(
        rows_handle: T.handle,
        matrix_handle: T.handle,
        scales_handle: T.handle,
        zero_points_handle: T.handle,
        sums_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        M = T.int32()
        Q = T.int32()
        rows = T.match_buffer(rows_handle, (M, row_width), row_dtype)
        matrix = T.meta_var(match_matrix(problem, matrix_handle, scales_handle, zero_points_handle))
        sums = T.match_buffer(sums_handle, (Q, width), "float32")
        body(PartOperands(problem, rows, matrix, None, sums, M))

    return with_tables_needed(kernel, problem)


def _of_part(problem: GroupedProblem) -> GroupedProblem:
    """The problem whose results are the sums of a part."""
    return dataclasses.replace(problem, block_rows=ROWS, biased=False, out_dtype="float32")


def gemm_parts(problem: GroupedProblem) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`part_kernel`, which computes the sums of all parts."""
    return grouped_gemm_mma(_of_part(problem), lambda total: total, part_kernel)


def join_parts(problem: GroupedProblem, epilogue: Callable[[Any], Any]) -> tirx.PrimFunc:
    """The kernel ``(sums[Q, width], bias[1, width], out[M, width])``. Sums are the results of :func:`gemm_parts`. Bias
    is float32; if the problem is not biased, it has one element and is not read. A thread computes neighbouring columns
    of a row."""
    width, together = problem.width, read_at_once(problem.width, "float32", problem.out_dtype)
    shares = width // together

    @T.prim_func
    def kernel(sums_handle: T.handle, bias_handle: T.handle, out_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        M = T.int32()
        Q = T.int32()
        sums = T.match_buffer(sums_handle, (Q, width), "float32")
        bias = T.match_buffer(bias_handle, problem.bias_shape, "float32")
        out = T.match_buffer(out_handle, (M, width), problem.out_dtype)
        T.device_entry()
        block = T.cta_id([blocks_for(M * shares, _THREADS)])
        thread = T.thread_id([_THREADS])
        share: T.let = block * _THREADS + thread
        row: T.let = T.truncdiv(share, shares)
        # Not bound to a variable, so that TVM sees that vector loads are aligned.
        first = T.meta_var(T.truncmod(share, shares) * together)
        total = T.alloc_local((together,), "float32")
        found = T.alloc_local((together,), "float32")
        if row < M:
            for v in T.unroll(together):
                total[v] = T.float32(0)
            for part in T.serial(parts_for(problem, M, "int32")):
                for v in T.vectorized(together):
                    found[v] = sums[T.cast(part * M + row, "int64"), first + v]
                for v in T.unroll(together):
                    total[v] = total[v] + found[v]
            for v in T.unroll(together):
                if problem.biased:
                    total[v] = total[v] + bias[0, first + v]
                total[v] = epilogue(total[v])
            for v in T.vectorized(together):
                out[T.cast(row, "int64"), first + v] = T.cast(total[v], problem.out_dtype)

    return kernel


def _why_not(launch: DenseLaunch, architecture: str) -> str | None:
    problem = launch.problem
    reason = why_not(_of_part(problem), architecture)
    if reason is not None:
        return reason
    if not most_rows(problem):
        return f"{problem.inner} inputs and {problem.columns} columns; there are too few inputs, or tiles enough"
    return None


GEMM_PARTS = Kernel(
    "gemm_mma_parts",
    "sums[p, r] = rows[r] @ matrix.T, over the inputs of part p",
    gemm_parts,
    how=lambda launch, _: (
        f"tensor cores (mma.sync); tiles of {ROWS} rows, inputs in parts for about {BUSY_BLOCKS} blocks"
    ),
    why_not=_why_not,
    tile=lambda problem: f"{ROWS} rows x {COLUMNS} columns, {k_tile_depth(problem.dtype)} inputs at a time",
)
JOIN_PARTS = Kernel(
    "join_parts",
    "out[r] = activation(sums[0, r] + sums[1, r] + ... + bias)",
    join_parts,
    how=lambda problem, _: "the parts of the inputs in their order",
)
