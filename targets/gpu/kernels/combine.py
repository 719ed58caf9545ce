"""Combine: the weighted sum of the experts' results for a token, in the order of the token's slots.

A thread computes neighbouring columns of one token, as many as it reads with 16 bytes. Every sum has one fixed order,
without atomics. Rows of pairs may have more columns than tokens have, so that each row begins at a multiple of 16
bytes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.launch import EARLY_ATTRIBUTES, WARP, read_at_once
from moec.targets.tvm.heavy.experts import CombineProblem, PlacedRows
from moec.targets.tvm.kernels.activation import within
from moec.targets.tvm.kernels.kernel import Kernel, why_not_stored

_MOST_THREADS = 64


@dataclasses.dataclass(frozen=True)
class _ColumnPartition:
    """The partition of a row's ``width`` columns among threads: each thread has ``together`` columns, in ``blocks``
    blocks of ``threads`` threads per row. Trailing threads of the last block may have none."""

    width: int
    together: int

    @staticmethod
    def of(problem: CombineProblem) -> _ColumnPartition:
        return _ColumnPartition(problem.width, read_at_once(problem.columns, problem.dtype, problem.pair_dtype))

    @property
    def parts(self) -> int:
        return -(-self.width // self.together)

    @property
    def blocks(self) -> int:
        return -(-self.parts // _MOST_THREADS)

    @property
    def threads(self) -> int:
        return -(-self.parts // self.blocks // WARP) * WARP

    def aligned(self, tensor: Any) -> int:
        """The columns of a tensor that one load or store moves: at most ``together``, fewer if its rows are not all
        aligned to as many."""
        return math.gcd(int(tensor.shape[1]), self.together)


@T.inline
def _start(columns, rows, body):
    """Launch threads for all rows, and emit ``body(row, part)`` for each thread that has columns: those of ``part``,
    the part-th group of ``together`` columns."""
    index = T.cta_id([T.max(rows, 1) * columns.blocks])
    thread = T.thread_id([columns.threads])
    row: T.let = index // columns.blocks
    part: T.let = index % columns.blocks * columns.threads + thread
    if T.And(row < rows, part < columns.parts):
        body(row, part)


@T.inline
def _add(columns, total, factor, source, dtype, row, part, limit):
    """Add ``factor * source[row]`` to ``total``, with numbers of the source clamped to the limit. Factor None is 1."""
    stored = T.alloc_local((columns.together,), dtype)
    aligned = T.meta_var(columns.aligned(source))
    for i in T.unroll(columns.together // aligned):
        first = T.meta_var(part * columns.together + i * aligned)
        # Columns beyond the last are read from the last ones; their results are not stored.
        own = T.meta_var(first if aligned == columns.together else T.min(first, int(source.shape[1]) - aligned))
        for v in T.vectorized(aligned):
            stored[i * aligned + v] = source[row, own + v]
    for v in T.unroll(columns.together):
        value: T.let = within(limit, T.cast(stored[v], "float32"))
        total[v] = total[v] + (value if factor is None else factor * value)


@T.inline
def _clear(columns, total):
    for v in T.unroll(columns.together):
        total[v] = T.float32(0)


@T.inline
def _store(columns, total, y, dtype, row, part):
    stored = T.alloc_local((columns.together,), dtype)
    for v in T.unroll(columns.together):
        stored[v] = T.cast(total[v], dtype)
    aligned = T.meta_var(columns.aligned(y))
    for i in T.unroll(columns.together // aligned):
        first = T.meta_var(part * columns.together + i * aligned)
        if aligned == columns.together or first < columns.width:
            for v in T.vectorized(aligned):
                y[row, first + v] = stored[i * aligned + v]


def combine(problem: CombineProblem) -> tirx.PrimFunc:
    """The kernel ``(x[T, width], weights[T, k], experts[T, k], pairs[T * k, columns], y[T, width])``; T may be 0.

    ``y[t] = sum over slots of w * pairs[t * k + slot]`` for ids in [0, E), with w = 1 unless ``weighted``, and pairs
    clamped to [-limit, limit] if ``limit`` > 0. An id in [E, E + identity_experts) adds the token itself times its
    routing weight. Any other id adds nothing. Sums are float32.
    """
    E, width, dtype = problem.experts, problem.width, problem.dtype
    columns = _ColumnPartition.of(problem)

    @T.prim_func
    def kernel(
        x_handle: T.handle,
        weights_handle: T.handle,
        experts_handle: T.handle,
        pairs_handle: T.handle,
        y_handle: T.handle,
    ):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        P = T.int32()
        x = T.match_buffer(x_handle, (tokens, width), dtype)
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.weight_dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        pairs = T.match_buffer(pairs_handle, (P, problem.columns), problem.pair_dtype)
        y = T.match_buffer(y_handle, (tokens, width), dtype)
        T.device_entry()

        @T.inline
        def sum_slots(token, part):
            total = T.alloc_local((columns.together,), "float32")
            _clear(columns, total)
            for slot in T.serial(slots):
                expert: T.let = chosen[token, slot]
                weight: T.let = T.cast(weights[token, slot], "float32")
                if T.And(expert >= 0, expert < E):
                    pair: T.let = T.cast(token * slots + slot, "int64")
                    factor = T.meta_var(weight if problem.weighted else None)
                    _add(columns, total, factor, pairs, problem.pair_dtype, pair, part, problem.limit)
                if problem.identity_experts > 0:  # at compile time; the next test is at run time  # noqa: SIM102
                    if T.And(expert >= E, expert < E + problem.identity_experts):
                        _add(columns, total, weight, x, dtype, T.cast(token, "int64"), part, 0)
            _store(columns, total, y, dtype, T.cast(token, "int64"), part)

        _start(columns, tokens, sum_slots)

    return kernel


def combine_placed(problem: PlacedRows) -> tirx.PrimFunc:
    """The kernel ``(rows[R, width], weights[T, k], positions[T, k], y[T, width])`` for the weighted sum of a token's
    rows. A position outside [0, R) adds nothing. T may be 0."""
    width, dtype = problem.width, problem.dtype
    columns = _ColumnPartition(width, read_at_once(width, dtype))

    @T.prim_func
    def kernel(rows_handle: T.handle, weights_handle: T.handle, positions_handle: T.handle, y_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        R = T.int32()
        rows = T.match_buffer(rows_handle, (R, width), dtype)
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.weight_dtype)
        positions = T.match_buffer(positions_handle, (tokens, slots), "int32")
        y = T.match_buffer(y_handle, (tokens, width), dtype)
        T.device_entry()

        @T.inline
        def sum_rows(token, part):
            total = T.alloc_local((columns.together,), "float32")
            _clear(columns, total)
            for slot in T.serial(slots):
                row: T.let = positions[token, slot]
                if T.And(row >= 0, row < R):
                    weight: T.let = T.cast(weights[token, slot], "float32")
                    _add(columns, total, weight, rows, dtype, T.cast(row, "int64"), part, 0)
            _store(columns, total, y, dtype, T.cast(token, "int64"), part)

        _start(columns, tokens, sum_rows)

    return kernel


def trim(problem: CombineProblem) -> tirx.PrimFunc:
    """The kernel ``(experts[R, 1], rows[R, columns], y[R, width])``: the rows without padding columns, in the type of
    the result; rows whose id is not an expert are zero."""
    E, width, dtype = problem.experts, problem.width, problem.dtype
    columns = _ColumnPartition.of(problem)

    @T.prim_func
    def kernel(experts_handle: T.handle, rows_handle: T.handle, y_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        R = T.int32()
        chosen = T.match_buffer(experts_handle, (R, 1), "int32")
        rows = T.match_buffer(rows_handle, (R, problem.columns), problem.pair_dtype)
        y = T.match_buffer(y_handle, (R, width), dtype)
        T.device_entry()

        @T.inline
        def copy_row(row, part):
            value = T.alloc_local((columns.together,), "float32")
            _clear(columns, value)
            expert: T.let = chosen[row, 0]
            if T.And(expert >= 0, expert < E):
                _add(columns, value, None, rows, problem.pair_dtype, T.cast(row, "int64"), part, 0)
            _store(columns, value, y, dtype, T.cast(row, "int64"), part)

        _start(columns, R, copy_row)

    return kernel


_COPIED = "16 bytes of columns per thread"
_HOW = f"{_COPIED}, slots in their order"


def _why_not(problem: CombineProblem, machine: str) -> str | None:
    return why_not_stored(problem.dtype, problem.weight_dtype, problem.pair_dtype)


COMBINE = Kernel(
    "combine",
    "y[t] = sum over slots of weight * result of the pair",
    combine,
    lambda problem, _: _HOW,
    _why_not,
)
COMBINE_PLACED = Kernel(
    "combine_placed",
    "y[t] = sum over slots of weight * rows[position of the slot]",
    combine_placed,
    lambda problem, _: _HOW,
    lambda problem, _: why_not_stored(problem.dtype, problem.weight_dtype),
)
TRIM = Kernel("trim", "y[r] = rows[r]; 0 where the row has no expert", trim, lambda problem, _: _COPIED, _why_not)
