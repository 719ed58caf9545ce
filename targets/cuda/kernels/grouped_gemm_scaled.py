"""Grouped matrix product of rows and matrices with block scales, on sm_120a.

As :mod:`.grouped_gemm_mma`, except that tensor cores multiply numbers and scales as they are stored
(:mod:`.mma_scaled`): asynchronous copies bring codes into shared memory, and scales go from memory into registers, one
k-tile ahead. A k-tile has 128 inputs, so that two blocks of threads fit on a multiprocessor with 100 KiB of shared
memory, and a lane loads one or two words of scales for a row or a column.

Rows of a k-tile in shared memory have 128 bytes, swizzled as there, or 64: then chunk c of row r is stored at place
``c ^ (r // 2 % 4)``, so that the eight rows that ldmatrix reads at once are in different banks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.hardware.architectures import multiplies_block_scaled
from moec.targets.cuda.kernels.mma_rows import COPY
from moec.targets.cuda.kernels.mma_scaled import (
    COLUMN_STEPS,
    E2M1_IN_E4M3,
    ROW_STEPS,
    column_of_scales,
    multiply,
    row_of_scales,
    set_e4m3,
)
from moec.targets.cuda.kernels.mma_store import store
from moec.targets.cuda.kernels.mma_tile import COLUMNS, MMA_COLUMNS, MMA_ROWS, SHAPES, Tile, TileShape
from moec.targets.cuda.kernels.tile_gemm import KTile, tile_gemm
from moec.targets.gpu.kernels.block_scaled_rows import SPAN, BlockScaling
from moec.targets.gpu.kernels.fp8_rows import words_of
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, KernelForm, grouped_kernel
from moec.targets.gpu.kernels.tiled_kernels import tiled_kernels
from moec.targets.tvm.text.steps import begin_step

_CHUNK_BYTES = 16
_LOAD_FRAGMENTS = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
_COLUMN_CHUNKS = SPAN // 2 // _CHUNK_BYTES
"""Chunks of a column of a k-tile, which has numbers of 4 bits."""
_POOL_BYTES = 48 << 10
"""Shared memory of a block of threads, so that a multiprocessor has room for two."""
_MOST_STAGES = 4


def why_not(problem: GroupedProblem, architecture: str) -> str | None:
    """The reason why :func:`grouped_gemm_scaled` cannot compute the problem, or None."""
    scaling, stored = problem.scaling, problem.stored
    if scaling is None:
        return f"rows in {problem.dtype} without block scales"
    if not multiplies_block_scaled(architecture):
        return f"the code is for {architecture}; products with block scales need sm_120a"
    if stored is None or stored.element != scaling.matrix:
        actual = problem.matrix_dtype if stored is None else stored.name
        return f"a matrix in {actual}; rows in {scaling.arithmetic} need one in {scaling.matrix}"
    if problem.block_rows not in SHAPES:
        return f"blocks of {problem.block_rows} rows; there are tiles of {', '.join(map(str, SHAPES))}"
    if problem.gated and problem.columns != 2 * problem.width:
        return f"{problem.width} hidden units are no multiple of 8"
    return scaling.why_not(problem.inner, scaling.group) or problem.why_not_stored()


def row_chunks(scaling: BlockScaling) -> int:
    """Chunks of a row of a k-tile."""
    return scaling.code_bytes(SPAN) // _CHUNK_BYTES


def scaled_tile_shape(problem: GroupedProblem) -> TileShape:
    """The partition of a product's tile, with as many stages as leave room for a second block of threads."""
    assert problem.scaling is not None, "the kernel was chosen for rows with block scales"
    shape = SHAPES[problem.block_rows]
    stage = (shape.rows * row_chunks(problem.scaling) + shape.columns * _COLUMN_CHUNKS) * _CHUNK_BYTES
    return dataclasses.replace(shape, stages=min(_MOST_STAGES, _POOL_BYTES // stage))


class _Registers(NamedTuple):
    """Registers of a thread: the operands of a step, the input rows of its copies (``sources``, negative for padding),
    the rows whose scales it loads, and the scales of a k-tile and of the next one [2, words]."""

    left: Any
    right: Any
    sums: Any
    sources: Any
    scale_rows: Any
    row_scales: Any
    column_scales: Any


def _place(row: Any, chunk: Any, chunks: int) -> Any:
    """The first byte of a chunk of a row, in a k-tile whose rows have 4 or 8 chunks."""
    return (chunk ^ (row % 8 if chunks == 8 else row // 2 % 4)) * _CHUNK_BYTES


def _copied(tile: Tile, i: Any, chunks: int) -> tuple[Any, Any]:
    """Row (or column) and chunk of the ``i``-th copy of this thread; all its copies are of the same chunk."""
    return i * (tile.shape.threads // chunks) + tile.thread // chunks, tile.thread % chunks


def _has_row(tile: Tile, row: Any, chunks: int) -> Any:
    """Whether the tile has a row; in a low tile some threads have nothing to copy."""
    return tile.shape.rows * chunks % tile.shape.threads == 0 or row < tile.shape.rows


@T.inline
def _find_rows(tile, registers):
    """Look up the input rows that this thread copies, and those whose scales it loads. Scales of padding are those of
    row 0, since sums of padding are not stored."""
    operands, chunks = T.meta_var((tile.operands, row_chunks(tile.problem.scaling)))
    for i in T.unroll(registers.sources.shape[0]):
        row, _ = T.meta_var(_copied(tile, i, chunks))
        registers.sources[i] = -1
        if _has_row(tile, row, chunks):
            pair: T.let = operands.pair(tile.block, row)
            if pair >= 0:
                registers.sources[i] = operands.source(pair, tile.block, row)
    for p in T.unroll(registers.scale_rows.shape[0]):
        scale_row: T.let = tile.warp_row + row_of_scales(tile.lane, p, tile.shape.row_steps)
        scale_pair: T.let = operands.pair(tile.block, scale_row)
        registers.scale_rows[p] = 0
        if scale_pair >= 0:
            registers.scale_rows[p] = operands.source(scale_pair, tile.block, scale_row)


@T.inline
def _copy(tile, registers, stage, k_tile):
    """Start this thread's copies of a k-tile. Padding and missing columns are filled with zeros without reading
    memory."""
    chunks = T.meta_var(row_chunks(tile.problem.scaling))
    for i in T.unroll(registers.sources.shape[0]):
        row, chunk = T.meta_var(_copied(tile, i, chunks))
        source: T.let = T.cast(T.max(registers.sources[i], 0), "int64")
        if _has_row(tile, row, chunks):
            T.ptx[COPY](
                tile.row_tiles.ptr_to([stage, row, _place(row, chunk, chunks)]),
                tile.operands.rows.ptr_to([source, (k_tile * chunks + chunk) * _CHUNK_BYTES]),
                16,
                T.Select(registers.sources[i] >= 0, T.uint32(16), T.uint32(0)),
            )
    for i in T.unroll(tile.shape.columns * _COLUMN_CHUNKS // tile.shape.threads):
        place, part = T.meta_var(_copied(tile, i, _COLUMN_CHUNKS))
        column: T.let = tile.first_column + place
        T.ptx[COPY](
            tile.column_tiles.ptr_to([stage, place, _place(place, part, _COLUMN_CHUNKS)]),
            tile.operands.matrix.data.ptr_to(
                [
                    T.cast(tile.expert, "int64"),
                    tile.column_or_last(column),
                    (k_tile * _COLUMN_CHUNKS + part) * _CHUNK_BYTES,
                ]
            ),
            16,
            T.Select(tile.has_column(column), T.uint32(16), T.uint32(0)),
        )


@T.inline
def _load_scales(tile, registers, k_tile, turn):
    """Start loading the scales of a k-tile into the registers of a ``turn``."""
    scaling, inner, table = T.meta_var((tile.problem.scaling, tile.problem.inner, tile.operands.matrix.scales))
    count = T.meta_var(scaling.scale_words)
    of_rows = T.meta_var(words_of(tile.operands.rows, "uint32"))
    experts, columns, width = T.meta_var([int(size) for size in table.shape])
    of_columns = T.decl_buffer((experts, columns, width // 4), "uint32", data=table.data)
    before = T.meta_var(1 if scaling.has_factors else 0)
    for p in T.unroll(registers.scale_rows.shape[0]):
        for w in T.unroll(count):
            registers.row_scales[turn, p * count + w] = of_rows[
                T.cast(registers.scale_rows[p], "int64"), scaling.place_of_scales(inner) + k_tile * count + w
            ]
    for p in T.unroll(-(-tile.shape.column_steps // COLUMN_STEPS)):
        # Columns beyond the last have the scales of the last one; their numbers are zeros.
        column: T.let = tile.column_or_last(tile.first_column + tile.warp_column + column_of_scales(tile.lane, p))
        for w in T.unroll(count):
            registers.column_scales[turn, p * count + w] = of_columns[
                T.cast(tile.expert, "int64"), column, before + k_tile * count + w
            ]


def _rows_of(registers: Any, i: Any) -> list[Any]:
    """The registers of row ``i`` of an array."""
    return [registers[i, v] for v in range(int(registers.shape[1]))]


@T.inline
def _load_rows(tile, registers, stage, step):
    """Load the left operands of a step, two chunks of each row."""
    chunks = T.meta_var(row_chunks(tile.problem.scaling))
    for i in T.unroll(tile.shape.row_steps):
        row: T.let = tile.warp_row + i * MMA_ROWS + tile.lane % 16
        T.ptx[_LOAD_FRAGMENTS](
            *_rows_of(registers.left, i),
            tile.row_tiles.ptr_to([stage, row, _place(row, step * 2 + tile.lane // 16, chunks)]),
        )


@T.inline
def _load_columns(tile, registers, stage, step):
    """Load the right operands of a step, for two instructions at once: both chunks of 16 columns."""
    for j in T.unroll(tile.shape.column_steps // 2):
        column: T.let = tile.warp_column + j * 2 * MMA_COLUMNS + tile.lane // 16 * 8 + tile.lane % 8
        T.ptx[_LOAD_FRAGMENTS](
            *_rows_of(registers.right, 2 * j),
            *_rows_of(registers.right, 2 * j + 1),
            tile.column_tiles.ptr_to([stage, column, _place(column, step * 2 + tile.lane // 8 % 2, _COLUMN_CHUNKS)]),
        )


@T.inline
def _widen_columns(tile, registers, stage, step):
    """Load the right operands of a step with numbers of 8 bits, for four instructions at once: a chunk of 32
    columns."""
    words = T.alloc_local((1, 4), "uint32")
    for j in T.unroll(tile.shape.column_steps // 4):
        column: T.let = tile.warp_column + j * 4 * MMA_COLUMNS + tile.lane
        T.ptx[_LOAD_FRAGMENTS](
            *_rows_of(words, 0),
            tile.column_tiles.ptr_to([stage, column, _place(column, step, _COLUMN_CHUNKS)]),
        )
        for v in T.unroll(4):
            set_e4m3(registers.right[4 * j + v, 0], registers.right[4 * j + v, 1], words[0, v])


@T.inline
def _multiply_k_tile(tile, registers, stage, turn):
    """Add the products of a k-tile to the sums."""
    scaling = T.meta_var(tile.problem.scaling)
    steps, count = T.meta_var((row_chunks(scaling) // 2, scaling.scale_words))
    for step in T.unroll(steps):
        _load_rows(tile, registers, stage, step)
        if scaling.bits == 8:
            _widen_columns(tile, registers, stage, step)
        else:
            _load_columns(tile, registers, stage, step)
        scale = T.meta_var(step * count * 4 // steps)  # the first scale of the step among those of the k-tile
        for i in T.unroll(tile.shape.row_steps):
            for j in T.unroll(tile.shape.column_steps):
                multiply(
                    scaling.arithmetic,
                    registers.sums,
                    i,
                    j,
                    registers.left,
                    registers.right,
                    (
                        registers.row_scales[turn, i // ROW_STEPS * count + scale // 4],
                        registers.column_scales[turn, j // COLUMN_STEPS * count + scale // 4],
                    ),
                    scale % 4,
                )


@T.inline
def _multiply(tile, registers):
    """Multiply all k-tiles, which pass through a ring of stages: while one is multiplied, the next ones are in flight,
    and the scales of the next one."""
    stages, k_tiles = T.meta_var((tile.shape.stages, tile.problem.inner // SPAN))
    words = T.meta_var([int(registers.row_scales.shape[1]), int(registers.column_scales.shape[1])])
    reading = T.alloc_local((1,), "int32")
    writing = T.alloc_local((1,), "int32")
    begin_step("copies of the first k-tiles begin")
    for stage in T.unroll(stages - 1):
        if stage < k_tiles:
            _copy(tile, registers, stage, stage)
        T.ptx.cp.async_.commit_group()
    _load_scales(tile, registers, 0, 1)
    reading[0] = 0
    writing[0] = stages - 1
    for k_tile in T.serial(k_tiles):
        # After the barrier, all threads have also finished with the preceding stage.
        begin_step("wait for this thread's copies of the k-tile, then for those of all threads")
        T.ptx.cp.async_.wait_group(stages - 2)
        T.cuda.cta_sync()
        if k_tile + (stages - 1) < k_tiles:
            _copy(tile, registers, writing[0], k_tile + (stages - 1))
        begin_step("a group even if it is empty: the number of groups in flight stays the same")
        T.ptx.cp.async_.commit_group()
        for w in T.unroll(words[0]):
            registers.row_scales[0, w] = registers.row_scales[1, w]
        for w in T.unroll(words[1]):
            registers.column_scales[0, w] = registers.column_scales[1, w]
        if k_tile + 1 < k_tiles:
            _load_scales(tile, registers, k_tile + 1, 1)
        _multiply_k_tile(tile, registers, reading[0], 0)
        reading[0] = T.Select(reading[0] == stages - 1, 0, reading[0] + 1)
        writing[0] = T.Select(writing[0] == stages - 1, 0, writing[0] + 1)


@T.inline
def _finish_sums(tile, sums):
    """Multiply the sums by what the scales of their groups leave out: the factors of column and row, one by one, since
    the product of both may be too small for a float; or a constant."""
    scaling, operands = T.meta_var((tile.problem.scaling, tile.operands))
    for i in T.unroll(tile.shape.row_steps):
        for lower in T.unroll(2):
            of_row = T.local_scalar("float32")
            of_row = T.float32(E2M1_IN_E4M3)
            if scaling.has_factors:
                factors = T.meta_var(words_of(operands.rows, "float32"))
                row: T.let = tile.warp_row + i * MMA_ROWS + lower * 8 + tile.lane // 4
                pair: T.let = operands.pair(tile.block, row)
                if pair >= 0:
                    source: T.let = T.cast(operands.source(pair, tile.block, row), "int64")
                    of_row = factors[source, scaling.place_of_factor(tile.problem.inner)]
            for j in T.unroll(tile.shape.column_steps):
                for v in T.unroll(2):
                    if scaling.has_factors:
                        column: T.let = tile.first_column + tile.warp_column + j * MMA_COLUMNS + tile.lane % 4 * 2 + v
                        of_column: T.let = operands.matrix.factors[
                            T.cast(tile.expert, "int64"), tile.column_or_last(column), 0
                        ]
                        sums[i, j, lower * 2 + v] = sums[i, j, lower * 2 + v] * of_column * of_row
                    else:
                        sums[i, j, lower * 2 + v] = sums[i, j, lower * 2 + v] * of_row


@T.inline
def _compute_tile(tile, epilogue):
    shape, scaling = T.meta_var((tile.shape, tile.problem.scaling))
    copies = T.meta_var(-(-shape.rows * row_chunks(scaling) // shape.threads))
    pairs, fours = T.meta_var((-(-shape.row_steps // ROW_STEPS), -(-shape.column_steps // COLUMN_STEPS)))
    left = T.alloc_local((shape.row_steps, 4), "uint32")
    right = T.alloc_local((shape.column_steps, 2), "uint32")
    sums = T.alloc_local((shape.row_steps, shape.column_steps, 4), "float32")
    sources = T.alloc_local((copies,), "int32")
    scale_rows = T.alloc_local((pairs,), "int32")
    row_scales = T.alloc_local((2, pairs * scaling.scale_words), "uint32")
    column_scales = T.alloc_local((2, fours * scaling.scale_words), "uint32")
    registers = T.meta_var(_Registers(left, right, sums, sources, scale_rows, row_scales, column_scales))
    for i in T.unroll(shape.row_steps):
        for j in T.unroll(shape.column_steps):
            for v in T.unroll(4):
                sums[i, j, v] = T.float32(0)
    _find_rows(tile, registers)
    _multiply(tile, registers)
    begin_step("bias and activation of the sums, stored")
    if scaling.arithmetic != "mxfp4":
        _finish_sums(tile, sums)
    store(tile, epilogue, sums)


def grouped_gemm_scaled(
    problem: GroupedProblem, epilogue: Callable[..., Any], form: KernelForm = grouped_kernel
) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.grouped_problem.grouped_kernel`, or of
    another ``form``. ``epilogue``: from float32 sums to an output, ``f(gate, up)`` if gated, else ``f(sum)``."""
    assert problem.scaling is not None, "the kernel was chosen for rows with block scales"
    k_tile = KTile(row_chunks(problem.scaling) * _CHUNK_BYTES, _COLUMN_CHUNKS * _CHUNK_BYTES, "uint8")

    @T.inline
    def compute(tile):
        _compute_tile(tile, epilogue)

    return tile_gemm(problem, scaled_tile_shape(problem), k_tile, form, compute)


GROUPED_GEMM_SCALED, GEMM_SCALED = tiled_kernels(
    "gemm_scaled",
    grouped_gemm_scaled,
    how=lambda problem: "tensor cores that multiply block scales (mma.sync), k-tiles by cp.async in several stages",
    why_not=why_not,
    tile=lambda problem: (problem.block_rows, COLUMNS, SPAN),
)
