"""Attention of few queries: reading keys and values takes the time.

The heads that share keys make one matrix of rows, see :mod:`.attention_rows`. A block of threads has a few rows and a
part of their keys, and reads each of them once for all of its rows. Its threads are teams: a team takes some keys at a
time, its lanes side by side along keys and values, and keeps for each row the largest score, the sum of the weights and
the weighted sum of the values so far, in registers. At the end the results of the teams are brought to one largest
score and added up in their order. Where the keys are in several parts, :mod:`.attention_join` does the same with what
was found in them. How many parts there are depends on sizes alone, so results do, too.

After Dao, Haziza, Massa and Sizov, Flash-Decoding for long-context inference (2023).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.attention_operands import (
    KEYS_TOGETHER,
    LOWEST,
    VALUE_COLUMNS,
    AttentionLaunch,
    AttentionOperands,
    attention_kernel_of,
    attention_plan,
    kernel_of_parts,
    quotient,
    start_row,
)
from moec.targets.cuda.kernels.attention_rows import RowTile, start_row_tiles
from moec.targets.cuda.kernels.launch import BEGINS_EARLY, WARP, one_block_is_enough
from moec.targets.cuda.launch_model.plans import AttentionPlan
from moec.targets.tvm.lower.attention import AttentionProblem

FEW_QUERIES = 16
"""Up to so many queries of a head this is the better way."""
THREADS = 128
_LEAST_LANES = 8
_MOST_ROWS, _ROW_NUMBERS = 8, 128
"""The rows of a block of threads, and how many numbers of queries and sums a lane may hold in registers."""
_MOST_KEYS, _KEY_BYTES, _SCORES = 4, 128, 16
"""How many keys a team reads at once, the bytes of them and their values, and the scores of all rows, that a lane may
hold in registers: as many as there is room for, so that what memory takes to answer is waited for rarely."""
_LOAD_BYTES = 16
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class _Share:
    """What a lane, of so many, reads of ``size`` numbers: ``together`` neighbouring ones in each of ``steps`` steps."""

    size: int
    together: int
    lanes: int

    @property
    def steps(self) -> int:
        return -(-self.size // (self.lanes * self.together))

    @property
    def count(self) -> int:
        """Numbers of a lane."""
        return self.steps * self.together


@dataclasses.dataclass(frozen=True)
class _Work:
    """How the work on a problem is shared out; ``stored``: the type of keys and values."""

    problem: AttentionProblem
    stored: str

    @property
    def _columns(self) -> int:
        return min(self.problem.value_size, VALUE_COLUMNS)

    def _together(self, size: int, row: int) -> int:
        """Numbers of 16 bytes, where all of ``size`` begin at a multiple of them in rows of so many numbers."""
        most = _LOAD_BYTES // _BYTES[self.stored]
        return most if size % most == 0 and row % most == 0 else 1

    @property
    def lanes(self) -> int:
        """Of a team: as many as read a row at once, a power of two."""
        parts = max(share.size // share.together for share in self._shares(1))
        return min(max(_power_of_two(parts), _LEAST_LANES), WARP)

    def _shares(self, lanes: int) -> tuple[_Share, _Share]:
        head, values = self.problem.head_size, self.problem.value_size
        return (
            _Share(head, self._together(head, head), lanes),
            _Share(self._columns, self._together(self._columns, values), lanes),
        )

    @property
    def of_keys(self) -> _Share:
        return self._shares(self.lanes)[0]

    @property
    def of_values(self) -> _Share:
        return self._shares(self.lanes)[1]

    @property
    def teams(self) -> int:
        return THREADS // self.lanes

    @property
    def rows(self) -> int:
        """Of a block of threads: those of one query, in tiles of equal size."""
        ratio, numbers = self.problem.heads_per_group, self.of_keys.count + self.of_values.count
        most = max(1, min(_MOST_ROWS, _ROW_NUMBERS // numbers))
        return -(-ratio // -(-ratio // most))

    @property
    def keys_together(self) -> int:
        """Keys that a team reads at once, a power of two."""
        bytes_read = (self.of_keys.count + self.of_values.count) * _BYTES[self.stored]
        most = max(1, min(_MOST_KEYS, _KEY_BYTES // bytes_read, _SCORES // self.rows))
        return _power_of_two(most + 1) // 2

    @property
    def step_keys(self) -> int:
        """Keys of all teams at once: a divisor of :data:`KEYS_TOGETHER`, so they lie in one page."""
        return self.teams * self.keys_together


def _power_of_two(number: int) -> int:
    """The smallest that is not below the number."""
    return 1 << (number - 1).bit_length()


def rows_together(problem: AttentionProblem, dtype: str) -> int:
    """The rows that share what is read of keys, where queries are of type ``dtype``."""
    return _Work(problem, problem.paged or dtype).rows


@dataclasses.dataclass(frozen=True)
class _Block:
    """The rows and the keys [first, end) of a block of threads, and which team and lane this thread is."""

    rows: RowTile
    work: _Work
    dtype: str
    first: Any
    end: Any
    thread: Any
    team: Any
    lane: Any

    @property
    def operands(self) -> AttentionOperands:
        return self.rows.operands

    def part(self, step: Any, first: Any = 0) -> Any:
        """Which part of a row this lane reads in a step, ``first`` being the first part of all lanes."""
        return first + step * self.work.lanes + self.lane


@dataclasses.dataclass(frozen=True)
class _State:
    """What a thread knows of its rows, in float32: queries [rows, numbers]; the largest score and the sum of the
    weights so far; sums [rows, numbers] of the result."""

    queries: Any
    largest: Any
    totals: Any
    sums: Any


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What all teams found: [teams, rows], and sums [teams, rows, columns]."""

    largest: Any
    totals: Any
    sums: Any


