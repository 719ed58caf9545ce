"""Dense product of few rows, which is limited by reading the matrix.

A warp computes some outputs of up to :data:`ROWS_PER_WARP` rows, see :mod:`.gemv_tile`, so that each number of the
matrix that it reads serves all of them. Further rows, in other blocks of threads, read the matrix from the second-level
cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels import gemv_tile
from moec.targets.gpu.kernels.dense_problem import dense_kernel
from moec.targets.gpu.kernels.gemv_tile import COLUMNS_PER_WARP, WarpTile, multiply_rows
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.instructions import reduce_lanes
from moec.targets.gpu.kernels.launch import BEGINS_EARLY, BESIDE, WARP, blocks_for
from moec.targets.gpu.kernels.tiled_kernels import DENSE_FORMULA, DenseLaunch
from moec.targets.tvm.kernels.kernel import Kernel

FEW_ROWS = 16
"""The largest number of rows for which this kernel is faster than tiles."""
ROWS_PER_WARP = 4
WARPS = 4


def why_not(problem: GroupedProblem) -> str | None:
    """The reason why :func:`gemv` cannot compute the problem, or None."""
    return "gate and up are no dense product" if problem.gated else gemv_tile.why_not(problem)


@T.inline
def _store(tile, operands, epilogue, first_row, sums):
    problem = T.meta_var(tile.problem)
    for r in T.unroll(ROWS_PER_WARP):
        for c in T.unroll(COLUMNS_PER_WARP):
            sums[r, c] = reduce_lanes(sums[r, c], "sum")
            if T.And(tile.lane == c, T.And(first_row + r < operands.row_count, tile.first + c < problem.width)):
                total: T.let = operands.finished(sums[r, c], T.float32(1), 0, tile.first + c)
                operands.out[tile.row(r), tile.first + c] = T.cast(epilogue(total), problem.out_dtype)


def gemv(problem: GroupedProblem, epilogue: Callable[..., Any]) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.dense_problem.dense_kernel`. ``epilogue``:
    from a float32 sum to an output. The problem's ``block_rows`` do not matter."""
    columns = WARPS * COLUMNS_PER_WARP
    parts = -(-problem.width // columns)

    @T.inline
    def body(operands):
        T.device_entry()
        groups = T.meta_var(blocks_for(operands.row_count, ROWS_PER_WARP))
        index = T.cta_id([groups * parts])
        thread = T.thread_id([WARPS * WARP])
        lane: T.let = thread % WARP
        # All rows for some outputs, then the next outputs, so that the matrix is still in the cache for each row.
        first_row: T.let = index % groups * ROWS_PER_WARP
        first: T.let = index // groups * columns + thread // WARP * COLUMNS_PER_WARP
        if T.And(first_row < operands.row_count, first < problem.width):
            # Rows beyond the last are read from the last one; their sums are not stored.
            row = T.meta_var(lambda r: T.cast(T.min(first_row + r, operands.row_count - 1), "int64"))
            tile = T.meta_var(WarpTile(problem, first, lane, row, ROWS_PER_WARP))
            sums = T.alloc_local((ROWS_PER_WARP, COLUMNS_PER_WARP), "float32")
            multiply_rows(tile, operands.rows, operands.matrix, 0, sums)
            _store(tile, operands, epilogue, first_row, sums)

    return dense_kernel(problem, body).with_attrs({BEGINS_EARLY: True, BESIDE: True})


def _why_not_launched(launch: DenseLaunch, architecture: str) -> str | None:
    reason = why_not(launch.problem)
    if reason is None and (launch.most is None or launch.most > FEW_ROWS):
        return f"more than {FEW_ROWS} rows; every {ROWS_PER_WARP} of them read the matrix again"
    return reason


GEMV = Kernel(
    "gemv",
    DENSE_FORMULA,
    gemv,
    how=lambda launch, _: f"up to {FEW_ROWS} rows: a warp per outputs, which {ROWS_PER_WARP} rows share",
    why_not=_why_not_launched,
)
