"""Sums of tensor cores through the epilogue to the results; wherever dispatch says that they go.

A lane has two neighbouring outputs of a row in each multiplication, four neighbouring lanes have the eight of it. Of
outputs of 16 bits that go to rows of pairs, the four lanes exchange those of four multiplications, so that each has all
eight of one of them and stores 16 bytes, and together 64: whole sectors of memory.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.common.dtypes import dtype_of
from moec.targets.cuda.kernels.launch import ALL_LANES, LOAD_BYTES, WARP
from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, Tile

_LANES = 4
"""Lanes that have the outputs of a row in a multiplication."""
_PER_LANE = MMA_COLUMNS // _LANES


def _output_steps(tile: Tile) -> int:
    """Multiplications of a warp along its outputs; where gated, one of gates and one of up make a step."""
    return tile.shape.column_steps // (2 if tile.problem.gated else 1)


def _exchanges(tile: Tile) -> bool:
    """Whether lanes exchange outputs, which makes 16 bytes of each. Not where rows are a constant apart, for there nvcc
    13.0 makes four stores of it again; nor of gates and ups, of which a warp often has too few."""
    problem = tile.problem
    is_narrow = MMA_COLUMNS * dtype_of(problem.out_dtype).itemsize == LOAD_BYTES
    is_whole = _output_steps(tile) % _LANES == 0 and problem.width % MMA_COLUMNS == 0
    return problem.scattered and not problem.gated and is_narrow and is_whole


def _column(tile: Tile, j: Any) -> Any:
    """The first column of the matrix of a step of this warp."""
    return tile.first_column + tile.warp_column + j * (2 * MMA_COLUMNS if tile.problem.gated else MMA_COLUMNS)


@T.inline
def _finish(tile, epilogue, i, j, lower, factor, sums, values):
    """``values`` [2]: this lane's outputs of a step. The last column stands for those that there are not."""
    operands = T.meta_var(tile.operands)
    column: T.let = _column(tile, j) + tile.lane % _LANES * _PER_LANE
    for v in T.unroll(_PER_LANE):
        if tile.problem.gated:
            gate: T.let = operands.finished(
                sums[i, 2 * j, lower * 2 + v], factor, tile.expert, tile.column_or_last(column + v)
            )
            up: T.let = operands.finished(
                sums[i, 2 * j + 1, lower * 2 + v], factor, tile.expert, tile.column_or_last(column + MMA_COLUMNS + v)
            )
            values[v] = epilogue(gate, up)
        else:
            total: T.let = operands.finished(
                sums[i, j, lower * 2 + v], factor, tile.expert, tile.column_or_last(column + v)
            )
            values[v] = epilogue(total)


@T.inline
def _store_pairs(tile, epilogue, i, lower, row, factor, sums):
    """Two neighbouring outputs at a time."""
    problem = T.meta_var(tile.problem)
    values = T.alloc_local((_PER_LANE,), "float32")
    for j in T.unroll(_output_steps(tile)):
        column: T.let = _column(tile, j)
        # Written so that nvcc sees that the outputs of steps are a constant apart.
        first: T.let = (tile.first_column + tile.warp_column) // (2 if problem.gated else 1)
        output: T.let = first + j * MMA_COLUMNS + tile.lane % _LANES * _PER_LANE
        if tile.has_column(column):
            _finish(tile, epilogue, i, j, lower, factor, sums, values)
            for v in T.vectorized(_PER_LANE):
                tile.operands.out[row, output + v] = T.cast(values[v], problem.out_dtype)


@T.inline
def _transpose(words, lane):
    """Word s of lane q, of four lanes, becomes word q of lane s."""
    for bit in T.unroll(2):
        upper: T.let = (lane >> bit) & 1
        for p in T.unroll(2):
            low: T.let = p * (2 - bit)
            high: T.let = low + 1 + bit
            given: T.let = T.Select(upper == 1, words[low], words[high])
            got: T.let = T.cuda.__shfl_xor_sync(T.uint32(ALL_LANES), given, 1 << bit, WARP)
            words[low] = T.Select(upper == 1, got, words[low])
            words[high] = T.Select(upper == 1, words[high], got)


@T.inline
def _store_eights(tile, epilogue, i, lower, pair, row, factor, sums):
    """Eight neighbouring outputs at a time. All lanes come by, also those whose row is padding."""
    problem = T.meta_var(tile.problem)
    values = T.alloc_local((_PER_LANE,), "float32")
    stored = T.alloc_local((_LANES * _PER_LANE,), problem.out_dtype)
    words = T.decl_buffer((_LANES,), "uint32", data=stored.data)
    eights = T.decl_buffer(
        (1, problem.width // MMA_COLUMNS, MMA_COLUMNS), problem.out_dtype, data=tile.operands.out.data
    )
    for four in T.unroll(_output_steps(tile) // _LANES):
        for s in T.unroll(_LANES):
            _finish(tile, epilogue, i, four * _LANES + s, lower, factor, sums, values)
            for v in T.unroll(_PER_LANE):
                stored[s * _PER_LANE + v] = T.cast(values[v], problem.out_dtype)
        _transpose(words, tile.lane)
        column: T.let = _column(tile, four * _LANES + tile.lane % _LANES)
        if T.And(pair >= 0, tile.has_column(column)):
            for v in T.vectorized(MMA_COLUMNS):
                eights[row, column // MMA_COLUMNS, v] = stored[v]


@T.inline
def store(tile, epilogue, sums):
    """A lane has sums of two rows of every multiplication, 8 rows apart."""
    for i in T.unroll(tile.shape.row_steps):
        for lower in T.unroll(2):
            line: T.let = tile.warp_row + i * tile.shape.step_rows + lower * 8 + tile.lane // 4
            pair: T.let = tile.operands.pair(tile.block, line)
            row: T.let = tile.operands.destination(pair, tile.block, line)
            if _exchanges(tile):
                _store_eights(tile, epilogue, i, lower, pair, row, tile.operands.factor(T.max(pair, 0)), sums)
            elif pair >= 0:
                _store_pairs(tile, epilogue, i, lower, row, tile.operands.factor(pair), sums)