@T.inline
def _load(block, share, source, place, is_there, first_part, numbers, at):
    """``numbers[at]`` becomes what this lane reads of keys or values; zeros behind the last number, and where there is
    none. ``place(column)``: where in ``source`` its number of that column lies."""
    together = T.meta_var(share.together)
    for step in T.unroll(share.steps):
        part: T.let = block.part(step, first_part)
        for v in T.unroll(together):
            numbers[at, step * together + v] = T.cast(T.float32(0), numbers.dtype)
        if T.And(is_there, part * together < source.shape[-1]):
            for v in T.vectorized(together):
                numbers[at, step * together + v] = source[place(part * together + v)]


@T.inline
def _load_keys(block, first, keys, values):
    """The keys of a step and their values, all of them before anything waits for one."""
    operands, rows, work = T.meta_var(block.operands), T.meta_var(block.rows), T.meta_var(block.work)
    first_part: T.let = rows.slice * (operands.slice_columns // work.of_values.together)
    page: T.let = operands.page_of(first)
    inside: T.let = operands.inside_page(first)
    for k in T.unroll(work.keys_together):
        number: T.let = k * work.teams + block.team
        place = T.meta_var(lambda column: operands.place(rows.batch, rows.group, page, inside + number, column))
        _load(block, work.of_keys, operands.key, place, first + number < block.end, 0, keys, k)
        _load(block, work.of_values, operands.value, place, first + number < block.end, first_part, values, k)


@T.inline
def _score_keys(block, first, state, keys, scores):
    """The lanes of a team add up their parts of the products. All lanes of a warp take part, also where the keys of
    their team have come to an end: the scores of those are minus infinity."""
    rows, work = T.meta_var(block.rows), T.meta_var(block.work)
    for r in T.unroll(work.rows):
        frontier: T.let = T.min(rows.frontier(r), block.end)
        for k in T.unroll(work.keys_together):
            key: T.let = first + k * work.teams + block.team
            scores[r, k] = T.float32(0)
            for i in T.unroll(work.of_keys.count):
                scores[r, k] = scores[r, k] + state.queries[r, i] * T.cast(keys[k, i], "float32")
            scores[r, k] = T.cuda.warp_reduce(scores[r, k], "sum", work.lanes)
            if T.And(rows.has(r), key < frontier):
                scores[r, k] = block.operands.score(scores[r, k], rows.batch, rows.head(r), rows.query(r), key)
            else:
                scores[r, k] = T.float32(float("-inf"))


@T.inline
def _weigh(block, state, values, scores):
    """Weights and values of a step are added; what was summed before is made to fit a new largest score."""
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
            for i in T.unroll(work.of_values.count):
                state.sums[r, i] = state.sums[r, i] + weight * T.cast(values[k, i], "float32")


@T.inline
def _start(block, state):
    """Loads the queries; numbers that they do not have, and rows that there are not, are zeros."""
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
                        query[T.cast(rows.batch, "int64"), rows.head(r), rows.query(r), column], "float32"
                    )


