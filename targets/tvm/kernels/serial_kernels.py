"""Kernels whose results depend on each other in order: they run in a fixed order, in one thread or one per row.

Callers reshape operands to two or three dims, so that one kernel serves every rank. Each kernel is built once per
process, because parsing a script takes longer than lowering an operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.tvm.kernels.comparisons import maximum, minimum


def combination(reduction: str) -> Callable[[Any, Any], Any]:
    """Function (element, update) -> new element of a scatter with the ``reduction``."""
    return {
        "none": lambda old, new: new,
        "add": lambda old, new: old + new,
        "mul": lambda old, new: old * new,
        "max": maximum,
        "min": minimum,
    }[reduction]


@functools.cache
def scatter_rows(dtype: str, reduction: str) -> tirx.PrimFunc:
    """``result = data``; then in order of n: ``result[rows[n]] = combine(result[rows[n]], updates[n])``.

    data, result [P, inner]; rows int64 [N], a row of -1 is skipped; updates [N, inner].
    """
    combine = combination(reduction)

    @T.prim_func(private=True, s_tir=True)
    def kernel(data: T.handle, rows: T.handle, updates: T.handle, result: T.handle):
        T.func_attr({"tirx.noalias": True})
        P = T.int64()
        N = T.int64()
        inner = T.int64()
        Data = T.match_buffer(data, (P, inner), dtype)
        Rows = T.match_buffer(rows, (N,), "int64")
        Updates = T.match_buffer(updates, (N, inner), dtype)
        Result = T.match_buffer(result, (P, inner), dtype)
        for p in T.serial(P):
            for i in T.serial(inner):
                Result[p, i] = Data[p, i]
        for n in T.serial(N):
            if Rows[n] >= T.int64(0):
                for i in T.serial(inner):
                    Result[Rows[n], i] = combine(Result[Rows[n], i], Updates[n, i])

    return kernel


@functools.cache
def cumulative(dtype: str, product: bool, exclusive: bool, reverse: bool) -> tirx.PrimFunc:
    """Running sum or product along the middle dim of [outer, N, inner]; ``exclusive`` leaves out the element itself."""
    first: Any = tirx.const(1 if product else 0, dtype)

    def combined(left: Any, right: Any) -> Any:
        return left * right if product else left + right

    def position(step: Any, count: Any) -> Any:
        return count - 1 - step if reverse else step

    def stored(before: Any, after: Any) -> Any:
        return before if exclusive else after

    @T.prim_func(private=True, s_tir=True)
    def kernel(source: T.handle, result: T.handle):
        T.func_attr({"tirx.noalias": True})
        outer = T.int64()
        N = T.int64()
        inner = T.int64()
        Source = T.match_buffer(source, (outer, N, inner), dtype)
        Result = T.match_buffer(result, (outer, N, inner), dtype)
        for row in T.parallel(outer * inner):
            o: T.let = row // inner
            i: T.let = row % inner
            total = T.alloc_buffer((2,), dtype, scope="local")
            total[0] = first
            for n in T.serial(N):
                total[1] = combined(total[0], Source[o, position(n, N), i])
                Result[o, position(n, N), i] = stored(total[0], total[1])
                total[0] = total[1]

    return kernel


@functools.cache
def top_k(dtype: str, largest: bool) -> tirx.PrimFunc:
    """The k best of each row, best first; of equal ones the one with the lower index comes first.

    source [rows, N]; values [rows, k], indices int64 [rows, k]. Insertion into a sorted list: O(N k) at worst, O(N)
    where few elements enter the list.
    """

    def better(left: Any, right: Any) -> Any:
        return left > right if largest else left < right

    @T.prim_func(private=True, s_tir=True)
    def kernel(source: T.handle, values: T.handle, indices: T.handle):
        T.func_attr({"tirx.noalias": True})
        rows = T.int64()
        N = T.int64()
        k = T.int64()
        Source = T.match_buffer(source, (rows, N), dtype)
        Values = T.match_buffer(values, (rows, k), dtype)
        Indices = T.match_buffer(indices, (rows, k), "int64")
        for r in T.parallel(rows):
            place = T.alloc_buffer((1,), "int64", scope="local")
            for n in T.serial(N):
                place[0] = T.min(n, k)
                while place[0] > T.int64(0) and better(Source[r, n], Values[r, T.max(place[0] - 1, T.int64(0))]):
                    if place[0] < k:
                        Values[r, place[0]] = Values[r, place[0] - 1]
                        Indices[r, place[0]] = Indices[r, place[0] - 1]
                    place[0] = place[0] - 1
                if place[0] < k:
                    Values[r, place[0]] = Source[r, n]
                    Indices[r, place[0]] = n

    return kernel


@functools.cache
def count_nonzero() -> tirx.PrimFunc:
    """Count the true elements of a bool [P]; the result is int64 [1]."""

    @T.prim_func(private=True, s_tir=True)
    def kernel(mask: T.handle, count: T.handle):
        T.func_attr({"tirx.noalias": True})
        P = T.int64()
        Mask = T.match_buffer(mask, (P,), "bool")
        Count = T.match_buffer(count, (1,), "int64")
        Count[0] = T.int64(0)
        for p in T.serial(P):
            if Mask[p]:
                Count[0] = Count[0] + T.int64(1)

    return kernel


@functools.cache
def positions_of_nonzero() -> tirx.PrimFunc:
    """The indices of the true elements of a bool [P], in order, as int64 [M]; M is their number."""

    @T.prim_func(private=True, s_tir=True)
    def kernel(mask: T.handle, positions: T.handle):
        T.func_attr({"tirx.noalias": True})
        P = T.int64()
        M = T.int64()
        Mask = T.match_buffer(mask, (P,), "bool")
        Positions = T.match_buffer(positions, (M,), "int64")
        found = T.alloc_buffer((1,), "int64", scope="local")
        found[0] = T.int64(0)
        for p in T.serial(P):
            if Mask[p] and found[0] < M:
                Positions[found[0]] = p
                found[0] = found[0] + T.int64(1)

    return kernel
