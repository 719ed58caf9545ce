"""Product of two activations: ``y[B, M, N] = a[B, M, K] @ b[B, K, N]``, all sizes dynamic (0 and up).

A task is one batch, one block of rows and one tile of columns. It first copies its columns of ``b`` into a panel
``[K, column_tile]``, padded with zeros: whatever N is, the inner loop is that of the product with a packed weight.
Every sum runs over k in ascending order in one accumulator: results depend neither on the number of threads nor on M.
"""

from __future__ import annotations

import dataclasses
import functools

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine, tile_of
from moec.targets.cpu.kernels.emit import loop, named
from moec.targets.cpu.kernels.grouped_gemm import PackedProduct
from moec.targets.cpu.kernels.register_tile import Sums, accumulate, emit_row_tiles
from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored
from moec.targets.tvm.text.steps import begin_step

ROW_TILES_PER_TASK = 16


@T.inline
def _pack_panel(panel, b, batch, first_column, count, inner, width):
    if count == width:
        for k in range(inner):
            for j in T.vectorized(width):
                panel[k, j] = T.cast(b[batch, k, first_column + j], "float32")
    else:
        for k in range(inner):
            for j in T.vectorized(width):
                panel[k, j] = T.float32(0)
            for j in range(count):
                panel[k, j] = T.cast(b[batch, k, first_column + j], "float32")


def _multiply(a, panel, y, a_batch, batch, row, first_column, count, height: int) -> None:
    inner, width = panel.shape
    sums = accumulate(height, int(width), inner, lambda i, k: a[a_batch, row + i, k], lambda k, j: panel[k, j])
    _store(sums, int(width), y, batch, row, first_column, count)


def _store(sums: Sums, width: int, y, batch, row, first_column, count) -> None:
    """Emit the store of the first ``count`` columns of a tile, where the result has no more."""
    with T.If(count == width):
        with T.Then():
            for i, total in sums.rows():
                with loop("j", T.vectorized(width)) as j:
                    T.buffer_store(y, T.cast(total[j], y.dtype), [batch, row + i, first_column + j])
        with T.Else():
            # The sums stay in registers only if every index of theirs is a constant: hence the copy.
            copy = named("copy", T.alloc_buffer((width,), "float32"))
            for i, total in sums.rows():
                with loop("j", T.vectorized(width)) as j:
                    T.buffer_store(copy, total[j], [j])
                with loop("j", T.serial(count)) as j:
                    T.buffer_store(y, T.cast(copy[j], y.dtype), [batch, row + i, first_column + j])


def _multiply_rows(a, panel, y, a_batch, batch, first, rows, first_column, count, machine: Machine) -> None:
    def emit(row, height):
        _multiply(a, panel, y, a_batch, batch, first + row, first_column, count, height)

    emit_row_tiles(rows, machine.row_tile, emit)


@functools.cache
def batched_matmul(
    machine: Machine, dtype: str = "float32", shared_left: bool = False, shared_right: bool = False
) -> tirx.PrimFunc:
    """The kernel ``(a[B, M, K], b[B, K, N], y[B, M, N])``; with ``shared_left`` (``shared_right``) a (b) has batch 1
    and serves all batches. ``dtype`` is how all are stored, sums are float32."""
    width = machine.column_tile
    block = machine.row_tile * ROW_TILES_PER_TASK

    @T.prim_func(s_tir=True)
    def kernel(a_handle: T.handle, b_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        B, M, N, K = T.int64(), T.int64(), T.int64(), T.int64()
        a = T.match_buffer(a_handle, (1 if shared_left else B, M, K), dtype, align=64)
        b = T.match_buffer(b_handle, (1 if shared_right else B, K, N), dtype, align=64)
        y = T.match_buffer(y_handle, (B, M, N), dtype, align=64)
        for task in T.parallel(B * T.ceildiv(M, block) * T.ceildiv(N, width)):
            tiles: T.let[T.int64] = T.max(T.ceildiv(N, width), T.int64(1))
            blocks: T.let[T.int64] = T.max(T.ceildiv(M, block), T.int64(1))
            first_column: T.let[T.int64] = T.truncmod(task, tiles) * width
            first_row: T.let[T.int64] = T.truncmod(T.truncdiv(task, tiles), blocks) * block
            batch: T.let[T.int64] = T.truncdiv(T.truncdiv(task, tiles), blocks)
            count: T.let[T.int64] = T.min(width, N - first_column)
            panel = T.alloc_buffer((K, width), "float32")
            begin_step("columns of b, copied to a panel")
            _pack_panel(panel, b, T.int64(0) if shared_right else batch, first_column, count, K, width)
            begin_step("rows of a, times the panel")
            _multiply_rows(
                a,
                panel,
                y,
                T.int64(0) if shared_left else batch,
                batch,
                first_row,
                T.min(block, M - first_row),
                first_column,
                count,
                machine,
            )

    return kernel


@dataclasses.dataclass(frozen=True)
class MatmulProblem:
    """A matrix product of tensors of ``dtype``. ``packed``: sizes and format of the right factor where it is one
    constant matrix."""

    dtype: str
    packed: PackedProduct | None = None


BATCHED_MATMUL = Kernel(
    "batched_matmul",
    "y[B, M, N] = a[B, M, K] @ b[B, K, N]",
    batched_matmul,
    how=lambda product, machine: in_storage(
        f"copies its columns of the right factor into a panel in every call; {tile_of(machine)}", product.dtype
    ),
    why_not=lambda product, _: why_not_stored(product.dtype),
)
