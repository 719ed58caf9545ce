"""Grouped matrix product on the tensor cores of compute capability 9.0a: 16-bit floats, float32 sums.

The warps of a block do different work. One group of four warps brings panels into a ring of stages in shared memory:
those of the matrix by a single copy of the tensor memory accelerator each, and rows, which are scattered where they are
gathered, by asynchronous copies of 16 bytes. Each other group computes 64 rows by all columns of the tile:
``wgmma`` reads its operands from shared memory, and the sums are in registers. Two barriers per stage pass it on: it is
full when all copies have arrived, and empty when every computing group is done with it. A quantised matrix has no copy
by the accelerator: the threads of the group that copies decode it into the same panels.

Inputs behind the last are zeros in both panels. Of columns behind the last nothing is stored.

Panels lie in shared memory in the 128-byte swizzle, which is that of :mod:`.grouped_gemm_mma`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.backend.cuda.lang import MBarrier, PipelineState, TMABar
from tvm.script import tirx as T

from moec.targets.cuda.kernels.grouped_problem import GroupedProblem, KernelForm, grouped_kernel
from moec.targets.cuda.kernels.launch import WARP
from moec.targets.cuda.kernels.mma_quantized import Fetched, decode, fetch, lines_of, piece_bytes
from moec.targets.cuda.kernels.mma_rows import copy_rows, find_sources
from moec.targets.cuda.kernels.mma_store import store
from moec.targets.cuda.kernels.mma_tile import DEPTH, MMA_COLUMNS, MMA_DEPTH, MMA_ROWS, PIECE, Tile, TileShape
from moec.targets.cuda.kernels.shared_pool import SWIZZLE_ALIGNMENT, SharedPool
from moec.targets.cuda.kernels.tiled_kernels import tiled_kernels
from moec.targets.cuda.launch_model.plans import Product, TilePlan

ENCODE_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"
"""The function of the runtime that describes a matrix to the accelerator before the kernel is launched."""
GROUP = 128
"""Threads of a group of four warps, which issue wgmma together."""
_GROUP_ROWS = 64
_MOST_COLUMNS = 256
"""Columns of one instruction."""
_COLUMN_STEP = 16
"""Gate and up of 8 hidden units, and what the threads that decode have at once."""
_STAGES = 4
_ELEMENTS = {"float16": "f16", "bfloat16": "bf16"}
_SWIZZLE = 3  # of 128 bytes, for the accelerator and for wgmma
_L2_PROMOTION = 2  # to 128 bytes
_TENSOR_COPY = "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
_REGISTERS = {"copying": (40, 232), "decoding": (104, 200)}
"""Registers of a thread of the group that copies (and decodes), and of one of two groups that compute: together no more
than the 168 per thread at the start."""


def why_not(problem: GroupedProblem) -> str | None:
    """The reason why :func:`grouped_gemm_wgmma` cannot compute the problem, or None."""
    if problem.dtype not in _ELEMENTS:
        return f"{problem.dtype} rows; expected float16 or bfloat16"
    if problem.stored is None and problem.matrix_dtype != problem.dtype:
        return f"{problem.dtype} rows and a {problem.matrix_dtype} matrix; the instruction takes one type for both"
    if problem.block_rows not in (_GROUP_ROWS, 2 * _GROUP_ROWS):
        return f"blocks of {problem.block_rows} rows; there are tiles of {_GROUP_ROWS} and {2 * _GROUP_ROWS}"
    multiple = PIECE if problem.stored is None else DEPTH
    if problem.inner % multiple:
        return f"{problem.inner} inputs are no multiple of {multiple}"
    if problem.columns % MMA_COLUMNS:
        return f"{problem.columns} columns are no multiple of {MMA_COLUMNS}"
    if problem.gated and problem.columns != 2 * problem.width:
        return f"{problem.width} hidden units are no multiple of 8"
    return problem.why_not_stored() if problem.stored is None else problem.stored.why_not(PIECE)


def _how(problem: GroupedProblem) -> str:
    """How the kernel computes it, in words."""
    matrix = "by TMA" if problem.stored is None else "decoded by the warps that copy"
    return f"tensor cores (wgmma), the matrix {matrix}, warps that copy and warps that compute"


def tile_columns(problem: GroupedProblem) -> int:
    """As many as a product can have, in as many tiles as that takes, all as wide as the widest needs to be."""
    tiles = -(-problem.columns // _MOST_COLUMNS)
    return -(-problem.columns // (tiles * _COLUMN_STEP)) * _COLUMN_STEP


@dataclasses.dataclass(frozen=True)
class _Ring:
    """The stages: their panels and barriers."""

    row_panels: Any
    column_panels: Any
    full: TMABar
    empty: MBarrier

    @property
    def column_bytes(self) -> int:
        """The bytes of a panel of columns."""
        return int(self.column_panels.shape[1]) * DEPTH * 2


@T.inline
def _copy_panels(problem, tile, ring, state, matrix_map, sources):
    """The work of the copying group. A thread says that its pieces of a panel have arrived when it has started those of
    the next one, so that two are on their way."""
    stages = T.meta_var(tile.shape.stages)
    for panel in T.serial(tile.panels):
        ring.empty.wait(state.stage, state.phase)
        if tile.thread == 0:
            ring.full.arrive(state.stage, ring.column_bytes)
            T.ptx[_TENSOR_COPY](
                ring.column_panels.ptr_to([state.stage, 0, 0]),
                T.address_of(matrix_map),
                panel * DEPTH,
                tile.first_column,
                tile.expert,
                ring.full.ptr_to([state.stage]),
            )
        copy_rows(tile, state.stage, panel, sources)
        T.ptx.cp.async_.commit_group()
        if panel > 0:
            T.ptx.cp.async_.wait_group(1)
            # wgmma reads shared memory in another way than these copies write it.
            T.ptx.fence.proxy.async_.shared__cta()
            MBarrier.arrive(ring.full, T.Select(state.stage == 0, stages - 1, state.stage - 1))
        state.advance()
    T.ptx.cp.async_.wait_group(0)
    T.ptx.fence.proxy.async_.shared__cta()
    MBarrier.arrive(ring.full, T.Select(state.stage == 0, stages - 1, state.stage - 1))


@T.inline
def _decode_panels(problem, tile, ring, state, sources):
    """The work of the copying group where the matrix is quantised: it reads the codes of a panel before a stage is
    free, and stores them decoded while the rows arrive."""
    codes = T.alloc_local((lines_of(tile), piece_bytes(tile)), "uint8")
    scales = T.alloc_local((lines_of(tile),), "float32")
    zeros = T.alloc_local((lines_of(tile),), "int32")
    fetched = T.meta_var(Fetched(codes, scales, zeros))
    fetch(tile, fetched, 0)
    for panel in T.serial(tile.panels):
        ring.empty.wait(state.stage, state.phase)
        copy_rows(tile, state.stage, panel, sources)
        T.ptx.cp.async_.commit_group()
        decode(tile, fetched, state.stage)
        if panel + 1 < tile.panels:
            fetch(tile, fetched, panel + 1)
        T.ptx.cp.async_.wait_group(0)
        # wgmma reads shared memory in another way than copies and stores write it.
        T.ptx.fence.proxy.async_.shared__cta()
        MBarrier.arrive(ring.full, state.stage)
        state.advance()


def _all_sums(sums: Any) -> list[Any]:
    """Every register of the sums, in the order of the instruction."""
    _, columns, values = (int(size) for size in sums.shape)
    return [sums[0, j, v] for j in range(columns) for v in range(values)]


@T.inline
def _multiply_panels(problem, tile, ring, state, group, sums):
    """The work of a computing group. A stage is given back when the products of the next one have been started."""
    stages = T.meta_var(tile.shape.stages)
    element = T.meta_var(_ELEMENTS[problem.dtype])
    instruction = T.meta_var(f"wgmma.mma_async.sync.aligned.m64n{tile.shape.columns}k16.f32.{element}.{element}")
    left = T.local_scalar("uint64")
    right = T.local_scalar("uint64")
    for panel in T.serial(tile.panels):
        ring.full.wait(state.stage, state.phase)
        T.cuda.wgmma.encode_matrix_descriptor(
            T.address_of(left), ring.row_panels.ptr_to([state.stage, group * _GROUP_ROWS, 0]), 1, 64, _SWIZZLE
        )
        T.cuda.wgmma.encode_matrix_descriptor(
            T.address_of(right), ring.column_panels.ptr_to([state.stage, 0, 0]), 1, 64, _SWIZZLE
        )
        T.ptx.wgmma.fence.sync.aligned()
        for step in T.unroll(DEPTH // MMA_DEPTH):
            # Descriptors count in 16 bytes; the first product replaces what is in the registers.
            T.ptx[instruction](
                *_all_sums(sums),
                left + T.uint64(2) * T.cast(step, "uint64"),
                right + T.uint64(2) * T.cast(step, "uint64"),
                (panel + step) != 0,
                1,
                1,
                0,
                0,
            )
        T.ptx.wgmma.commit_group.sync.aligned()
        T.ptx.wgmma.wait_group.sync.aligned(1)
        if T.And(panel > 0, tile.thread % GROUP == 0):
            ring.empty.arrive(T.Select(state.stage == 0, stages - 1, state.stage - 1))
        state.advance()
    T.ptx.wgmma.wait_group.sync.aligned(0)


@T.inline
def _compute_block(problem, epilogue, operands, block, expert, first_column, thread, ring, matrix_map):
    groups = T.meta_var(problem.block_rows // _GROUP_ROWS)
    columns = T.meta_var(tile_columns(problem))
    state = T.meta_var(PipelineState(_STAGES, 0))
    lane: T.let = thread % WARP
    quantized = T.meta_var(problem.stored is not None)
    copying_registers, computing_registers = T.meta_var(_REGISTERS["decoding" if quantized else "copying"])
    ring.full.init(GROUP if quantized else GROUP + 1)
    ring.empty.init(groups)
    T.ptx.fence.mbarrier_init.release.cluster()
    T.cuda.cta_sync()
    if thread < GROUP:
        if groups > 1:
            T.ptx["setmaxnreg.dec.sync.aligned.u32"](copying_registers)
        shape = T.meta_var(TileShape(problem.block_rows, 1, GROUP // WARP, _STAGES, columns))
        copying = T.meta_var(
            Tile(operands, shape, block, expert, first_column, thread, lane, 0, 0, ring.row_panels, ring.column_panels)
        )
        sources = T.alloc_local((shape.rows // shape.lines_per_copy,), "int32")
        find_sources(copying, sources)
        if quantized:
            _decode_panels(problem, copying, ring, state, sources)
        else:
            _copy_panels(problem, copying, ring, state, matrix_map, sources)
    else:
        if groups > 1:
            T.ptx["setmaxnreg.inc.sync.aligned.u32"](computing_registers)
        group: T.let = thread // GROUP - 1
        warp_row: T.let = (thread - GROUP) // WARP * MMA_ROWS
        shape = T.meta_var(TileShape(problem.block_rows, problem.block_rows // MMA_ROWS, 1, _STAGES, columns))
        computing = T.meta_var(
            Tile(operands, shape, block, expert, first_column, thread, lane, warp_row, 0, None, None)
        )
        sums = T.alloc_local((1, shape.column_steps, 4), "float32")
        _multiply_panels(problem, computing, ring, state, group, sums)
        store(computing, epilogue, sums)


@T.inline
def _compute(problem, epilogue, operands, matrix_map):
    columns = T.meta_var(tile_columns(problem))
    tiles = T.meta_var(-(-problem.columns // columns))
    index = T.cta_id([T.max(operands.blocks, 1) * tiles])
    thread = T.thread_id([GROUP + problem.block_rows // _GROUP_ROWS * GROUP])
    pool = SharedPool()
    row_panels = pool.alloc((_STAGES, problem.block_rows, DEPTH), problem.dtype, align=SWIZZLE_ALIGNMENT)
    column_panels = pool.alloc((_STAGES, columns, DEPTH), problem.dtype, align=SWIZZLE_ALIGNMENT)
    full = TMABar(pool, _STAGES)
    empty = MBarrier(pool, _STAGES, phase_offset=1)
    pool.commit()
    block: T.let = index // tiles
    first_column: T.let = index % tiles * columns
    if operands.is_used(block):
        expert: T.let = operands.expert(block)
        ring = T.meta_var(_Ring(row_panels, column_panels, full, empty))
        _compute_block(problem, epilogue, operands, block, expert, first_column, thread, ring, matrix_map)


def grouped_gemm_wgmma(
    problem: GroupedProblem, epilogue: Callable[..., Any], form: KernelForm = grouped_kernel
) -> tirx.PrimFunc:
    """The kernel of :func:`~moec.targets.cuda.kernels.grouped_problem.grouped_kernel`, or of another ``form``.
    ``epilogue`` turns float32 sums into an output: ``f(gate, up)`` where gated, else ``f(sum)``. Where the matrix is
    not quantised, it calls :data:`ENCODE_TENSOR_MAP` on the host."""
    columns, line_bytes = tile_columns(problem), problem.inner * 2

    @T.inline
    def decoding(operands):
        T.device_entry()
        _compute(problem, epilogue, operands, None)

    @T.inline
    def copying(operands):
        matrix_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)  # pyright: ignore[reportInvalidTypeForm]
        T.call_packed(
            ENCODE_TENSOR_MAP,
            matrix_map,
            problem.dtype,
            3,
            operands.matrix.data.data,
            # Sizes; bytes from line to line and from expert to expert; sizes of a copy; steps; no interleaving; zeros
            # outside.
            *(problem.inner, problem.columns, problem.experts, line_bytes, problem.columns * line_bytes),
            *(DEPTH, columns, 1, 1, 1, 1, 0, _SWIZZLE, _L2_PROMOTION, 0),
        )
        T.device_entry()
        _compute(problem, epilogue, operands, matrix_map)

    return form(problem, copying if problem.stored is None else decoding)


def _plan(problem: GroupedProblem) -> TilePlan:
    tile = (problem.block_rows, tile_columns(problem), DEPTH, _STAGES)
    return TilePlan(Product.of(problem), *tile, unit="wgmma", copying_warps=GROUP // WARP)


def _why_not_on(problem: GroupedProblem, architecture: str) -> str | None:
    return why_not(problem) if architecture == "sm_90a" else f"the code is for {architecture}; wgmma needs sm_90a"


GROUPED_GEMM_WGMMA, GEMM_WGMMA = tiled_kernels(
    "gemm_wgmma",
    grouped_gemm_wgmma,
    how=_how,
    why_not=_why_not_on,
    plan=_plan,
)
