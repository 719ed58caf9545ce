"""Attention with many rows: a task is one head of keys and values and one block of rows.

The lanes of vectors are rows, so maxima, exponentials and sums need no operation across lanes. The block's queries are
copied once, transposed, into a panel [D, rows]. The scores of a block of keys are a matrix [keys, rows], computed by
the register tile of the matrix products with the keys as its left operand. The weighted sum of the values takes the
same matrix, read by columns, as its left operand.

Blocks of keys that are after the causal frontier of all rows, or before all of their windows, are not read. A block is
also skipped if all of its weights are exactly zero: the mask puts its scores so far below earlier ones that their
exponentials vanish. The bound ``|q . k| <= |q| |k|`` (Cauchy and Schwarz) proves this, and also that the block has no
infinity and no NaN.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.attention_problem import LOWEST, AttentionBuffers, load_block
from moec.targets.cpu.kernels.elementary import exponential
from moec.targets.cpu.kernels.emit import column_parts, loop, named, quotient, remainder
from moec.targets.cpu.kernels.register_tile import accumulate
from moec.targets.tvm.text.steps import begin_step

COLUMN_TILES = 2
KEYS_PER_BLOCK = 64
VANISHING = -90.0
"""The exponential of a float32 below this is zero."""
_HIGHEST_MASK, _MASK_SIZE, _SMALLEST, _QUERY_ENERGY, _KEY_ENERGY, _VALUE_ENERGY = range(6)
_MASK_IS_ZERO, _WEIGHTS_VANISH = range(2)


def attend_with_many_rows(operands: AttentionBuffers, machine: Machine) -> None:
    """Emit the code. Threads take tasks in turn, because tasks with later queries may have more to do, and each head
    begins with another block: else one of two threads would have the last blocks of all heads, which may be small."""
    block = machine.column_tile * COLUMN_TILES
    blocks = named("blocks", T.bind(T.max(T.ceildiv(operands.most_rows(), block), T.int64(1))))
    groups = named("groups", T.bind(T.max(operands.groups, T.int64(1))))
    with (
        T.attr(0, "pragma_parallel_launch_point", 1),
        T.attr(0, "pragma_parallel_stride_pattern", 1),  # task i on thread i % threads
        loop("task", T.parallel(operands.batches * operands.groups * blocks)) as task,
    ):
        head = named("head", T.bind(quotient(task, blocks)))
        first_row = named("first_row", T.bind(remainder(remainder(task, blocks) + head, blocks) * block))
        group = named("group", T.bind(remainder(head, groups)))
        batch = named("batch", T.bind(quotient(head, groups)))
        if not operands.problem.sequences:
            _RowBlock(operands, machine, batch, group, first_row).emit()
            return
        rows = operands.rows(batch)
        with T.If(T.And(rows > operands.few_rows, rows > first_row)), T.Then():
            _RowBlock(operands, machine, batch, group, first_row).emit()


class _RowBlock:
    """The code of one task. A *tile* is ``columns`` rows of the problem, side by side in vectors."""

    def __init__(self, operands: AttentionBuffers, machine: Machine, batch: Any, group: Any, first_row: Any) -> None:
        problem, self._operands, self._lanes = operands.problem, operands, machine.lanes
        self._columns, self._height = machine.column_tile, 1 << (machine.row_tile.bit_length() - 1)
        self._block = COLUMN_TILES * self._columns
        self._batch, self._group, self._first_row = batch, group, first_row
        self._rows = named("rows", T.bind(T.min(T.int64(self._block), operands.rows(batch) - first_row)))
        self._queries = named("queries", T.alloc_buffer((problem.head_size, self._block), "float32"))
        self._keys = named("keys", T.alloc_buffer((KEYS_PER_BLOCK, problem.head_size), "float32"))
        self._values = named("values", T.alloc_buffer((KEYS_PER_BLOCK, problem.value_size), "float32"))
        self._scores = named("scores", T.alloc_buffer((KEYS_PER_BLOCK, self._block), "float32"))
        self._sums = named("sums", T.alloc_buffer((self._block, problem.value_size), "float32"))
        self._largest, self._total, self._rescale = (
            named(name, T.alloc_buffer((self._block,), "float32")) for name in ("largest", "total", "rescale")
        )
        self._frontier = named("frontier", T.alloc_buffer((self._block,), "int64"))
        if problem.window:
            self._first_seen = named("first_seen", T.alloc_buffer((self._block,), "int64"))
        self._numbers = named("numbers", T.alloc_buffer((6,), "float32"))
        self._flags = named("flags", T.alloc_buffer((2,), "int32"))

    def emit(self) -> None:
        used = named("used", T.bind(T.max(self._operands.used_keys(self._batch), T.int64(0))))
        begin_step("queries, scaled, and no sums yet")
        self._begin()
        end = named("end", T.bind(T.max(self._frontier[self._rows - 1], T.int64(0))))
        before = self._operands.first_key(self._batch, self._query(T.int64(0))) // KEYS_PER_BLOCK
        before = named("before", T.bind(before)) if self._operands.problem.window else T.int64(0)
        with loop("step", T.serial(T.ceildiv(end, T.int64(KEYS_PER_BLOCK)) - before)) as step:
            first_key = named("first_key", T.bind((before + step) * KEYS_PER_BLOCK))
            count = named("count", T.bind(T.min(T.int64(KEYS_PER_BLOCK), used - first_key)))
            self._measure_mask(first_key, count)
            place = self._operands.place_of(self._batch, self._group, first_key)
            begin_step("keys and values of the block")
            load_block(self._operands, self._operands.key, place, count, self._keys)
            load_block(self._operands, self._operands.value, place, count, self._values)
            self._find_whether_weights_vanish()
            with T.If(self._flags[_WEIGHTS_VANISH] == 0), T.Then():
                begin_step("scores: products with the keys")
                self._compute_scores()
                begin_step("exponentials relative to the largest score so far")
                with self._tiles() as tile:
                    self._cap_scores(tile)
                    self._add_mask(tile, first_key, count)
                    self._exponentiate(tile)
                begin_step("sums of values, weighted by the exponentials")
                self._add_values()
                self._find_smallest()
        begin_step("the sums, divided by those of the exponentials")
        self._store()

    def _tiles(self) -> Any:
        return T.serial(T.ceildiv(self._rows, T.int64(self._columns)))

    def _query(self, row: Any) -> Any:
        """The query of a row of the block; that of the last row where there are no more."""
        return self._operands.query_of(self._first_row + T.min(row, self._rows - 1))

    def _begin(self) -> None:
        operands, scale = self._operands, T.float32(self._operands.problem.scale)
        with loop("row", T.serial(self._block)) as row:
            head = operands.head_of(self._group, self._first_row + T.min(row, self._rows - 1))
            T.buffer_store(self._largest, operands.first_largest(head), [row])
            T.buffer_store(self._total, operands.first_total(head, self._largest[row]), [row])
            T.buffer_store(self._frontier, operands.frontier(self._batch, self._query(row)), [row])
            if operands.problem.window:
                T.buffer_store(self._first_seen, operands.first_key(self._batch, self._query(row)), [row])
            with loop("d", T.vectorized(operands.problem.value_size)) as d:
                T.buffer_store(self._sums, T.float32(0), [row, d])
        with loop("d", T.serial(operands.problem.head_size)) as d:
            with loop("row", T.vectorized(self._block)) as row:
                T.buffer_store(self._queries, T.float32(0), [d, row])
            with loop("row", T.serial(self._rows)) as row:
                index = self._first_row + row
                place = operands.place_of_query(
                    self._batch, operands.head_of(self._group, index), operands.query_of(index)
                )
                T.buffer_store(self._queries, T.cast(operands.query[(*place, d)], "float32") * scale, [d, row])
        T.buffer_store(self._numbers, T.float32(LOWEST), [_SMALLEST])
        self._measure_energy(self._queries, _QUERY_ENERGY)

    def _measure_energy(self, buffer: Any, number: int) -> None:
        """Emit the sum of the squares of a matrix; infinite or NaN if any of its elements is."""
        partial = named("partial", T.alloc_buffer((self._lanes,), "float32"))
        with loop("lane", T.vectorized(self._lanes)) as lane:
            T.buffer_store(partial, T.float32(0), [lane])
        with loop("row", T.serial(buffer.shape[0])) as row:
            for start, width in column_parts(int(buffer.shape[1]), self._lanes):
                with loop("lane", T.vectorized(width)) as lane:
                    element = buffer[row, start + lane]
                    T.buffer_store(partial, partial[lane] + element * element, [lane])
        T.buffer_store(self._numbers, T.float32(0), [number])
        with loop("lane", T.serial(self._lanes)) as lane:
            T.buffer_store(self._numbers, self._numbers[number] + partial[lane], [number])

    def _measure_mask(self, first_key: Any, count: Any) -> None:
        """Emit the maximum, and the sum of absolute values, of the numbers that the mask adds to a block's scores."""
        if self._operands.adds:
            self._scan_mask(first_key, count)
        else:
            T.buffer_store(self._numbers, T.float32(0), [_HIGHEST_MASK])
            T.buffer_store(self._numbers, T.float32(0), [_MASK_SIZE])
        self._note(_MASK_IS_ZERO, self._numbers[_MASK_SIZE] == T.float32(0))

    def _scan_mask(self, first_key: Any, count: Any) -> None:
        """Over the queries that the block has rows of, and over all heads of the group if they differ."""
        operands, lanes = self._operands, self._lanes
        one_head, one_query = operands.adds_alike
        first, last = self._query(T.int64(0)), self._query(self._rows - 1)
        highest, size = (named(name, T.alloc_buffer((lanes,), "float32")) for name in ("highest", "size"))
        with loop("lane", T.vectorized(lanes)) as lane:
            T.buffer_store(highest, T.float32(float("-inf")), [lane])
            T.buffer_store(size, T.float32(0), [lane])

        def measure(head: Any, query: Any, key: Any, lane: Any) -> None:
            added = operands.added_at(self._batch, head, query, first_key + key)
            T.buffer_store(highest, T.max(highest[lane], added), [lane])
            T.buffer_store(size, size[lane] + T.abs(added), [lane])

        heads, whole = 1 if one_head else operands.problem.heads_per_group, named("whole", T.bind(count // lanes))
        with (
            loop("head", T.serial(heads)) as head,
            loop("query", T.serial(1 if one_query else last - first + 1)) as query,
        ):
            place = operands.head_of(self._group, head), first + query
            with loop("vector", T.serial(whole)) as vector, loop("lane", T.vectorized(lanes)) as lane:
                measure(*place, vector * lanes + lane, lane)
            with loop("rest", T.serial(count % lanes)) as rest:
                measure(*place, whole * lanes + rest, 0)
        T.buffer_store(self._numbers, highest[0], [_HIGHEST_MASK])
        T.buffer_store(self._numbers, T.float32(0), [_MASK_SIZE])
        with loop("lane", T.serial(lanes)) as lane:
            T.buffer_store(self._numbers, T.max(self._numbers[_HIGHEST_MASK], highest[lane]), [_HIGHEST_MASK])
            T.buffer_store(self._numbers, self._numbers[_MASK_SIZE] + size[lane], [_MASK_SIZE])

    def _find_whether_weights_vanish(self) -> None:
        """Emit whether all weights of the block are zero. Any NaN makes a comparison false, so that it is computed."""
        numbers = self._numbers
        below = named("below", T.bind(numbers[_HIGHEST_MASK] - numbers[_SMALLEST]))
        with T.If(below < T.float32(VANISHING)), T.Then():
            self._measure_energy(self._keys, _KEY_ENERGY)
            self._measure_energy(self._values, _VALUE_ENERGY)
        bound = T.sqrt(numbers[_QUERY_ENERGY] * numbers[_KEY_ENERGY]) * T.float32(1.01)
        is_number = T.And(numbers[_MASK_SIZE] >= T.float32(0), numbers[_VALUE_ENERGY] < T.float32(float("inf")))
        vanish = T.And(below < T.float32(VANISHING), T.And(is_number, below + bound < T.float32(VANISHING)))
        self._note(_WEIGHTS_VANISH, vanish)

    def _note(self, flag: int, condition: Any) -> None:
        """Emit a flag. (TVM turns ``not a < b`` into ``a >= b``, which NaN makes false as well.)"""
        T.buffer_store(self._flags, T.Select(condition, T.int32(1), T.int32(0)), [flag])

    def _compute_scores(self) -> None:
        height, columns = self._height, self._columns
        with loop("step", T.serial(KEYS_PER_BLOCK // height)) as step, self._tiles() as tile:
            first, start = named("first", T.bind(step * height)), named("start", T.bind(tile * columns))
            sums = accumulate(
                height,
                columns,
                self._operands.problem.head_size,
                lambda i, d: self._keys[first + i, d],
                lambda d, j: self._queries[d, start + j],
            )
            for i, total in sums.rows():
                with loop("j", T.vectorized(columns)) as j:
                    T.buffer_store(self._scores, total[j], [first + i, start + j])

    def _cap_scores(self, tile: Any) -> None:
        if not self._operands.caps:
            return
        with loop("key", T.serial(KEYS_PER_BLOCK)) as key, loop("lane", T.vectorized(self._columns)) as lane:
            place = [key, tile * self._columns + lane]
            T.buffer_store(self._scores, self._operands.capped(self._scores[tuple(place)]), place)

    def _add_mask(self, tile: Any, first_key: Any, count: Any) -> None:
        operands, columns = self._operands, self._columns
        if operands.adds:
            one_head, _ = operands.adds_alike
            with T.If(self._flags[_MASK_IS_ZERO] == 0), T.Then(), loop("lane", T.serial(columns)) as lane:
                row = named("row", T.bind(T.min(tile * columns + lane, self._rows - 1)))
                head = T.int64(0) if one_head else operands.head_of(self._group, self._first_row + row)
                query = self._query(row)
                with loop("key", T.serial(count)) as key:
                    added = operands.added_at(self._batch, head, query, first_key + key)
                    place = [key, tile * columns + lane]
                    T.buffer_store(self._scores, self._scores[tuple(place)] + added, place)
        some_hidden = first_key + KEYS_PER_BLOCK > self._frontier[0]
        if operands.problem.window:
            some_hidden = T.Or(some_hidden, first_key < self._first_seen[self._rows - 1])
        with (
            T.If(some_hidden),
            T.Then(),
            loop("key", T.serial(KEYS_PER_BLOCK)) as key,
            loop("lane", T.vectorized(columns)) as lane,
        ):
            place = [key, tile * columns + lane]
            row = tile * columns + lane
            first = self._first_seen[row] if operands.problem.window else None
            hidden = operands.is_hidden(first_key + key, self._frontier[row], first)
            added = T.Select(hidden, T.float32(float("-inf")), T.float32(0))
            T.buffer_store(self._scores, self._scores[tuple(place)] + added, place)

    def _exponentiate(self, tile: Any) -> None:
        """Turn scores into exponentials relative to the largest score so far, and update the running sums."""
        columns = self._columns
        largest, partial = (named(name, T.alloc_buffer((columns,), "float32")) for name in ("largest", "partial"))
        start = named("start", T.bind(tile * columns))
        with loop("lane", T.vectorized(columns)) as lane:
            T.buffer_store(largest, self._largest[start + lane], [lane])
            T.buffer_store(partial, T.float32(0), [lane])
        with loop("key", T.serial(KEYS_PER_BLOCK)) as key, loop("lane", T.vectorized(columns)) as lane:
            T.buffer_store(largest, T.max(largest[lane], self._scores[key, start + lane]), [lane])
        with loop("lane", T.vectorized(columns)) as lane:
            T.buffer_store(self._rescale, exponential(self._largest[start + lane] - largest[lane]), [start + lane])
            T.buffer_store(self._largest, largest[lane], [start + lane])
        with loop("key", T.serial(KEYS_PER_BLOCK)) as key:
            with loop("lane", T.vectorized(columns)) as lane:
                power = exponential(self._scores[key, start + lane] - largest[lane])
                T.buffer_store(self._scores, power, [key, start + lane])
            with loop("lane", T.vectorized(columns)) as lane:
                T.buffer_store(partial, partial[lane] + self._scores[key, start + lane], [lane])
        with loop("lane", T.vectorized(columns)) as lane:
            total = self._total[start + lane] * self._rescale[start + lane] + partial[lane]
            T.buffer_store(self._total, total, [start + lane])

    def _add_values(self) -> None:
        height = self._height
        with loop("step", T.serial(T.ceildiv(self._rows, T.int64(height)))) as step:
            row = named("row", T.bind(step * height))
            for start, width in column_parts(self._operands.problem.value_size, self._columns):
                self._add_values_to(row, start, width)

    def _add_values_to(self, row: Any, start: int, width: int) -> None:
        sums = accumulate(
            self._height,
            width,
            KEYS_PER_BLOCK,
            lambda i, key: self._scores[key, row + i],
            lambda key, d: self._values[key, start + d],
            initial=lambda i, d: self._sums[row + i, start + d] * self._rescale[row + i],
        )
        for i, total in sums.rows():
            with loop("d", T.vectorized(width)) as d:
                T.buffer_store(self._sums, total[d], [row + i, start + d])

    def _find_smallest(self) -> None:
        T.buffer_store(self._numbers, self._largest[0], [_SMALLEST])
        with loop("row", T.serial(self._rows)) as row:
            smallest = T.min(self._numbers[_SMALLEST], self._largest[row])
            T.buffer_store(self._numbers, smallest, [_SMALLEST])

    def _store(self) -> None:
        operands = self._operands
        with loop("row", T.serial(self._rows)) as row:
            index = self._first_row + row
            place = operands.result_place(self._batch, self._group, index)
            total = self._total[row]
            divisor = named("divisor", T.bind(T.Select(total == T.float32(0), T.float32(1), total)))
            with loop("d", T.vectorized(operands.problem.value_size)) as d:
                value = T.cast(self._sums[row, d] / divisor, operands.result.dtype)
                T.buffer_store(operands.result, value, [*place, d])
