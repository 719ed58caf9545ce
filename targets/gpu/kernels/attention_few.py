"""Attention of few queries, which is limited by reading keys and values.

The heads that share keys form one matrix of rows, see :mod:`.attention_rows`. A block of threads computes a few rows
for a part of their keys, and reads each key once for all of its rows. Its threads form teams. A team takes a few keys
at a time, with its lanes next to one another along a key and its value. For each row it keeps the largest score, the
sum of the weights and the weighted sum of the values so far, in registers. At the end the results of all teams are
rescaled to one largest score and added up in the order of the teams. If the keys are divided into several parts,
:mod:`.attention_join` does the same with the results of the parts. The number of parts depends on sizes only, and so do
the bits of results.

After Dao, Haziza, Massa and Sizov, Flash-Decoding for long-context inference (2023).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.attention_few_work import THREADS, WorkPartition
from moec.targets.gpu.kernels.attention_join import part_length
from moec.targets.gpu.kernels.attention_operands import (
    FEW_QUERIES,
    KEYS_TOGETHER,
    LOWEST,
    AttentionLaunch,
    AttentionOperands,
    attention_kernel_of,
    quotient,
    start_row,
)
from moec.targets.gpu.kernels.attention_rows import RowTile, start_row_tiles
from moec.targets.gpu.kernels.attention_signatures import kernel_of_parts
from moec.targets.gpu.kernels.instructions import reduce_lanes, sync_block
from moec.targets.gpu.kernels.launch import BEGINS_EARLY, one_block_is_enough
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.kernels.int8_rows import INT8_ROWS


def rows_together(problem: AttentionProblem, dtype: str) -> int:
    """The number of rows of a block of threads, which share the keys that it reads. ``dtype``: of the queries."""
    return WorkPartition(problem, problem.paged or dtype).rows


@dataclasses.dataclass(frozen=True)
class _BlockRows:
    """The rows and the keys [first, end) of a block of threads, and the team and lane of this thread."""

    rows: RowTile
    work: WorkPartition
    dtype: str
    first: Any
    end: Any
    thread: Any
    team: Any
    lane: Any

    @property
    def operands(self) -> AttentionOperands:
        return self.rows.operands

    @property
    def reads_vectors(self) -> bool:
        """Whether a lane's numbers are read at once. Of int8 they are not: scales lie between the rows of two heads, so
        the compiler cannot tell that rows are aligned, and those of a plain run may not be."""
        return self.work.stored != INT8_ROWS

    def part(self, step: Any, first: Any = 0) -> Any:
        """The index of the group of numbers that this lane reads in a step; ``first``: that of the first lane and
        step."""
        return first + step * self.work.lanes + self.lane


@dataclasses.dataclass(frozen=True)
class _FewQueriesState:
    """A thread's registers, float32: ``queries`` [rows, numbers]; the ``largest`` score and the sum of the weights
    (``totals``) of each row so far; ``sums`` [rows, numbers] of weighted values."""

    queries: Any
    largest: Any
    totals: Any
    sums: Any


@dataclasses.dataclass(frozen=True)
class _TeamResults:
    """The results of all teams in shared memory: ``largest`` and ``totals`` [teams, rows], ``sums`` [teams, rows,
    columns]."""

    largest: Any
    totals: Any
    sums: Any


@T.inline
def _load(block, share, source, size, place, is_there, first_part, numbers, at):
    """Load this lane's numbers of a key or value of ``size`` into ``numbers[at]``. Columns beyond are zero, as is
    everything unless ``is_there``. ``place(column)``: the indices of a column in ``source``."""
    together = T.meta_var(share.together)
    for step in T.unroll(share.steps):
        part: T.let = block.part(step, first_part)
        for v in T.unroll(together):
            numbers[at, step * together + v] = T.cast(T.float32(0), numbers.dtype)
        if T.And(is_there, part * together < size):
            if block.reads_vectors:
                for v in T.vectorized(together):
                    numbers[at, step * together + v] = source[place(part * together + v)]
            else:
                for v in T.unroll(together):
                    numbers[at, step * together + v] = source[place(part * together + v)]


@T.inline
def _load_keys(block, first, keys, values, scales):
    """Load the keys of a step, their values, and ``scales`` [2, keys] of both where they are in int8. All loads are
    issued before the first result is used."""
    operands, rows, work = T.meta_var(block.operands), T.meta_var(block.rows), T.meta_var(block.work)
    first_part: T.let = rows.slice * (operands.slice_columns // work.of_values.together)
    page: T.let = operands.page_of(rows.batch, first)
    inside: T.let = operands.inside_page(first)
    for k in T.unroll(work.keys_together):
        number: T.let = k * work.teams + block.team
        own = T.meta_var((rows.batch, rows.group, page, inside + number))
        problem, is_there = T.meta_var(operands.problem), T.meta_var(first + number < block.end)
        of_keys = T.meta_var(lambda column: operands.place(*own, column, problem.head_size))
        of_values = T.meta_var(lambda column: operands.place(*own, column, problem.value_row))
        _load(block, work.of_keys, operands.key, problem.head_size, of_keys, is_there, 0, keys, k)
        _load(block, work.of_values, operands.value, problem.value_size, of_values, is_there, first_part, values, k)
        if problem.paged == INT8_ROWS:
            scales[0, k] = T.float32(0)
            scales[1, k] = T.float32(0)
            if is_there:
                scales[0, k] = operands.scale(operands.key, *own, problem.head_size)
                scales[1, k] = operands.scale(operands.value, *own, problem.value_row)


@T.inline
def _score_keys(block, first, state, keys, scales, scores):
    """Compute the scores of a step; the lanes of a team add up their parts of the products. All lanes of a warp take
    part, even if their team has no more keys; the scores of missing keys are minus infinity."""
    rows, work = T.meta_var(block.rows), T.meta_var(block.work)
    for r in T.unroll(work.rows):
        frontier: T.let = T.min(rows.frontier(r), block.end)
        for k in T.unroll(work.keys_together):
            key: T.let = first + k * work.teams + block.team
            scores[r, k] = T.float32(0)
            for i in T.unroll(work.of_keys.count):
                scores[r, k] = scores[r, k] + state.queries[r, i] * T.cast(keys[k, i], "float32")
            scores[r, k] = reduce_lanes(scores[r, k], "sum", work.lanes)
            if block.operands.problem.paged == INT8_ROWS:
                scores[r, k] = scores[r, k] * scales[0, k]
            if rows.sees(r, key, frontier):
                scores[r, k] = block.operands.score(scores[r, k], rows.batch, rows.head(r), rows.query(r), key)
            else:
                scores[r, k] = T.float32(float("-inf"))


@T.inline
def _weigh(block, state, values, scales, scores):
    """Add the weights and weighted values of a step, after rescaling the sums so far to the new largest score."""
    work = T.meta_var(block.work)
    for r in T.unroll(work.rows):
        before: T.let = state.largest[r]
        for k in T.unroll(work.keys_together):
            state.largest[r] = T.max(state.largest[r], scores[r, k])
        kept: T.let = T.exp(before - state.largest[r])
        state.totals[r] = state.totals[r] * kept
        for i in T.unroll(work.of_values.count):
            state.sums[r, i] = state.sums[r, i] * kept
        for k in T.unroll(work.keys_together):
            weight: T.let = T.exp(scores[r, k] - state.largest[r])
            state.totals[r] = state.totals[r] + weight
            scaled = T.meta_var(weight * scales[1, k] if block.operands.problem.paged == INT8_ROWS else weight)
            for i in T.unroll(work.of_values.count):
                state.sums[r, i] = state.sums[r, i] + scaled * T.cast(values[k, i], "float32")


@T.inline
def _start(block, state):
    """Load the queries and clear the sums. Missing rows and columns are zero. The sink, if any, is counted once: by the
    first team of the first part."""
    rows, share = T.meta_var(block.rows), T.meta_var(block.work.of_keys)
    query = T.meta_var(block.operands.query)
    is_first: T.let = T.And(block.team == 0, rows.part == 0)
    for r in T.unroll(block.work.rows):
        start_row(block.operands, rows.head(r), T.And(rows.has(r), is_first), state.largest, state.totals, r)
        for i in T.unroll(block.work.of_values.count):
            state.sums[r, i] = T.float32(0)
        for step in T.unroll(share.steps):
            for v in T.unroll(share.together):
                column: T.let = block.part(step) * share.together + v
                state.queries[r, step * share.together + v] = T.float32(0)
                if T.And(rows.has(r), column < share.size):
                    state.queries[r, step * share.together + v] = T.cast(
                        query[(*block.operands.query_place(rows.batch, rows.head(r), rows.query(r)), column)],
                        "float32",
                    )


@T.inline
def _share(block, state, shared):
    """Store the results of this thread's team in shared memory, and wait for those of all teams."""
    share = T.meta_var(block.work.of_values)
    for r in T.unroll(block.work.rows):
        if block.lane == 0:
            shared.largest[block.team, r] = state.largest[r]
            shared.totals[block.team, r] = state.totals[r]
        for step in T.unroll(share.steps):
            for v in T.unroll(share.together):
                column: T.let = block.part(step) * share.together + v
                if column < share.size:
                    shared.sums[block.team, r, column] = state.sums[r, step * share.together + v]
    sync_block()


