"""Grouped matrix product on tensor cores (compute capability 8.0 and up): 16-bit floats, or float32 rounded to tf32;
from 8.9 on rows and matrices in fp8, too.

A block of threads computes one tile, see :mod:`.mma_tile`. Asynchronous copies of 16 bytes bring k-tiles of its rows
and of the matrix into shared memory, several stages ahead of the products. A quantised matrix is decoded on the way,
see :mod:`.mma_quantized`. A warp computes a rectangle of the tile: ``ldmatrix`` loads 16 x 16 numbers of rows and
columns into registers in the layout of ``mma.sync.m16n8k16``, which adds their product to 16 x 8 sums.

The same bytes hold half as many 32-bit numbers, and the same loads match the layout of ``mma.sync.m16n8k8``. That
instruction takes tf32, floats with 10 bits of fraction: the matrix is rounded already, rows are rounded in registers.
Likewise twice as many 8-bit numbers match ``mma.sync.m16n8k32``; a k-tile is then a group of inputs with one scale
(:mod:`.scaled_sums`).

A row of a k-tile in shared memory has eight chunks of 16 bytes. Chunk c of row r is stored at place ``c ^ (r % 8)``,
the 128-byte swizzle. So the eight rows that ldmatrix reads at once are in different banks, as are the eight chunks of a
row when they are written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_quantized import Fetched, chunk_bytes, decode, fetch
from moec.targets.cuda.kernels.mma_rows import COPY, copy_rows, find_sources
from moec.targets.cuda.kernels.mma_store import store
from moec.targets.cuda.kernels.mma_tile import (
    CHUNK,
    CHUNKS,
    COLUMNS,
    DEPTH,
    MMA_COLUMNS,
    MMA_ROWS,
    MMA_STEPS,
    SHAPES,
    k_tile_depth,
    tile_shape,
)
from moec.targets.cuda.kernels.scaled_sums import (
    LANE_ROWS,
    SUMS,
    Scaled,
    add_scaled,
    count_column_scales,
    find_rows,
    read_scales,
    why_not_scaled,
)
from moec.targets.cuda.kernels.tile_gemm import KTile, tile_gemm
from moec.targets.gpu.kernels.fp8_rows import FP8
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, KernelForm, grouped_kernel
from moec.targets.gpu.kernels.instructions import set_tf32
from moec.targets.gpu.kernels.tiled_kernels import tiled_kernels
from moec.targets.tvm.text.steps import begin_step

_INSTRUCTIONS = {
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "float32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    FP8: "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
}
_LOAD_FRAGMENTS = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"


def why_not(problem: GroupedProblem, architecture: str) -> str | None:
    """The reason why :func:`grouped_gemm_mma` cannot compute the problem, or None."""
    reason = _why_not_multiplied(problem, architecture)
    if reason is not None:
        return reason
    if problem.block_rows not in SHAPES:
        return f"blocks of {problem.block_rows} rows; there are tiles of {', '.join(map(str, SHAPES))}"
    multiple = DEPTH if problem.decodes else k_tile_depth(problem.dtype) // CHUNKS
    if problem.inner % multiple:
        return f"{problem.inner} inputs are no multiple of {multiple}"
    if problem.gated and problem.columns != 2 * problem.width:
        return f"{problem.width} hidden units are no multiple of 8"
    return problem.why_not_stored() if problem.stored is None else problem.stored.why_not(CHUNK)


def _why_not_multiplied(problem: GroupedProblem, architecture: str) -> str | None:
    """The reason why the instruction cannot multiply these types, or None."""
    if problem.scaling is not None:
        return "rows with block scales"
    if problem.in_fp8:
        return why_not_scaled(problem, architecture)
    if problem.dtype not in _INSTRUCTIONS or (problem.dtype == "float32" and not problem.tf32):
        return f"{problem.dtype} rows; the instruction takes float16 or bfloat16, or tf32 where that is asked for"
    if problem.dtype == "float32" and problem.stored is not None:
        return "a quantised matrix and float32 rows; decoded numbers are no tf32"
    if problem.stored is None and problem.matrix_dtype != problem.dtype:
        return f"{problem.dtype} rows and a {problem.matrix_dtype} matrix; the instruction takes one type for both"
    return None


@T.inline
def _copy_columns(tile, stage, k_tile):
    """Start the copies of this thread's chunks of a k-tile of the matrix. Missing columns and inputs are filled with
    zeros without reading memory."""
    expert: T.let = T.cast(tile.expert, "int64")
    k: T.let = tile.first_input(k_tile)
    for i in T.unroll(COLUMNS // tile.shape.rows_per_copy):
        column: T.let = tile.first_column + tile.copied_row(i)
        T.ptx[COPY](
            tile.column_tiles.ptr_to([stage, tile.copied_row(i), tile.place]),
            tile.operands.matrix.data.ptr_to([expert, tile.column_or_last(column), tile.chunk_or_last(k)]),
            16,
            T.Select(T.And(tile.has_column(column), tile.has_input(k)), T.uint32(16), T.uint32(0)),
        )


@T.inline
def _load_row_fragments(tile, stage, step, left):
    """Load the left operands of a step. Lanes 0 to 15 point at the first chunk of 16 rows, the others at the next."""
    for i in T.unroll(tile.shape.row_steps):
        T.ptx[_LOAD_FRAGMENTS](
            left[i, 0],
            left[i, 1],
            left[i, 2],
            left[i, 3],
            tile.row_tiles.ptr_to(
                [
                    stage,
                    tile.warp_row + i * MMA_ROWS + tile.lane % 16,
                    ((step * 2 + tile.lane // 16) ^ (tile.lane % 8)) * tile.chunk_inputs,
                ]
            ),
        )


@T.inline
def _load_column_fragments(tile, stage, step, right):
    """Load the right operands of a step, for two instructions at once. Lanes 0 to 15 point at both chunks of 8 columns,
    the others at those of the next 8 columns."""
    for j in T.unroll(tile.shape.column_steps // 2):
        T.ptx[_LOAD_FRAGMENTS](
            right[2 * j, 0],
            right[2 * j, 1],
            right[2 * j + 1, 0],
            right[2 * j + 1, 1],
            tile.column_tiles.ptr_to(
                [
                    stage,
                    tile.warp_column + j * 2 * MMA_COLUMNS + tile.lane // 16 * 8 + tile.lane % 8,
                    ((step * 2 + tile.lane // 8 % 2) ^ (tile.lane % 8)) * tile.chunk_inputs,
                ]
            ),
        )


@T.inline
def _round_to_tf32(tile, left):
    for i in T.unroll(tile.shape.row_steps):
        for v in T.unroll(4):
            set_tf32(left[i, v], T.reinterpret("float32", left[i, v]))


def _added_to(sums: Any, i: Any, j: Any, is_first: Any) -> list[Any]:
    """The accumulators that an instruction adds to: zeros if it ``is_first``."""
    return [T.Select(is_first, T.float32(0), sums[i, j, v]) for v in range(4)]


@T.inline
def _multiply_k_tile(tile, stage, left, right, sums, begins):
    """Add the products of a k-tile to ``sums``; ``begins``: whether sums start from zero."""
    instruction = T.meta_var(_INSTRUCTIONS[tile.problem.dtype])
    for step in T.unroll(MMA_STEPS):
        _load_row_fragments(tile, stage, step, left)
        if tile.problem.tf32:
            _round_to_tf32(tile, left)
        _load_column_fragments(tile, stage, step, right)
        for i in T.unroll(tile.shape.row_steps):
            for j in T.unroll(tile.shape.column_steps):
                T.ptx[instruction](
                    sums[i, j, 0],
                    sums[i, j, 1],
                    sums[i, j, 2],
                    sums[i, j, 3],
                    left[i, 0],
                    left[i, 1],
                    left[i, 2],
                    left[i, 3],
                    right[j, 0],
                    right[j, 1],
                    *_added_to(sums, i, j, step == 0 if begins else False),
                )


@T.inline
def _multiply(tile, fetched, scaled, left, right, sums, sources):
    """Multiply all k-tiles, which pass through a ring of stages: while one is multiplied, the next ones are in flight.
    ``fetched``: registers for codes of a matrix that is decoded; ``scaled``: registers for the sums of a k-tile that
    have scales; both None if not needed."""
    stages = T.meta_var(tile.shape.stages)
    k_tiles = T.meta_var(tile.k_tiles)
    first = T.meta_var(tile.first_k_tile)
    quantized = T.meta_var(tile.problem.decodes)
    reading = T.alloc_local((1,), "int32")
    writing = T.alloc_local((1,), "int32")
    begin_step("copies of the first k-tiles begin")
    for stage in T.unroll(stages - 1):
        if stage < k_tiles:
            copy_rows(tile, stage, first + stage, sources)
            if quantized:
                fetch(tile, fetched, first + stage)
                decode(tile, fetched, stage)
            else:
                _copy_columns(tile, stage, first + stage)
        T.ptx.cp.async_.commit_group()
    reading[0] = 0
    writing[0] = stages - 1
    for k_tile in T.serial(k_tiles):
        # After the barrier, all threads have also finished with the preceding stage.
        begin_step("wait for this thread's copies of the k-tile, then for those of all threads")
        T.ptx.cp.async_.wait_group(stages - 2)
        T.cuda.cta_sync()
        if k_tile + (stages - 1) < k_tiles:
            copy_rows(tile, writing[0], first + k_tile + (stages - 1), sources)
            if quantized:
                fetch(tile, fetched, first + k_tile + (stages - 1))
            else:
                _copy_columns(tile, writing[0], first + k_tile + (stages - 1))
        begin_step("a group even if it is empty: the number of groups in flight stays the same")
        T.ptx.cp.async_.commit_group()
        if scaled is None:
            _multiply_k_tile(tile, reading[0], left, right, sums, False)
        else:
            read_scales(tile, scaled, first + k_tile)
            _multiply_k_tile(tile, reading[0], left, right, scaled.sums, True)
            add_scaled(tile, scaled, sums)
        if quantized:  # at compile time; the next test is at run time  # noqa: SIM102
            if k_tile + (stages - 1) < k_tiles:
                decode(tile, fetched, writing[0])
        reading[0] = T.Select(reading[0] == stages - 1, 0, reading[0] + 1)
        writing[0] = T.Select(writing[0] == stages - 1, 0, writing[0] + 1)


@T.inline
def _compute_tile(tile, epilogue):
    shape = T.meta_var(tile.shape)
    sources = T.alloc_local((shape.rows // shape.rows_per_copy,), "int32")
    left = T.alloc_local((shape.row_steps, 4), "uint32")
    right = T.alloc_local((shape.column_steps, 2), "uint32")
    sums = T.alloc_local((shape.row_steps, shape.column_steps, 4), "float32")
    for i in T.unroll(shape.row_steps):
        for j in T.unroll(shape.column_steps):
            for v in T.unroll(4):
                sums[i, j, v] = T.float32(0)
    find_sources(tile, sources)
    if tile.problem.in_fp8:
        group_sums = T.alloc_local((shape.row_steps, shape.column_steps, SUMS), "float32")
        sum_rows = T.alloc_local((shape.row_steps * LANE_ROWS,), "int32")
        row_scales = T.alloc_local((shape.row_steps * LANE_ROWS,), "float32")
        column_scales = T.alloc_local((count_column_scales(tile.problem, shape),), "float32")
        scaled = T.meta_var(Scaled(group_sums, sum_rows, row_scales, column_scales))
        find_rows(tile, scaled)
        _multiply(tile, None, scaled, left, right, sums, sources)
    elif tile.problem.stored is None:
        _multiply(tile, None, None, left, right, sums, sources)
    else:
        columns = T.meta_var(COLUMNS // shape.rows_per_copy)
        codes = T.alloc_local((columns, chunk_bytes(tile)), "uint8")
        scales = T.alloc_local((columns,), "float32")
        zeros = T.alloc_local((columns,), "int32")
        _multiply(tile, Fetched(codes, scales, zeros), None, left, right, sums, sources)
    begin_step("bias and activation of the sums, stored")
    store(tile, epilogue, sums)


def grouped_gemm_mma(
    problem: GroupedProblem, epilogue: Callable[..., Any], form: KernelForm = grouped_kernel
) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.grouped_problem.grouped_kernel`, or of
    another ``form``. ``epilogue``: from float32 sums to an output, ``f(gate, up)`` if gated, else ``f(sum)``."""
    depth, (_, dtype) = k_tile_depth(problem.dtype), problem.row_type

    @T.inline
    def compute(tile):
        if tile.operands.divides_inputs:
            first: T.let = tile.operands.k_tiles_before(tile.block, tile.k_tiles)
            end: T.let = tile.operands.k_tiles_behind(tile.block, tile.k_tiles)
            _compute_tile(dataclasses.replace(tile, first_k_tile=first, end_k_tile=end), epilogue)
        else:
            _compute_tile(tile, epilogue)

    return tile_gemm(problem, tile_shape(problem), KTile(depth, depth, dtype), form, compute)


GROUPED_GEMM_MMA, GEMM_MMA = tiled_kernels(
    "gemm_mma",
    grouped_gemm_mma,
    how=lambda problem: "tensor cores (mma.sync), k-tiles by cp.async in several stages",
    why_not=why_not,
    tile=lambda problem: (problem.block_rows, COLUMNS, k_tile_depth(problem.dtype)),
)
