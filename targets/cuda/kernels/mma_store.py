"""The epilogue of tensor-core products: from accumulators to results, stored where dispatch says.

An instruction has eight columns. A lane has two neighbouring outputs of a row in each instruction, so four neighbouring
lanes have all eight. For 16-bit outputs that go to rows of pairs, the four lanes exchange the outputs of four
instructions, after which each lane has all eight of one instruction. A lane then stores 16 bytes, and the four lanes
together 64 bytes, which are whole sectors of memory.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.common.dtypes import dtype_of
from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, Tile
from moec.targets.gpu.kernels.instructions import ALL_LANES
from moec.targets.gpu.kernels.launch import LOAD_BYTES, WARP

_LANES = 4
"""Lanes that share the outputs of a row in an instruction."""
_PER_LANE = MMA_COLUMNS // _LANES


def _output_steps(tile: Tile) -> int:
    """Steps of a warp along its outputs: an instruction each, or one of gates and one of up if gated."""
    return tile.shape.column_steps // (2 if tile.problem.gated else 1)


def _exchanges(tile: Tile) -> bool:
    """Whether lanes exchange outputs, so that each stores 16 bytes. They do not if results are not scattered: rows are
    then a constant distance apart, and nvcc 13.0 splits the store into four again. Nor do they for gated products, in
    which a warp often has too few outputs."""
    problem = tile.problem
    is_narrow = MMA_COLUMNS * dtype_of(problem.out_dtype).itemsize == LOAD_BYTES
    is_whole = _output_steps(tile) % _LANES == 0 and problem.width % MMA_COLUMNS == 0
    return problem.scattered and not problem.gated and is_narrow and is_whole


def _column(tile: Tile, j: Any) -> Any:
    """The first column of the matrix in step ``j`` of this warp."""
    return tile.first_column + tile.warp_column + j * (2 * MMA_COLUMNS if tile.problem.gated else MMA_COLUMNS)


def _first_of_lane(tile: Tile, j: Any) -> Any:
    """The column that decides whether this lane stores outputs of a step: the step's first column if steps are never
    cut off, otherwise the lane's first column."""
    column = _column(tile, j)
    return column if tile.has_whole_steps else column + tile.lane % _LANES * _PER_LANE


def _stores_alone(tile: Tile) -> bool:
    """Whether a lane stores its two outputs one by one: with an odd width, rows are not aligned to pairs, and the last
    output has no neighbour."""
    return tile.problem.width % _PER_LANE != 0


@T.inline
def _finish(tile, epilogue, i, j, lower, factor, sums, values):
    """Compute this lane's outputs of a step into ``values`` [2]. For missing columns, the last ones are read
    instead."""
    operands = T.meta_var(tile.operands)
    ours = T.meta_var(tile.lane % _LANES * _PER_LANE)
    column: T.let = tile.step_or_last(_column(tile, j)) + ours
    if tile.problem.gated:
        up_column: T.let = tile.step_or_last(_column(tile, j) + MMA_COLUMNS) + ours
        for v in T.unroll(_PER_LANE):
            gate: T.let = operands.finished(sums[i, 2 * j, lower * 2 + v], factor, tile.expert, column + v)
            up: T.let = operands.finished(sums[i, 2 * j + 1, lower * 2 + v], factor, tile.expert, up_column + v)
            values[v] = epilogue(gate, up)
    else:
        for v in T.unroll(_PER_LANE):
            own: T.let = tile.column_or_last(column + v) if _stores_alone(tile) else column + v
            total: T.let = operands.finished(sums[i, j, lower * 2 + v], factor, tile.expert, own)
            values[v] = epilogue(total)


@T.inline
def _store_pairs(tile, epilogue, i, j, lower, row, factor, sums):
    """Compute and store this lane's two neighbouring outputs of a step."""
    problem = T.meta_var(tile.problem)
    values = T.alloc_local((_PER_LANE,), "float32")
    # This form shows nvcc that the outputs of consecutive steps are a constant distance apart.
    first: T.let = (tile.first_column + tile.warp_column) // (2 if problem.gated else 1)
    output: T.let = first + j * MMA_COLUMNS + tile.lane % _LANES * _PER_LANE
    _finish(tile, epilogue, i, j, lower, factor, sums, values)
    if _stores_alone(tile):
        for v in T.unroll(_PER_LANE):
            if tile.has_column(output + v):
                tile.operands.out[row, output + v] = T.cast(values[v], problem.out_dtype)
    else:
        for v in T.vectorized(_PER_LANE):
            tile.operands.out[row, output + v] = T.cast(values[v], problem.out_dtype)


@T.inline
def _transpose(words, lane):
    """Transpose the words of four lanes: word s of lane q becomes word q of lane s."""
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
def _store_eights(tile, epilogue, i, four, lower, pair, row, factor, sums):
    """Compute outputs of four steps, exchange them, and store eight neighbouring outputs. All lanes have to take part,
    even those whose row is padding."""
    problem = T.meta_var(tile.problem)
    values = T.alloc_local((_PER_LANE,), "float32")
    stored = T.alloc_local((_LANES * _PER_LANE,), problem.out_dtype)
    words = T.decl_buffer((_LANES,), "uint32", data=stored.data)
    vectors = T.decl_buffer(
        (1, problem.width // MMA_COLUMNS, MMA_COLUMNS), problem.out_dtype, data=tile.operands.out.data
    )
    for s in T.unroll(_LANES):
        _finish(tile, epilogue, i, four * _LANES + s, lower, factor, sums, values)
        for v in T.unroll(_PER_LANE):
            stored[s * _PER_LANE + v] = T.cast(values[v], problem.out_dtype)
    _transpose(words, tile.lane)
    # This form shows nvcc that the outputs of consecutive steps are a constant distance apart.
    first: T.let = (tile.first_column + tile.warp_column) // MMA_COLUMNS + tile.lane % _LANES
    vector: T.let = first + four * _LANES
    if T.And(pair >= 0, tile.has_column(vector * MMA_COLUMNS)):
        for v in T.vectorized(MMA_COLUMNS):
            vectors[row, vector, v] = stored[v]


@T.inline
def store(tile, epilogue, sums):
    """Pass all sums of a tile through the epilogue and store the results. A lane has sums of two rows, 8 rows apart, in
    every instruction. Columns are the outermost loop, so that a lane needs the biases of few columns at a time."""
    exchanges = T.meta_var(_exchanges(tile))
    for j in T.unroll(_output_steps(tile) // (_LANES if exchanges else 1)):
        if exchanges:
            T.cuda.warp_sync()  # keeps nvcc from loading all biases before the first store, and spilling
        for i in T.unroll(tile.shape.row_steps):
            for lower in T.unroll(2):
                tile_row: T.let = tile.warp_row + i * tile.shape.step_rows + lower * 8 + tile.lane // 4
                pair: T.let = tile.operands.pair(tile.block, tile_row)
                row: T.let = tile.operands.destination(pair, tile.block, tile_row)
                if exchanges:
                    _store_eights(tile, epilogue, i, j, lower, pair, row, tile.operands.factor(T.max(pair, 0)), sums)
                elif T.And(pair >= 0, tile.has_column(_first_of_lane(tile, j))):
                    _store_pairs(tile, epilogue, i, j, lower, row, tile.operands.factor(pair), sums)