@T.inline
def _store(block, shared):
    """Add up the results of the teams in their order, a column of a row per thread, and store the final result, or the
    sums and statistics if there are several parts."""
    operands, rows, parts = T.meta_var(block.operands), T.meta_var(block.rows), T.meta_var(block.operands.parts)
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    result = T.alloc_local((1,), "float32")
    columns = T.meta_var(operands.slice_columns)
    batch: T.let = T.cast(rows.batch, "int64")
    for step in T.serial(-(-columns * block.work.rows // THREADS)):
        r: T.let = (step * THREADS + block.thread) // columns
        column: T.let = (step * THREADS + block.thread) % columns
        if T.And(r < block.work.rows, T.And(rows.has(r), rows.has_column(column))):
            largest[0] = T.float32(LOWEST)
            total[0] = T.float32(0)
            result[0] = T.float32(0)
            for team in T.serial(block.work.teams):
                largest[0] = T.max(largest[0], shared.largest[team, r])
            for team in T.serial(block.work.teams):
                factor: T.let = T.exp(shared.largest[team, r] - largest[0])
                total[0] = total[0] + shared.totals[team, r] * factor
                result[0] = result[0] + shared.sums[team, r, column] * factor
            if parts.count == 1:
                place = T.meta_var(operands.result_place(batch, rows.head(r), rows.query(r), rows.column(column)))
                operands.result[place] = T.cast(quotient(result[0], total[0]), block.dtype)
            else:
                own = T.meta_var((rows.part, *operands.query_place(batch, rows.head(r), rows.query(r))))
                parts.sums[(*own, rows.column(column))] = result[0]
                if rows.column(column) == 0:
                    parts.statistics[(*own, 0)] = largest[0]
                    parts.statistics[(*own, 1)] = total[0]


def _scales(work: WorkPartition) -> Any:
    """Registers [2, keys] for the scales of keys and values in int8; None for other types."""
    return T.alloc_local((2, work.keys_together), "float32") if work.stored == INT8_ROWS else None


@T.inline
def _attend(block, shared):
    work = T.meta_var(block.work)
    queries = T.alloc_local((work.rows, work.of_keys.count), "float32")
    sums = T.alloc_local((work.rows, work.of_values.count), "float32")
    largest = T.alloc_local((work.rows,), "float32")
    totals = T.alloc_local((work.rows,), "float32")
    keys = T.alloc_local((work.keys_together, work.of_keys.count), work.stored)
    values = T.alloc_local((work.keys_together, work.of_values.count), work.stored)
    scores = T.alloc_local((work.rows, work.keys_together), "float32")
    scales = T.meta_var(_scales(work))
    state = T.meta_var(_FewQueriesState(queries, largest, totals, sums))
    _start(block, state)
    for step in T.serial(T.ceildiv(T.max(block.end - block.first, 0), work.step_keys)):
        first: T.let = block.first + step * work.step_keys
        _load_keys(block, first, keys, values, scales)
        _score_keys(block, first, state, keys, scales, scores)
        _weigh(block, state, values, scales, scores)
    _share(block, state, shared)
    _store(block, shared)


def _before_windows(rows: RowTile, multiple: int) -> Any:
    """The last multiple of a number of keys that is not behind the first key that any row sees."""
    return rows.begin // multiple * multiple


def attention_few(problem: AttentionProblem, dtype: str) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.attention_signatures.kernel_of_parts`."""
    work = WorkPartition(problem, problem.paged or dtype)

    @T.inline
    def body(operands):
        T.device_entry()
        all_largest = T.alloc_shared((work.teams, work.rows), "float32")
        all_totals = T.alloc_shared((work.teams, work.rows), "float32")
        all_sums = T.alloc_shared((work.teams, work.rows, operands.slice_columns), "float32")
        shared = T.meta_var(_TeamResults(all_largest, all_totals, all_sums))

        @T.inline
        def attend(rows, thread):
            team: T.let = thread // work.lanes
            lane: T.let = thread % work.lanes
            length: T.let = part_length(operands, rows.batch)
            part_first: T.let = _before_windows(rows, KEYS_TOGETHER) + rows.part * length
            end: T.let = T.min(rows.end, part_first + length)
            first: T.let = T.max(part_first, _before_windows(rows, work.step_keys))
            block = T.meta_var(_BlockRows(rows, work, dtype, first, end, thread, team, lane))
            with one_block_is_enough():
                _attend(block, shared)

        start_row_tiles(operands, work.rows, THREADS, attend, operands.parts.count)

    return kernel_of_parts(problem, dtype, body).with_attr(BEGINS_EARLY, True)


def _why_not_launched(launch: AttentionLaunch, architecture: str) -> str | None:
    if launch.queries.most is None or launch.queries.most > FEW_QUERIES:
        return f"more than {FEW_QUERIES} queries; each of them reads the keys again"
    return None


ATTENTION_FEW = attention_kernel_of(
    "attention_few",
    attention_few,
    f"up to {FEW_QUERIES} queries: heads share what is read of their keys, blocks of threads share out the keys",
    _why_not_launched,
)