@T.inline
def _share(block, state, shared):
    """What a team found becomes known to all."""
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
    T.cuda.cta_sync()


@T.inline
def _store(block, shared):
    """A thread adds up a column of a row, the teams in their order: the result, or what was found in a part."""
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
                operands.result[batch, rows.head(r), rows.query(r), rows.column(column)] = T.cast(
                    quotient(result[0], total[0]), block.dtype
                )
            else:
                parts.sums[rows.part, batch, rows.head(r), rows.query(r), rows.column(column)] = result[0]
                if rows.column(column) == 0:
                    parts.statistics[rows.part, batch, rows.head(r), rows.query(r), 0] = largest[0]
                    parts.statistics[rows.part, batch, rows.head(r), rows.query(r), 1] = total[0]


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
    state = T.meta_var(_State(queries, largest, totals, sums))
    _start(block, state)
    for step in T.serial(T.ceildiv(T.max(block.end - block.first, 0), work.step_keys)):
        first: T.let = block.first + step * work.step_keys
        _load_keys(block, first, keys, values)
        _score_keys(block, first, state, keys, scores)
        _weigh(block, state, values, scores)
    _share(block, state, shared)
    _store(block, shared)


def attention_few(problem: AttentionProblem, dtype: str) -> tirx.PrimFunc:
    """The kernel of :func:`~moec.targets.cuda.kernels.attention_operands.kernel_of_parts`."""
    work = _Work(problem, problem.paged or dtype)

    @T.inline
    def body(operands):
        T.device_entry()
        all_largest = T.alloc_shared((work.teams, work.rows), "float32")
        all_totals = T.alloc_shared((work.teams, work.rows), "float32")
        all_sums = T.alloc_shared((work.teams, work.rows, operands.slice_columns), "float32")
        shared = T.meta_var(_Shared(all_largest, all_totals, all_sums))

        @T.inline
        def attend(rows, thread):
            team: T.let = thread // work.lanes
            lane: T.let = thread % work.lanes
            blocks: T.let = T.ceildiv(operands.keys, KEYS_TOGETHER)
            length: T.let = T.ceildiv(blocks, operands.parts.count) * KEYS_TOGETHER
            first: T.let = rows.part * length
            end: T.let = T.min(rows.end, first + length)
            block = T.meta_var(_Block(rows, work, dtype, first, end, thread, team, lane))
            with one_block_is_enough():
                _attend(block, shared)

        start_row_tiles(operands, work.rows, THREADS, attend, operands.parts.count)

    return kernel_of_parts(problem, dtype, body).with_attr(BEGINS_EARLY, True)


def _why_not_launched(launch: AttentionLaunch, architecture: str) -> str | None:
    if launch.queries.most is None or launch.queries.most > FEW_QUERIES:
        return f"more than {FEW_QUERIES} queries; each of them reads the keys again"
    return None


def _plan(launch: AttentionLaunch) -> AttentionPlan:
    work = _Work(launch.problem, launch.problem.paged or launch.dtype)
    return attention_plan(launch, work.rows, work.step_keys, "fma", parts="parts", ahead=False)


ATTENTION_FEW = attention_kernel_of(
    "attention_few",
    attention_few,
    f"up to {FEW_QUERIES} queries: heads share what is read of their keys, blocks of threads share out the keys",
    _why_not_launched,
    plan=_plan,
)
