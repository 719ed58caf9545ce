"""Append in place to a state in pages of int8 rows, and copy a whole state to pages and back.

A warp rounds a row: its lanes find the largest magnitude, from which the row's scale follows, and store a whole number
for every 32nd column each. The layout of rows and scales: :mod:`moec.targets.tvm.kernels.int8_rows`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.append_places import placed
from moec.targets.gpu.kernels.instructions import reduce_lanes
from moec.targets.gpu.kernels.launch import ATTRIBUTES, WARP, blocks_for, indices_of
from moec.targets.tvm.kernels.int8_rows import (
    INT8_ROWS,
    bytes_of,
    magnitude,
    rows_in,
    scale_at,
    scale_from,
    scale_of,
    whole_number,
)
from moec.targets.tvm.kernels.kernel import Kernel
from moec.targets.tvm.lowering.paged_tensors import AppendProblem

_WARPS = 4
"""Warps of a block of threads."""


@T.inline
def _round_row(row, state, at, pages, first, inside, lane):
    """Round the row ``at`` of ``state`` to row ``inside`` of the page that begins at the indices ``first``."""
    largest = T.alloc_local((1,), "int32")
    largest[0] = 0
    for step in T.unroll(-(-row // WARP)):
        column: T.let = step * WARP + lane
        if column < row:
            largest[0] = T.max(largest[0], magnitude(state[(*at, column)]))
    largest[0] = reduce_lanes(largest[0], "max")
    scale: T.let = scale_of(largest[0])
    for step in T.unroll(-(-row // WARP)):
        column: T.let = step * WARP + lane
        if column < row:
            number: T.let = T.cast(whole_number(state[(*at, column)], scale), "int32")
            pages[(*first, inside * row + column)] = T.cast(number, "int8")
    if lane == 0:
        low, high = T.meta_var(bytes_of(scale))
        begin: T.let = scale_at(T.cast(pages.shape[-1], "int64"), row, inside)
        pages[(*first, begin)] = low
        pages[(*first, begin + 1)] = high


@T.inline
def _widen_row(row, state, at, pages, first, inside, lane):
    """Do the reverse."""
    begin: T.let = scale_at(T.cast(pages.shape[-1], "int64"), row, inside)
    scale: T.let = scale_from(pages[(*first, begin)], pages[(*first, begin + 1)])
    for step in T.unroll(-(-row // WARP)):
        column: T.let = step * WARP + lane
        if column < row:
            state[(*at, column)] = T.cast(pages[(*first, inside * row + column)], "float32") * scale


def _each_row(problem: AppendProblem, convert: Any) -> tuple[Any, Any]:
    """A macro that gives each row of a state [*before, S, row] to a warp, with its place in pages [pages, *before,
    page], and the sizes ``before`` and S."""
    row, rank = problem.row, len(problem.before)
    before = [tirx.Var(f"b{axis}", "int32") if size is None else size for axis, size in enumerate(problem.before)]
    number_of_pages, page, S = (tirx.Var(name, "int32") for name in ("pages", "page", "S"))

    @T.inline
    def each(state_handle, pages_handle, place_of):
        state = T.match_buffer(state_handle, (*before, S, row), "float32")
        pages = T.match_buffer(pages_handle, (number_of_pages, *before, page), "int8")
        T.device_entry()
        count = T.meta_var(T.int64(1) * math.prod([*before, S]))
        block = T.cta_id([T.cast(blocks_for(count, _WARPS), "int32")])
        thread = T.thread_id([_WARPS * WARP])
        index: T.let = T.cast(block, "int64") * _WARPS + thread // WARP
        lane: T.let = thread % WARP
        rows: T.let = T.cast(rows_in(page, row), "int64")
        if index < count:
            at = T.meta_var(indices_of(index, [*before, S], 1))
            start, is_there = T.meta_var(place_of(at))
            number: T.let = start + at[rank]
            if T.And(is_there(number), number < rows * number_of_pages):
                first = T.meta_var((number // rows, *at[:rank]))
                convert(row, state, at, pages, first, number % rows, lane)

    return each, (before, S)


@functools.cache
def append_rows(problem: AppendProblem) -> tirx.PrimFunc:
    """The kernel of :func:`moec.targets.gpu.kernels.append.append` for float32 rows that are stored in int8."""
    each, (before, S) = _each_row(problem, _round_row)
    return placed(problem, before, S, ATTRIBUTES, each)


@functools.cache
def page_rows(problem: AppendProblem) -> tirx.PrimFunc:
    """The kernel ``(start, state[*before, S, row], pages[pages, *before, page])``: all of a state to its place."""
    each, _ = _each_row(problem, _round_row)

    @T.prim_func
    def kernel(start: T.int64, state: T.handle, pages: T.handle):
        T.func_attr(ATTRIBUTES)
        each(state, pages, lambda at: (start, lambda number: number >= 0))

    return kernel


@functools.cache
def unpage_rows(problem: AppendProblem) -> tirx.PrimFunc:
    """The kernel ``(pages[pages, *before, page], state[*before, S, row])``, which widens all rows of a state."""
    each, _ = _each_row(problem, _widen_row)

    @T.prim_func
    def kernel(pages: T.handle, state: T.handle):
        T.func_attr(ATTRIBUTES)
        each(state, pages, lambda at: (T.int64(0), lambda number: number >= 0))

    return kernel


def _why_not(problem: AppendProblem) -> str | None:
    return problem.why_not_rows if problem.stored == INT8_ROWS else f"{problem.stored} in memory; expected int8"


PAGE_ROWS = Kernel(
    "page_rows",
    "pages[i] = state[i], for a run that is given it",
    page_rows,
    how=lambda problem, _: f"a warp rounds a row; {problem.stored} in memory",
    why_not=lambda problem, _: _why_not(problem),
)
UNPAGE_ROWS = Kernel(
    "unpage_rows",
    "state[i] = pages[i], for a run that returns it",
    unpage_rows,
    how=lambda problem, _: f"{problem.stored} in memory becomes {problem.new}",
    why_not=lambda problem, _: _why_not(problem),
)
