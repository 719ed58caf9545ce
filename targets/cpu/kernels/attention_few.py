"""Attention with few rows, as in decoding: a task is one head of keys and values and one block of its keys.

The keys are read once, as they lie in memory: a score is a product of two vectors along the head. They are prefetched,
and so are the values meanwhile, because a block is too short for the hardware's own prefetcher. Each task leaves the
largest score, the sum of exponentials and the weighted sum of values of its block; a second step joins the blocks of
each row in ascending order.
"""

from __future__ import annotations

from typing import Any

from tvm import DataType
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.attention_problem import LOWEST, AttentionBuffers
from moec.targets.cpu.kernels.elementary import exponential, sums_of_lanes
from moec.targets.cpu.kernels.emit import column_parts, loop, named, quotient, remainder
from moec.targets.cpu.kernels.register_tile import (
    CACHE_LINE_FLOATS,
    PREFETCH_DISTANCE,
    accumulate,
    emit_row_tiles,
    prefetch,
)
from moec.targets.tvm.text.steps import begin_step

KEYS_PER_TASK = 256
ROW_TILE = 4
_JOIN_IN_PARALLEL = 16384
"""From so many elements on, joining is shared by the threads."""
_LARGEST, _TOTAL = range(2)


def attend_with_few_rows(operands: AttentionBuffers, machine: Machine) -> None:
    """Emit the code for at most ``few_rows`` rows."""
    rows = T.int64(operands.few_rows) if operands.problem.sequences else operands.rows(T.int64(0))
    most = named("most", T.bind(T.max(T.ceildiv(operands.keys, T.int64(KEYS_PER_TASK)), T.int64(1))))
    heads = named("heads", T.bind(operands.batches * operands.groups))
    sums = named("sums", T.alloc_buffer((heads * most, rows, operands.problem.value_size), "float32"))
    statistics = named("statistics", T.alloc_buffer((heads * most, rows, 2), "float32"))
    used = T.ceildiv(operands.most_keys(), T.int64(KEYS_PER_TASK))
    before = T.int64(0)
    if operands.problem.window:
        before = named("before", T.bind(operands.least_first_key() // KEYS_PER_TASK))
    chunks = named("chunks", T.bind(T.max(used - before, T.int64(1))))
    with loop("task", T.parallel(heads * chunks)) as task:
        _KeyBlock(operands, machine, task, before, chunks, sums, statistics).emit()
    with T.If(heads * chunks * rows * operands.problem.value_size >= _JOIN_IN_PARALLEL):
        with T.Then(), loop("item", T.parallel(heads * rows)) as item:
            _join(operands, item, rows, chunks, sums, statistics)
        with T.Else(), loop("item", T.serial(heads * rows)) as item:
            _join(operands, item, rows, chunks, sums, statistics)


def _is_own(operands: AttentionBuffers, batch: Any, row: Any) -> Any:
    """Whether a sequence has the row, and few rows."""
    rows = operands.rows(batch)
    return T.And(row < rows, rows <= operands.few_rows)


class _KeyBlock:
    """The code of one task."""

    def __init__(
        self,
        operands: AttentionBuffers,
        machine: Machine,
        task: Any,
        before: Any,
        chunks: Any,
        sums: Any,
        statistics: Any,
    ) -> None:
        self._operands, self._lanes, self._width = operands, machine.lanes, 2 * machine.column_tile
        self._task, self._sums, self._statistics = task, sums, statistics
        head, groups = (
            named("head", T.bind(quotient(task, chunks))),
            named("groups", T.bind(T.max(operands.groups, T.int64(1)))),
        )
        self._group, self._batch = (
            named("group", T.bind(remainder(head, groups))),
            named("batch", T.bind(quotient(head, groups))),
        )
        self._first_key, most_keys = self._first_keys((before + remainder(task, chunks)) * KEYS_PER_TASK)
        *self._head, self._start = operands.place_of(self._batch, self._group, self._first_key)
        remaining = operands.last_frontier(self._batch) - self._first_key
        self._count = named("count", T.bind(T.max(T.min(most_keys, remaining), T.int64(0))))
        self._query = named("query", T.alloc_buffer((operands.few_rows, operands.problem.head_size), "float32"))
        self._partial = named("partial", T.alloc_buffer((ROW_TILE, self._lanes, self._lanes), "float32"))
        self._scores = named("scores", T.alloc_buffer((operands.few_rows, KEYS_PER_TASK), "float32"))

    def _first_keys(self, first: Any) -> tuple[Any, Any]:
        """The first key that the block of keys from ``first`` on works on, and how many follow in it: without vectors
        of keys that are before all windows."""
        if not self._operands.problem.window:
            return named("first_key", T.bind(first)), T.int64(KEYS_PER_TASK)
        first = named("first", T.bind(first))
        hidden = self._operands.first_key(self._batch, T.int64(0)) - first
        hidden = T.max(T.min(hidden, T.int64(KEYS_PER_TASK)), T.int64(0)) // self._lanes * self._lanes
        skipped = named("skipped", T.bind(hidden))
        return named("first_key", T.bind(first + skipped)), KEYS_PER_TASK - skipped

    def emit(self) -> None:
        rows = named("rows", T.bind(T.min(self._operands.rows(self._batch), T.int64(self._operands.few_rows))))
        if not self._operands.problem.sequences:
            self._emit(rows)
            return
        with T.If(self._operands.rows(self._batch) <= self._operands.few_rows), T.Then():
            self._emit(rows)

    def _emit(self, rows: Any) -> None:
        begin_step("queries, scaled")
        with loop("row", T.serial(rows)) as row:
            self._load_query(row)
        begin_step("scores: products with all keys of the block")
        emit_row_tiles(rows, ROW_TILE, self._compute_scores)
        if self._operands.in_int8:
            self._scale_scores(rows, self._operands.key)
        begin_step("exponentials relative to the largest score")
        with loop("row", T.serial(rows)) as row:
            self._mask_scores(row)
            self._exponentiate(row)
        if self._operands.in_int8:
            self._scale_scores(rows, self._operands.value)
        begin_step("sums of values, weighted by the exponentials")
        emit_row_tiles(rows, ROW_TILE, self._add_values)

    def _load_query(self, row: Any) -> None:
        operands, problem = self._operands, self._operands.problem
        head, query = operands.head_of(self._group, row), operands.query_of(row)
        with loop("d", T.serial(problem.head_size)) as d:
            element = T.cast(operands.query[(*operands.place_of_query(self._batch, head, query), d)], "float32")
            T.buffer_store(self._query, element * T.float32(problem.scale), [row, d])

    def _compute_scores(self, row: Any, height: int) -> None:
        """Emit the products of some rows with all keys: as many keys at a time as a vector has lanes, lane by lane, and
        then the sums over the lanes of all of them."""
        lanes = self._lanes
        with loop("step", T.serial(T.ceildiv(self._count, T.int64(lanes)))) as step:
            first = named("first", T.bind(step * lanes))
            with loop("key", T.serial(T.min(T.int64(lanes), self._count - first))) as key:
                self._prefetch(self._operands.key, first + key + PREFETCH_DISTANCE)
                self._prefetch(self._operands.value, first + key)
                for i in range(height):
                    self._multiply(row + i, i, first, key)
            for i in range(height):
                vectors = [self._partial[i, key, T.ramp(0, 1, lanes)] for key in range(lanes)]
                T.buffer_store(self._scores, sums_of_lanes(vectors, lanes), [row + i, T.ramp(first, 1, lanes)])

    def _prefetch(self, tensor: Any, key: Any) -> None:
        """Emit the prefetch of a key or value of the block, line by line."""
        size = self._operands.problem.head_size if tensor is self._operands.key else self._operands.problem.value_size
        per_line = 4 * CACHE_LINE_FLOATS // DataType(tensor.dtype).itemsize
        for column in range(0, size, per_line):
            prefetch(self._operands.element(tensor, self._head, self._start + key, column))

    def _multiply(self, row: Any, place: int, first: Any, key: Any) -> None:
        """Emit the products of a row with one key, as many sums as there are lanes."""
        lanes, size = self._lanes, self._operands.problem.head_size
        keys, start = self._operands.key, self._start + first + key

        def product(at: Any) -> Any:
            return T.cast(self._operands.element(keys, self._head, start, at), "float32") * self._query[row, at]

        with loop("lane", T.vectorized(lanes)) as lane:
            total = T.float32(0)
            for begin in range(0, size - lanes + 1, lanes):
                total = product(begin + lane) + total
            T.buffer_store(self._partial, total, [place, key, lane])
        for begin, width in column_parts(size % lanes, lanes):
            with loop("lane", T.vectorized(width)) as lane:
                total = product(size - size % lanes + begin + lane) + self._partial[place, key, lane]
                T.buffer_store(self._partial, total, [place, key, lane])

    def _scale_scores(self, rows: Any, tensor: Any) -> None:
        """Emit the product of each key's entry with the scale of that key, or of its value."""
        lanes, count = self._lanes, self._count
        scales = named("scales", T.alloc_buffer((KEYS_PER_TASK,), "float32"))
        self._operands.load_scales(tensor, self._head, self._start, count, lanes, scales)
        vectors = T.ceildiv(count, T.int64(lanes))
        with (
            loop("row", T.serial(rows)) as row,
            loop("vector", T.serial(vectors)) as vector,
            loop("lane", T.vectorized(lanes)) as lane,
        ):
            key = vector * lanes + lane
            T.buffer_store(self._scores, self._scores[row, key] * scales[key], [row, key])

    def _mask_scores(self, row: Any) -> None:
        operands, lanes = self._operands, self._lanes
        head, query = operands.head_of(self._group, row), operands.query_of(row)
        whole = named("whole", T.bind(self._count // lanes))
        frontier = named("frontier", T.bind(operands.frontier(self._batch, query)))
        first = named("first", T.bind(operands.first_key(self._batch, query))) if operands.problem.window else None
        with loop("vector", T.serial(whole)) as vector, loop("lane", T.vectorized(lanes)) as lane:
            self._mask_score(row, head, query, frontier, first, vector * lanes + lane)
        with loop("rest", T.serial(self._count % lanes)) as rest:
            self._mask_score(row, head, query, frontier, first, whole * lanes + rest)
        with loop("rest", T.serial(T.ceildiv(self._count, T.int64(lanes)) * lanes - self._count)) as rest:
            T.buffer_store(self._scores, T.float32(float("-inf")), [row, self._count + rest])

    def _mask_score(self, row: Any, head: Any, query: Any, frontier: Any, first: Any, key: Any) -> None:
        operands, score = self._operands, self._scores[row, key]
        if operands.caps:
            score = operands.capped(score)
        if operands.adds:
            score = score + operands.added_at(self._batch, head, query, self._first_key + key)
        if operands.problem.causal:
            hidden = operands.is_hidden(self._first_key + key, frontier, first)
            score = score + T.Select(hidden, T.float32(float("-inf")), T.float32(0))
        T.buffer_store(self._scores, score, [row, key])

    def _exponentiate(self, row: Any) -> None:
        """Turn a row of scores into exponentials relative to its largest score; note that and their sum."""
        lanes, vectors = self._lanes, named("vectors", T.bind(T.ceildiv(self._count, T.int64(self._lanes))))
        partial = named("partial", T.alloc_buffer((lanes,), "float32"))
        number = named("number", T.alloc_buffer((2,), "float32"))
        with loop("lane", T.vectorized(lanes)) as lane:
            T.buffer_store(partial, T.float32(LOWEST), [lane])
        with loop("vector", T.serial(vectors)) as vector, loop("lane", T.vectorized(lanes)) as lane:
            T.buffer_store(partial, T.max(partial[lane], self._scores[row, vector * lanes + lane]), [lane])
        T.buffer_store(number, T.float32(LOWEST), [_LARGEST])
        with loop("lane", T.unroll(lanes)) as lane:
            T.buffer_store(number, T.max(number[_LARGEST], partial[lane]), [_LARGEST])
        with loop("lane", T.vectorized(lanes)) as lane:
            T.buffer_store(partial, T.float32(0), [lane])
        with loop("vector", T.serial(vectors)) as vector:
            with loop("lane", T.vectorized(lanes)) as lane:
                power = exponential(self._scores[row, vector * lanes + lane] - number[_LARGEST])
                T.buffer_store(self._scores, power, [row, vector * lanes + lane])
            with loop("lane", T.vectorized(lanes)) as lane:
                T.buffer_store(partial, partial[lane] + self._scores[row, vector * lanes + lane], [lane])
        T.buffer_store(number, T.float32(0), [_TOTAL])
        with loop("lane", T.unroll(lanes)) as lane:
            T.buffer_store(number, number[_TOTAL] + partial[lane], [_TOTAL])
        for position in (_LARGEST, _TOTAL):
            T.buffer_store(self._statistics, number[position], [self._task, row, position])

    def _add_values(self, row: Any, height: int) -> None:
        value = self._operands.value
        for start, width in column_parts(self._operands.problem.value_size, self._width):
            sums = accumulate(
                height,
                width,
                self._count,
                lambda i, key: self._scores[row + i, key],
                lambda key, d, start=start: T.cast(
                    self._operands.element(value, self._head, self._start + key, start + d), "float32"
                ),
            )
            for i, total in sums.rows():
                with loop("d", T.vectorized(width)) as d:
                    T.buffer_store(self._sums, total[d], [self._task, row + i, start + d])


def _join(operands: AttentionBuffers, item: Any, rows: Any, chunks: Any, sums: Any, statistics: Any) -> None:
    """Emit the sum over the blocks of keys for one row of one head of keys and values, numbered by ``item``."""
    row, head = named("row", T.bind(remainder(item, rows))), named("head", T.bind(quotient(item, rows)))
    group, batch = (
        named("group", T.bind(remainder(head, operands.groups))),
        named("batch", T.bind(quotient(head, operands.groups))),
    )
    if operands.problem.sequences:
        with T.If(_is_own(operands, batch, row)), T.Then():
            _join_row(operands, batch, group, row, head, chunks, sums, statistics)
    else:
        _join_row(operands, batch, group, row, head, chunks, sums, statistics)


def _join_row(
    operands: AttentionBuffers,
    batch: Any,
    group: Any,
    row: Any,
    head: Any,
    chunks: Any,
    sums: Any,
    statistics: Any,
) -> None:
    size = operands.problem.value_size
    number = named("number", T.alloc_buffer((2,), "float32"))
    joined = named("joined", T.alloc_buffer((size,), "float32"))
    begin_step("the sum over the blocks of keys, in ascending order")
    query_head = operands.head_of(group, row)
    T.buffer_store(number, operands.first_largest(query_head), [_LARGEST])
    with loop("chunk", T.serial(chunks)) as chunk:
        largest = statistics[head * chunks + chunk, row, _LARGEST]
        T.buffer_store(number, T.max(number[_LARGEST], largest), [_LARGEST])
    T.buffer_store(number, operands.first_total(query_head, number[_LARGEST]), [_TOTAL])
    with loop("d", T.vectorized(size)) as d:
        T.buffer_store(joined, T.float32(0), [d])
    with loop("chunk", T.serial(chunks)) as chunk:
        task = named("task", T.bind(head * chunks + chunk))
        weight = named("weight", T.bind(exponential(statistics[task, row, _LARGEST] - number[_LARGEST])))
        T.buffer_store(number, number[_TOTAL] + weight * statistics[task, row, _TOTAL], [_TOTAL])
        with loop("d", T.vectorized(size)) as d:
            T.buffer_store(joined, joined[d] + weight * sums[task, row, d], [d])
    divisor = named("divisor", T.bind(T.Select(number[_TOTAL] == T.float32(0), T.float32(1), number[_TOTAL])))
    place = operands.result_place(batch, group, row)
    with loop("d", T.vectorized(size)) as d:
        T.buffer_store(operands.result, T.cast(joined[d] / divisor, operands.result.dtype), [*place, d])
