"""The host's part of persistent products: tensor maps, the grid, and the place of a block of threads in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

from moec.common.dtypes import dtype_of
from moec.targets.cuda.kernels.grid import blocks_in_grid, count_multiprocessors
from moec.targets.cuda.kernels.mma_tile import CHUNK, DEPTH, k_tile_depth
from moec.targets.cuda.kernels.persistent_tiles import GridPlace, PersistentTile
from moec.targets.cuda.kernels.tile_ring import SWIZZLE, TensorMaps
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, KernelForm

ENCODE_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"
"""The runtime's function that describes a tensor to the copy engine (TMA) before the kernel is launched."""
_L2_PROMOTION = 2  # to 128 bytes


def why_not_in_tiles(problem: GroupedProblem, heights: Sequence[int]) -> str | None:
    """The reason why a ring of stages cannot bring k-tiles of the problem to tensor cores, or None. ``heights``: of
    blocks of rows that the kernel has."""
    if problem.block_rows not in heights:
        return f"blocks of {problem.block_rows} rows; there are tiles of {' and '.join(map(str, heights))}"
    multiple = DEPTH if problem.decodes else CHUNK
    if problem.inner % multiple:
        return f"{problem.inner} inputs are no multiple of {multiple}"
    if problem.gated and problem.columns != 2 * problem.width:
        return f"{problem.width} hidden units are no multiple of 8"
    return problem.why_not_stored() if problem.stored is None else problem.stored.why_not(CHUNK)


def _rank_in_cluster(tile: PersistentTile) -> Any:
    """The rank of this block of threads in its cluster."""
    if tile.cluster == 1:
        return 0
    rank = T.cta_id_in_cluster([tile.cluster])
    IRBuilder.name("rank", rank)
    return rank


def persistent_gemm(
    problem: GroupedProblem, tile: PersistentTile, form: KernelForm, compute: Callable[..., Any]
) -> tirx.PrimFunc:
    """The kernel with the parameters of ``form`` and the code of the macro ``compute(operands, maps, place, thread)``.

    The host calls :data:`ENCODE_TENSOR_MAP` for a matrix that is not decoded, and for rows that are consecutive or that
    TMA gathers.
    """
    depth, (row_width, dtype) = k_tile_depth(problem.dtype), problem.row_type
    column_bytes, row_bytes = (size * dtype_of(dtype).itemsize for size in (problem.inner, row_width))

    @T.inline
    def body(operands):
        multiprocessors: T.let = count_multiprocessors()
        most = T.meta_var(T.ceildiv(T.max(operands.blocks, 1), tile.blocks_together) * tile.tiles_across(problem))
        copies_rows = T.meta_var(operands.rows_follow_blocks or tile.gathers)
        rows_at_once = T.meta_var(tile.rows if operands.rows_follow_blocks else 1)
        room = T.meta_var(multiprocessors if tile.cluster == 1 else T.max(T.truncdiv(multiprocessors, tile.cluster), 1))
        clusters = T.meta_var(T.min(room, most))
        matrix_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)  # type: ignore[valid-type]
        rows_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)  # type: ignore[valid-type]
        if not problem.decodes:
            T.call_packed(
                ENCODE_TENSOR_MAP,
                matrix_map,
                dtype,
                3,
                operands.matrix.data.data,
                # Sizes; byte strides of columns and experts; sizes of a copy; element strides; no interleaving; zeros
                # outside.
                *(problem.inner, problem.columns, problem.experts, column_bytes, problem.columns * column_bytes),
                *(depth, tile.columns_each, 1, 1, 1, 1, 0, SWIZZLE, _L2_PROMOTION, 0),
            )
        if copies_rows:
            rows = T.meta_var(operands.rows.shape[0])
            if rows > 0:  # an empty tensor may have no address
                T.call_packed(
                    ENCODE_TENSOR_MAP,
                    rows_map,
                    dtype,
                    2,
                    operands.rows.data,
                    *(problem.inner, rows, row_bytes),
                    *(depth, rows_at_once, 1, 1, 0, SWIZZLE, _L2_PROMOTION, 0),
                )
        T.device_entry()
        first = T.cta_id([clusters * tile.cluster])
        rank = T.meta_var(_rank_in_cluster(tile))
        thread = T.thread_id([tile.threads])
        place = T.meta_var(GridPlace(T.truncdiv(first, tile.cluster), T.truncdiv(blocks_in_grid(), tile.cluster), rank))
        maps = T.meta_var(TensorMaps(None if problem.decodes else matrix_map, rows_map if copies_rows else None))
        compute(operands, maps, place, thread)

    return form(problem, body)
