"""Attention of few queries: reading keys and values takes the time.

A block of threads has one query of one head. Its threads are teams of :data:`LANES`: a team walks over every
:data:`TEAMS`-th key, a few at a time, its lanes side by side along keys and values, and keeps the largest score, the
sum of the weights and the weighted sum of the values so far, in registers. At the end the results of the teams are
brought to one largest score and added up in their order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.attention_operands import (
    LOWEST,
    AttentionLaunch,
    AttentionOperands,
    attention_kernel,
    attention_kernel_of,
    quotient,
)
from moec.targets.tvm.lower.attention import AttentionProblem

FEW_QUERIES = 16
"""Up to so many queries of a head this is the better way."""
LANES = 8
"""Threads of a team: those that read 16 bytes each of a key of 64 numbers of 16 bits."""
TEAMS = 32
THREADS = LANES * TEAMS
_MOST_KEYS, _REGISTER_BYTES = 4, 256
"""How many keys a team reads at once, and the bytes of them and their values that a lane may hold in registers."""
_LOAD_BYTES = 16
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class _Share:
    """What a lane reads of a row of ``size`` numbers: ``together`` neighbouring ones in each of ``steps`` steps."""

    size: int
    dtype: str

    @property
    def together(self) -> int:
        most = _LOAD_BYTES // _BYTES[self.dtype]
        return most if self.size % most == 0 else 1

    @property
    def steps(self) -> int:
        return -(-self.size // (LANES * self.together))

    @property
    def count(self) -> int:
        """Numbers of a lane."""
        return self.steps * self.together


@dataclasses.dataclass(frozen=True)
class _Row:
    """The query of a block of threads, and which team and lane this thread is. ``first_column``: of its slice of the
    values."""

    operands: AttentionOperands
    dtype: str
    batch: Any
    head: Any
    query: Any
    slice: Any
    team: Any
    lane: Any

    @property
    def stored(self) -> str:
        """How keys and values are stored."""
        return self.operands.problem.paged or self.dtype

    @property
    def of_keys(self) -> _Share:
        return _Share(self.operands.problem.head_size, self.stored)

    @property
    def of_values(self) -> _Share:
        return _Share(self.operands.slice_columns, self.stored)

    @property
    def group(self) -> Any:
        return self.head // self.operands.problem.heads_per_group

    @property
    def keys_together(self) -> int:
        """Keys that a team reads at once: as many as registers hold, so that what memory takes to answer is waited for
        rarely."""
        bytes_read = (self.of_keys.count + self.of_values.count) * _BYTES[self.stored]
        return max(1, min(_MOST_KEYS, _REGISTER_BYTES // bytes_read))

    def key(self, step: Any, k: Any) -> Any:
        """The ``k``-th of the keys that this team reads in a step; neighbouring teams have neighbouring keys."""
        return (step * self.keys_together + k) * TEAMS + self.team

    def part(self, step: Any, first: Any = 0) -> Any:
        """Which part of a row this lane reads in a step, ``first`` being the first part of all lanes."""
        return first + step * LANES + self.lane


@T.inline
def _load(row, share, source, place, is_there, first_part, numbers, at):
    """``numbers[at]`` becomes what this lane reads of a row, as it is stored; zeros behind the last number, and where
    there is no such row. ``place(column)``: where in ``source`` its number of that column lies."""
    together = T.meta_var(share.together)
    lanes = T.meta_var(T.vectorized if numbers.dtype == share.dtype else T.unroll)
    for step in T.unroll(share.steps):
        part: T.let = row.part(step, first_part)
        for v in T.unroll(together):
            numbers[at, step * together + v] = T.cast(T.float32(0), numbers.dtype)
        if T.And(is_there, part * together < source.shape[-1]):
            for v in lanes(together):
                numbers[at, step * together + v] = source[place(part * together + v)]


@T.inline
def _load_keys(row, step, frontier, keys, values):
    """Keys and values of a step, all of them before anything waits for one."""
    operands = T.meta_var(row.operands)
    first_part: T.let = row.slice * (operands.slice_columns // row.of_values.together)
    for k in T.unroll(row.keys_together):
        key: T.let = row.key(step, k)
        page: T.let = operands.page_of(key)
        inside: T.let = operands.inside_page(key)
        place = T.meta_var(lambda column: operands.place(row.batch, row.group, page, inside, column))
        _load(row, row.of_keys, operands.key, place, key < frontier, 0, keys, k)
        _load(row, row.of_values, operands.value, place, key < frontier, first_part, values, k)


@T.inline
def _score_keys(row, step, frontier, query, keys, scores):
    """The lanes of a team add up their parts of the products. All lanes of a warp take part, also where the keys of
    their team have come to an end: the scores of those are minus infinity."""
    for k in T.unroll(row.keys_together):
        key: T.let = row.key(step, k)
        scores[k] = T.float32(0)
        for i in T.unroll(row.of_keys.count):
            scores[k] = scores[k] + query[i] * T.cast(keys[k, i], "float32")
        scores[k] = T.cuda.warp_reduce(scores[k], "sum", LANES)
        if key < frontier:
            scores[k] = row.operands.score(scores[k], row.batch, row.head, row.query, key)
        else:
            scores[k] = T.float32(float("-inf"))


@T.inline
def _walk(row, query, largest, total, sums):
    """What this team finds in its keys."""
    together = T.meta_var(row.keys_together)
    keys = T.alloc_local((together, row.of_keys.count), row.stored)
    values = T.alloc_local((together, row.of_values.count), row.stored)
    scores = T.alloc_local((together,), "float32")
    frontier: T.let = row.operands.frontier(row.batch, row.query)
    for step in T.serial(T.ceildiv(T.max(frontier, 0), TEAMS * together)):
        _load_keys(row, step, frontier, keys, values)
        _score_keys(row, step, frontier, query, keys, scores)
        before: T.let = largest[0]
        for k in T.unroll(together):
            largest[0] = T.max(largest[0], scores[k])
        kept: T.let = T.exp(before - largest[0])
        total[0] = total[0] * kept
        for i in T.unroll(row.of_values.count):
            sums[i] = sums[i] * kept
        for k in T.unroll(together):
            weight: T.let = T.exp(scores[k] - largest[0])
            total[0] = total[0] + weight
            for i in T.unroll(row.of_values.count):
                sums[i] = sums[i] + weight * T.cast(values[k, i], "float32")


@T.inline
def _share(row, largest, total, sums, all_largest, all_totals, all_sums):
    """What a team found becomes known to all."""
    share = T.meta_var(row.of_values)
    if row.lane == 0:
        all_largest[row.team] = largest[0]
        all_totals[row.team] = total[0]
    for step in T.unroll(share.steps):
        for v in T.unroll(share.together):
            column: T.let = row.part(step) * share.together + v
            if column < row.operands.slice_columns:
                all_sums[row.team, column] = sums[step * share.together + v]
    T.cuda.cta_sync()


@T.inline
def _store(row, thread, all_largest, all_totals, all_sums):
    """A thread adds up a column, the teams in their order."""
    operands = T.meta_var(row.operands)
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    result = T.alloc_local((1,), "float32")
    columns = T.meta_var(operands.slice_columns)
    for step in T.serial(-(-columns // THREADS)):
        column: T.let = step * THREADS + thread
        of_row: T.let = row.slice * columns + column
        if T.And(column < columns, of_row < operands.problem.value_size):
            largest[0] = T.float32(LOWEST)
            total[0] = T.float32(0)
            result[0] = T.float32(0)
            for team in T.serial(TEAMS):
                largest[0] = T.max(largest[0], all_largest[team])
            for team in T.serial(TEAMS):
                factor: T.let = T.exp(all_largest[team] - largest[0])
                total[0] = total[0] + all_totals[team] * factor
                result[0] = result[0] + all_sums[team, column] * factor
            operands.result[T.cast(row.batch, "int64"), row.head, row.query, of_row] = T.cast(
                quotient(result[0], total[0]), row.dtype
            )


@T.inline
def _attend(row, thread, all_largest, all_totals, all_sums):
    stored = T.alloc_local((1, row.of_keys.count), row.dtype)
    query = T.alloc_local((row.of_keys.count,), "float32")
    sums = T.alloc_local((row.of_values.count,), "float32")
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    largest[0] = T.float32(LOWEST)
    total[0] = T.float32(0)
    for i in T.unroll(row.of_values.count):
        sums[i] = T.float32(0)
    place = T.meta_var(lambda column: (T.cast(row.batch, "int64"), row.head, row.query, column))
    _load(row, row.of_keys, row.operands.query, place, True, 0, stored, 0)
    for i in T.unroll(row.of_keys.count):
        query[i] = T.cast(stored[0, i], "float32")
    _walk(row, query, largest, total, sums)
    _share(row, largest, total, sums, all_largest, all_totals, all_sums)
    _store(row, thread, all_largest, all_totals, all_sums)


def attention_few(problem: AttentionProblem, dtype: str) -> tirx.PrimFunc:
    """The kernel of :func:`~moec.targets.cuda.kernels.attention_operands.attention_kernel`."""

    @T.inline
    def body(operands):
        T.device_entry()
        heads = T.meta_var(operands.groups * problem.heads_per_group)
        rows = T.meta_var(operands.batches * heads * operands.queries)
        index = T.cta_id([T.max(rows, 1) * operands.slices])
        thread = T.thread_id([THREADS])
        all_largest = T.alloc_shared((TEAMS,), "float32")
        all_totals = T.alloc_shared((TEAMS,), "float32")
        all_sums = T.alloc_shared((TEAMS, operands.slice_columns), "float32")
        place: T.let = index // operands.slices
        if place < rows:
            line: T.let = T.truncdiv(place, operands.queries)
            query: T.let = T.truncmod(place, operands.queries)
            batch: T.let = T.truncdiv(line, heads)
            head: T.let = T.truncmod(line, heads)
            first: T.let = index % operands.slices
            team: T.let = thread // LANES
            lane: T.let = thread % LANES
            row = T.meta_var(_Row(operands, dtype, batch, head, query, first, team, lane))
            _attend(row, thread, all_largest, all_totals, all_sums)

    return attention_kernel(problem, dtype, body)


def _why_not_launched(launch: AttentionLaunch) -> str | None:
    if launch.queries.most is None or launch.queries.most > FEW_QUERIES:
        return f"more than {FEW_QUERIES} queries; each of them reads the keys again"
    return None


ATTENTION_FEW = attention_kernel_of(
    "attention_few",
    attention_few,
    f"up to {FEW_QUERIES} queries: teams of threads share out the keys of each",
    _why_not_launched,
)
