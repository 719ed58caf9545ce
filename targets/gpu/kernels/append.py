"""Append in place to a state that is stored in pages.

A thread copies a few neighbouring numbers with one load and one store, if the axes after the growing one allow that.
Neighbouring threads copy neighbouring numbers of the new tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.append_places import placed
from moec.targets.gpu.kernels.append_rows import append_rows
from moec.targets.gpu.kernels.launch import BESIDE, EARLY_ATTRIBUTES, TAKES, blocks_for, indices_of
from moec.targets.tvm.kernels.int8_rows import INT8_ROWS
from moec.targets.tvm.kernels.kernel import Kernel, why_not_stored
from moec.targets.tvm.lowering.paged_tensors import AppendProblem

THREADS = 256
_TOGETHER = 4
"""Numbers of a thread: 16 bytes of float32, 8 bytes of a 16-bit type."""


@functools.cache
def append(problem: AppendProblem) -> tirx.PrimFunc:
    """The kernel ``(start[1], new[*before, S, *after], pages[pages, *before, page, *after])``: entry i of ``new`` along
    S becomes entry ``start[0] + i`` of the state. ``start`` is int64 in the device's memory, so that a captured launch
    appends wherever the state ends when it is replayed.

    If the problem has starts, the kernel is ``(length[1], starts[B], new[B, ..., S, *after], pages[pages, B, ..., page,
    *after])``, and each index of the first axis has its own start. ``length`` is int64.

    If places are given by entry, the kernel is ``(places[S], new[1, ..., S, *after], pages[pages, 1, ..., page,
    *after])``, and entry i becomes entry ``places[i]`` of all pages one after the other.

    Float32 rows that are stored in int8 have a kernel of their own, :mod:`.append_rows`.

    Entries that would lie before 0, from ``length`` on or behind the last page are skipped: no number in memory makes
    the kernel write outside of the pages.
    """
    if problem.stored == INT8_ROWS:
        return append_rows(problem)
    before, after = (_sizes(sizes, name) for sizes, name in ((problem.before, "b"), (problem.after, "a")))
    pages, page, S = (tirx.Var(name, "int32") for name in ("pages", "page", "S"))
    together = _TOGETHER if problem.after and (problem.after[-1] or 1) % _TOGETHER == 0 else 1
    rank = len(before)

    @T.inline
    def write(new_handle, pages_handle, place_of):
        new = T.match_buffer(new_handle, (*before, S, *after), problem.new)
        held = T.match_buffer(pages_handle, (pages, *before, page, *after), problem.stored)
        T.device_entry()
        count = T.meta_var(T.int64(1) * math.prod([*before, S, *after[:-1]]) * (_last(after) // together))
        block = T.cta_id([T.cast(blocks_for(count, THREADS), "int32")])
        thread = T.thread_id([THREADS])
        index: T.let = T.cast(block, "int64") * THREADS + thread
        if index < count:
            at = T.meta_var(indices_of(index, [*before, S, *after], together))
            first, is_there = T.meta_var(place_of(at))
            number: T.let = first + at[rank]
            to = T.meta_var([number // page, *at[:rank], number % page, *at[rank + 1 :]])
            if T.And(is_there(number), number < T.cast(pages, "int64") * page):
                for v in T.vectorized(together):
                    held[_beside(to, v, after)] = T.cast(new[_beside(at, v, after)], problem.stored)

    kernel = placed(problem, before, S, EARLY_ATTRIBUTES, write)
    # An element that is computed in 16 bits is rounded once more where it is stored in another type of 16 bits.
    is_rounded = problem.new != "float32" and problem.new != problem.stored
    kernel = kernel.with_attr(BESIDE, True)
    return kernel if is_rounded else kernel.with_attr(TAKES, 2 if problem.starts and not problem.by_entry else 1)


def _sizes(sizes: Sequence[int | None], name: str) -> list[Any]:
    return [tirx.Var(f"{name}{axis}", "int32") if size is None else size for axis, size in enumerate(sizes)]


def _last(after: Sequence[Any]) -> Any:
    return after[-1] if after else 1


def _beside(at: Sequence[Any], v: Any, after: Sequence[Any]) -> tuple[Any, ...]:
    """The indices of the ``v``-th number of the group whose first number is ``at``."""
    return (*at[:-1], at[-1] + v) if after else tuple(at)


APPEND = Kernel(
    "append",
    "pages[start[0] + i] = new[i], in place",
    append,
    how=lambda problem, _: f"what is there stays where it lies; {problem.stored} in memory",
    why_not=lambda problem, _: (
        problem.why_not_rows if problem.stored == INT8_ROWS else why_not_stored(problem.new, problem.stored)
    ),
)
