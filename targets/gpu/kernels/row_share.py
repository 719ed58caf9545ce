"""The partition of a row of numbers among threads, for kernels that reduce rows.

A row of up to :data:`WARP_ELEMENTS` elements is computed by a warp; a longer row, or one of dynamic length, by a block
of threads. Each thread reads a few neighbouring elements at a time. The order of every sum is fixed: a thread's own
elements, then the lanes of a warp, then the warps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.instructions import reduce_lanes, sync_block
from moec.targets.gpu.kernels.launch import WARP, read_at_once
from moec.targets.tvm.heavy.rows import RowProblem
from moec.targets.tvm.kernels.kernel import Kernel, why_not_stored

WARP_ELEMENTS = 1024
_ROWS_PER_BLOCK = 4
"""Rows of a block of threads if a row is computed by a warp."""
_WARPS_PER_ROW = 8
"""Warps of a row if it is computed by a block of threads."""


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """The layout of rows of ``size`` elements (None if dynamic), stored as ``dtype``."""

    size: int | None
    dtype: str

    @property
    def columns(self) -> Any:
        """The size, or a new variable if it is dynamic."""
        return tirx.Var("N", "int32") if self.size is None else self.size

    @property
    def warps(self) -> int:
        """Warps that compute a row."""
        return 1 if self.size is not None and self.size <= WARP_ELEMENTS else _WARPS_PER_ROW

    @property
    def rows(self) -> int:
        """Rows of a block of threads."""
        return _ROWS_PER_BLOCK if self.warps == 1 else 1

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.rows * self.warps * WARP

    @property
    def together(self) -> int:
        """Elements that a thread reads at once."""
        return 1 if self.size is None else read_at_once(self.size, self.dtype)


@dataclasses.dataclass(frozen=True)
class RowShare:
    """A thread's share of its row. ``index``: of the row; ``size``: elements of the row; ``member``: index of the
    thread among those of the row; ``partial`` [warps]: shared memory for partial results of the row's warps."""

    layout: RowLayout
    index: Any
    size: Any
    member: Any
    partial: Any

    @property
    def steps(self) -> Any:
        return T.ceildiv(self.size, self.layout.warps * WARP * self.layout.together)

    def group(self, step: Any) -> Any:
        """The index of the group of neighbouring elements that this thread reads in a step."""
        return step * (self.layout.warps * WARP) + self.member


@T.inline
def start_rows(layout, row_count, size, body):
    """Launch threads for ``row_count`` rows, and emit ``body(share)`` for each of them."""
    block = T.cta_id([T.max(T.ceildiv(row_count, layout.rows), 1)])
    thread = T.thread_id([layout.threads])
    partial = T.alloc_shared((layout.warps,), "float32")
    row: T.let = block * layout.rows + thread // (layout.warps * WARP)
    member: T.let = thread % (layout.warps * WARP)
    if row < row_count:
        body(RowShare(layout, T.cast(row, "int64"), size, member, partial))


@T.inline
def visit_elements(share, source, visit):
    """Emit ``visit(column, value)`` for every element of this thread's share; values are float32."""
    together = T.meta_var(share.layout.together)
    stored = T.alloc_local((together,), share.layout.dtype)
    for step in T.serial(share.steps):
        group: T.let = share.group(step)
        if group * together < share.size:
            for v in T.vectorized(together):
                stored[v] = source[share.index, group * together + v]
            for v in T.unroll(together):
                visit(group * together + v, T.cast(stored[v], "float32"))


@T.inline
def copy_elements(share, source, target):
    """Copy every element of this thread's share."""
    together = T.meta_var(share.layout.together)
    for step in T.serial(share.steps):
        group: T.let = share.group(step)
        if group * together < share.size:
            for v in T.vectorized(together):
                target[share.index, group * together + v] = source[share.index, group * together + v]


@T.inline
def replace_elements(share, source, target, result):
    """Store ``result(column, value)`` in ``target`` for every element of this thread's share of ``source``."""
    together = T.meta_var(share.layout.together)
    stored = T.alloc_local((together,), share.layout.dtype)
    for step in T.serial(share.steps):
        group: T.let = share.group(step)
        if group * together < share.size:
            for v in T.vectorized(together):
                stored[v] = source[share.index, group * together + v]
            for v in T.unroll(together):
                stored[v] = T.cast(result(group * together + v, T.cast(stored[v], "float32")), share.layout.dtype)
            for v in T.vectorized(together):
                target[share.index, group * together + v] = stored[v]


@T.inline
def reduce_row(share, value, operation):
    """Reduce ``value[0]`` over all threads of the row, to its ``sum`` or ``max``, which every thread gets."""
    value[0] = reduce_lanes(value[0], operation)
    if share.layout.warps > 1:
        if share.member % WARP == 0:
            share.partial[share.member // WARP] = value[0]
        sync_block()
        value[0] = share.partial[0]
        for warp in T.serial(1, share.layout.warps):
            if operation == "sum":
                value[0] = value[0] + share.partial[warp]
            else:
                value[0] = T.max(value[0], share.partial[warp])
        sync_block()


def row_kernel(name: str, computes: str, build: Callable[[RowProblem, RowLayout], tirx.PrimFunc]) -> Kernel:
    """The :class:`Kernel` record of a kernel over rows. ``build``: makes its function for a problem and layout."""

    def layout_of(rows: RowProblem) -> RowLayout:
        return RowLayout(rows.size, rows.dtype)

    def how(rows: RowProblem, machine: Any) -> str:
        layout = layout_of(rows)
        threads = "a warp" if layout.warps == 1 else f"a block of {layout.threads} threads"
        return f"{threads} per row; float32 sums in a fixed order"

    return Kernel(
        name,
        computes,
        lambda rows, _: build(rows, layout_of(rows)),
        how,
        why_not=lambda rows, _: why_not_stored(rows.dtype),
    )
