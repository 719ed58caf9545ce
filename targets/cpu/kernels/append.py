"""Writing behind a state that lies in pages, where it lies."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, named, parallel_rows
from moec.targets.tvm.held_states import AppendProblem
from moec.targets.tvm.kernel import Kernel, why_not_stored
from moec.targets.tvm.te_kernels import Requirement, checked


@functools.cache
def append(problem: AppendProblem) -> tirx.PrimFunc:
    """The kernel ``(start, new[*before, S, *after], pages[pages, *before, page, *after])``: number i of ``new`` becomes
    number ``start + i`` of what lies in the pages. Raises, before it writes, where they end before that."""
    before = [_size(size, f"b{axis}") for axis, size in enumerate(problem.before)]
    after = [_size(size, f"a{axis}") for axis, size in enumerate(problem.after)]
    parameters = [
        Parameter("new", (*before, "S", *after), problem.new),
        Parameter("pages", ("pages", *before, "page", *after), problem.stored),
    ]

    def body(start: Any, new: Any, pages: Any) -> None:
        rank = len(before)
        width = [size for size in problem.after if size is not None]
        with loop("row", parallel_rows(math.prod(new.shape[: rank + 1]), math.prod(width))) as row:
            *head, number = _indices(row, new.shape[: rank + 1])
            place = named("place", T.bind(start + number))
            page, inside = place // pages.shape[rank + 1], place % pages.shape[rank + 1]
            _copy(new, [*head, number], pages, [page, *head, inside], new.shape[rank + 1 :])

    function = emit_kernel(parameters, body, numbers=("start",))
    start, new, pages = function.params
    rank = len(before)
    there = pages.ty.shape[0] * pages.ty.shape[rank + 1]
    end = start + new.ty.shape[rank]
    return checked(function, [Requirement(end <= there, "a state outgrows its memory; expected room for all of it")])


def _size(size: int | None, name: str) -> int | str:
    return name if size is None else size


def _indices(flat: Any, sizes: Sequence[Any]) -> list[Any]:
    """What a flat index is in each axis."""
    found: list[Any] = []
    for axis, size in reversed(list(enumerate(sizes))):
        found.append(named(f"i{axis}", T.bind(flat % size if axis else flat)))
        flat = named(f"rest{axis}", T.bind(flat // size)) if axis else flat
    return found[::-1]


def _copy(source: Any, at: list[Any], target: Any, to: list[Any], sizes: Sequence[Any]) -> None:
    if not sizes:
        T.buffer_store(target, T.cast(source[tuple(at)], target.dtype), to)
        return
    is_last = len(sizes) == 1 and isinstance(sizes[0], (int, tirx.IntImm))
    with loop("column", T.vectorized(sizes[0]) if is_last else T.serial(sizes[0])) as column:
        _copy(source, [*at, column], target, [*to, column], sizes[1:])


APPEND = Kernel(
    "append",
    "pages[start + i] = new[i], in place",
    append,
    how=lambda problem, _: f"what is there stays where it lies; {problem.stored} in memory",
    why_not=lambda problem, _: why_not_stored(problem.new, problem.stored),
)
