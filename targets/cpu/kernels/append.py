"""Append to a state in pages, in place; copy a whole state to pages and back."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, named, parallel_rows
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
from moec.targets.tvm.kernels.kernel import Kernel, why_not_stored
from moec.targets.tvm.kernels.te_kernels import Requirement, checked
from moec.targets.tvm.lowering.paged_tensors import AppendProblem


@functools.cache
def append(problem: AppendProblem) -> tirx.PrimFunc:
    """The kernel ``(start, new[*before, S, *after], pages[pages, *before, page, *after])``: index i of ``new``
    is written to index ``start + i`` of the state. Raises, before it writes, where the pages have no room for all.

    Where the problem has starts: ``(length, starts[B], new[B, ..., S, *after], pages[pages, B, ..., page, *after])``,
    with a start for each entry of the first axis. Indices outside of [0, length) are not written.

    Where the problem has places by entry: ``(places[S], new[*before, S, *after], pages)``, and index i of ``new`` is
    written to index ``places[i]`` of all the pages one after the other; to none where that is outside of them.
    """
    if problem.by_entry:
        return _write_each(problem)
    if problem.starts:
        return _write_at(problem)
    before = [_size(size, f"b{axis}") for axis, size in enumerate(problem.before)]
    after = [_size(size, f"a{axis}") for axis, size in enumerate(problem.after)]
    parameters = [
        Parameter("new", (*before, "S", *after), problem.new),
        _pages(problem, before, after),
    ]

    def body(start: Any, new: Any, pages: Any) -> None:
        emit = _round_row if problem.stored == INT8_ROWS else _write_part
        _each_part(problem, new, pages, lambda _head, _entry: start, emit)

    function = emit_kernel(parameters, body, numbers=("start",))
    start, new, pages = function.params
    rank = len(before)
    there = pages.ty.shape[0] * _numbers(problem, pages.ty.shape)
    end = start + new.ty.shape[rank]
    return checked(function, [Requirement(end <= there, "a state outgrows its memory; expected room for all of it")])


def _write_at(problem: AppendProblem) -> tirx.PrimFunc:
    before = [_size(size, f"b{axis}") for axis, size in enumerate(problem.before)]
    after = [_size(size, f"a{axis}") for axis, size in enumerate(problem.after)]
    parameters = [
        Parameter("starts", before[:1], problem.starts),
        Parameter("new", (*before, "S", *after), problem.new),
        _pages(problem, before, after),
    ]

    def body(length: Any, starts: Any, new: Any, pages: Any) -> None:
        def start(head: Sequence[Any], _entry: Any) -> Any:
            return T.cast(starts[head[0]], "int64")

        emit = _round_row if problem.stored == INT8_ROWS else _write_part
        _each_part(problem, new, pages, start, emit, length)

    function = emit_kernel(parameters, body, numbers=("length",))
    length, _, _, pages = function.params
    there = pages.ty.shape[0] * _numbers(problem, pages.ty.shape)
    return checked(function, [Requirement(length <= there, "a state outgrows its memory; expected room for all of it")])


def _write_each(problem: AppendProblem) -> tirx.PrimFunc:
    before = [_size(size, f"b{axis}") for axis, size in enumerate(problem.before)]
    after = [_size(size, f"a{axis}") for axis, size in enumerate(problem.after)]
    parameters = [
        Parameter("places", ("S",), problem.starts),
        Parameter("new", (*before, "S", *after), problem.new),
        _pages(problem, before, after),
    ]

    def body(places: Any, new: Any, pages: Any) -> None:
        def start(head: Sequence[Any], entry: Any) -> Any:
            return T.cast(places[entry], "int64") - entry

        emit = _round_row if problem.stored == INT8_ROWS else _write_part
        _each_part(problem, new, pages, start, emit, pages.shape[0] * _numbers(problem, pages.shape))

    return emit_kernel(parameters, body)


@functools.cache
def unpage(problem: AppendProblem) -> tirx.PrimFunc:
    """The kernel ``(pages[pages, *before, page, *after], state[*before, S, *after])``: all of a state, of type
    ``problem.new``, from pages that hold as much or more. Raises, before it writes, where they hold less."""
    before = [_size(size, f"b{axis}") for axis, size in enumerate(problem.before)]
    after = [_size(size, f"a{axis}") for axis, size in enumerate(problem.after)]
    parameters = [
        _pages(problem, before, after),
        Parameter("state", (*before, "S", *after), problem.new),
    ]

    def body(pages: Any, state: Any) -> None:
        emit = _widen_row if problem.stored == INT8_ROWS else _read_part
        _each_part(problem, state, pages, lambda _head, _entry: T.int64(0), emit)

    function = emit_kernel(parameters, body)
    pages, state = function.params
    rank = len(before)
    there = pages.ty.shape[0] * _numbers(problem, pages.ty.shape)
    length = state.ty.shape[rank]
    return checked(function, [Requirement(length <= there, "a state has more than its pages; expected no more")])


def _pages(problem: AppendProblem, before: Sequence[int | str], after: Sequence[int | str]) -> Parameter:
    """The pages; of int8 they are [pages, *before, page], see :mod:`moec.targets.tvm.kernels.int8_rows`."""
    inner = [] if problem.stored == INT8_ROWS else after
    return Parameter("pages", ("pages", *before, "page", *inner), problem.stored)


def _numbers(problem: AppendProblem, pages: Sequence[Any]) -> Any:
    """Indices of the growing axis that fit in a page."""
    page = pages[len(problem.before) + 1]
    return rows_in(page, problem.row) if problem.stored == INT8_ROWS else page


def _each_part(
    problem: AppendProblem,
    state: Any,
    pages: Any,
    start: Callable[[Sequence[Any], Any], Any],
    emit: Callable[..., None],
    length: Any = None,
) -> None:
    """Emit ``emit(state, at, pages, place)`` for each index of the axes up to the growing one.

    ``at`` is this index in the state and ``place`` in the pages, where entry i along the growing axis is entry
    ``start(indices before that axis, i) + i`` of the pages. With ``length``, places outside of [0, length) are left
    out."""
    rank = len(problem.before)
    width = [size for size in problem.after if size is not None]
    with loop("row", parallel_rows(math.prod(state.shape[: rank + 1]), math.prod(width))) as row:
        *head, number = _indices(row, state.shape[: rank + 1])
        place, page = named("place", T.bind(start(head, number) + number)), _numbers(problem, pages.shape)
        arguments = state, [*head, number], pages, [place // page, *head, place % page]
        if length is None:
            emit(*arguments)
            return
        with T.If(T.And(place >= 0, place < length)), T.Then():
            emit(*arguments)


def _size(size: int | None, name: str) -> int | str:
    return name if size is None else size


def _indices(flat: Any, sizes: Sequence[Any]) -> list[Any]:
    """Emit the index on each axis of an array of these sizes for a flat index."""
    digits: list[Any] = []
    for axis, size in reversed(list(enumerate(sizes))):
        digits.append(named(f"i{axis}", T.bind(flat % size if axis else flat)))
        flat = named(f"rest{axis}", T.bind(flat // size)) if axis else flat
    return digits[::-1]


def _write_part(state: Any, at: list[Any], pages: Any, place: list[Any]) -> None:
    _copy(state, at, pages, place, state.shape[len(at) :])


def _read_part(state: Any, at: list[Any], pages: Any, place: list[Any]) -> None:
    _copy(pages, place, state, at, state.shape[len(at) :])


def _copy(source: Any, at: list[Any], target: Any, to: list[Any], sizes: Sequence[Any]) -> None:
    if not sizes:
        T.buffer_store(target, T.cast(source[tuple(at)], target.dtype), to)
        return
    is_last = len(sizes) == 1 and isinstance(sizes[0], (int, tirx.IntImm))
    with loop("column", T.vectorized(sizes[0]) if is_last else T.serial(sizes[0])) as column:
        _copy(source, [*at, column], target, [*to, column], sizes[1:])


def _why_not(problem: AppendProblem) -> str | None:
    return problem.why_not_rows if problem.stored == INT8_ROWS else why_not_stored(problem.new, problem.stored)


def _round_row(state: Any, at: list[Any], pages: Any, place: list[Any]) -> None:
    *first, inside = place
    size, page = int(state.shape[-1]), pages.shape[-1]
    largest = named("largest", T.alloc_buffer((1,), "int32"))
    T.buffer_store(largest, T.int32(0), [0])
    with loop("column", T.serial(size)) as column:
        T.buffer_store(largest, T.max(largest[0], magnitude(state[(*at, column)])), [0])
    scale = named("scale", T.bind(scale_of(largest[0])))
    with loop("column", T.vectorized(size)) as column:
        number = T.cast(whole_number(state[(*at, column)], scale), "int32")
        T.buffer_store(pages, T.cast(number, pages.dtype), [*first, inside * size + column])
    for part, byte in enumerate(bytes_of(scale)):
        T.buffer_store(pages, byte, [*first, scale_at(page, size, inside) + part])


def _widen_row(state: Any, at: list[Any], pages: Any, place: list[Any]) -> None:
    *first, inside = place
    size, page = int(state.shape[-1]), pages.shape[-1]
    begin = named("begin", T.bind(scale_at(page, size, inside)))
    scale = named("scale", T.bind(scale_from(pages[(*first, begin)], pages[(*first, begin + 1)])))
    with loop("column", T.vectorized(size)) as column:
        number = T.cast(pages[(*first, inside * size + column)], state.dtype)
        T.buffer_store(state, number * scale, [*at, column])


APPEND = Kernel(
    "append",
    "pages[start + i] = new[i], in place",
    append,
    how=lambda problem, _: f"what is there stays where it lies; {problem.stored} in memory",
    why_not=lambda problem, _: _why_not(problem),
)
PAGE_STATE = dataclasses.replace(APPEND, name="page_state", computes="pages[i] = state[i], for a run that is given it")
UNPAGE_STATE = Kernel(
    "unpage_state",
    "state[i] = pages[i], for a run that returns it",
    unpage,
    how=lambda problem, _: f"{problem.stored} in memory becomes {problem.new}",
    why_not=lambda problem, _: _why_not(problem),
)
