"""Sums of tensor cores through the epilogue to the results; wherever dispatch says that they go."""

from __future__ import annotations

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS


@T.inline
def _store_row(tile, epilogue, i, lower, pair, row, sums):
    """Two neighbouring outputs of each multiplication; where gated, of each two: one of gates, one of up."""
    operands, problem = T.meta_var(tile.operands), T.meta_var(tile.problem)
    values = T.alloc_local((2,), "float32")
    factor: T.let = operands.factor(pair)
    for j in T.unroll(tile.shape.column_steps // (2 if problem.gated else 1)):
        if problem.gated:
            column: T.let = tile.first_column + tile.warp_column + 2 * j * MMA_COLUMNS + tile.lane % 4 * 2
            output: T.let = (tile.first_column + tile.warp_column) // 2 + j * MMA_COLUMNS + tile.lane % 4 * 2
            if tile.has_column(column):
                for v in T.unroll(2):
                    gate: T.let = operands.finished(sums[i, 2 * j, lower * 2 + v], factor, tile.expert, column + v)
                    up: T.let = operands.finished(
                        sums[i, 2 * j + 1, lower * 2 + v], factor, tile.expert, column + MMA_COLUMNS + v
                    )
                    values[v] = epilogue(gate, up)
                for v in T.vectorized(2):
                    operands.out[row, output + v] = T.cast(values[v], problem.out_dtype)
        else:
            column: T.let = tile.first_column + tile.warp_column + j * MMA_COLUMNS + tile.lane % 4 * 2
            if tile.has_column(column):
                for v in T.unroll(2):
                    total: T.let = operands.finished(sums[i, j, lower * 2 + v], factor, tile.expert, column + v)
                    values[v] = epilogue(total)
                for v in T.vectorized(2):
                    operands.out[row, column + v] = T.cast(values[v], problem.out_dtype)


@T.inline
def store(tile, epilogue, sums):
    """A lane has sums of two rows of every multiplication, 8 rows apart."""
    for i in T.unroll(tile.shape.row_steps):
        for lower in T.unroll(2):
            line: T.let = tile.warp_row + i * tile.shape.step_rows + lower * 8 + tile.lane // 4
            pair: T.let = tile.operands.pair(tile.block, line)
            if pair >= 0:
                row: T.let = tile.operands.destination(pair, tile.block, line)
                _store_row(tile, epilogue, i, lower, pair, row, sums)
