"""Attention of few queries: reading keys and values takes the time.

A block of threads has one query of one head. Its threads are teams of :data:`LANES`: a team walks over every
:data:`TEAMS`-th key, its lanes side by side along the key and then along the value, and keeps the largest score, the
sum of the weights and the weighted sum of the values so far, in registers. At the end the results of the teams are
brought to one largest score and added up in their order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.attention_operands import LOWEST, AttentionOperands, attention_kernel, quotient
from moec.targets.tvm.attention import AttentionProblem

FEW_QUERIES = 16
"""Up to so many queries of a head this is the better way."""
LANES = 8
"""Threads of a team: those that read 16 bytes each of a key of 64 numbers of 16 bits."""
TEAMS = 32
THREADS = LANES * TEAMS
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
    def of_keys(self) -> _Share:
        return _Share(self.operands.problem.head_size, self.dtype)

    @property
    def of_values(self) -> _Share:
        return _Share(self.operands.slice_columns, self.dtype)

    @property
    def group(self) -> Any:
        return self.head // self.operands.problem.heads_per_group

    def part(self, step: Any, first: Any = 0) -> Any:
        """Which part of a row this lane reads in a step, ``first`` being the first part of all lanes."""
        return first + step * LANES + self.lane


@T.inline
def _load(row, share, source, place, first_part, numbers):
    """This lane's numbers of a row, in float32; zeros behind the last one. ``place``: batch, head and row."""
    batch, head, line = T.meta_var(place)
    together = T.meta_var(share.together)
    size = T.meta_var(source.shape[3])
    stored = T.alloc_local((together,), share.dtype)
    for step in T.unroll(share.steps):
        part: T.let = row.part(step, first_part)
        for v in T.unroll(together):
            numbers[step * together + v] = T.float32(0)
        if part * together < size:
            for v in T.vectorized(together):
                stored[v] = source[T.cast(batch, "int64"), head, line, part * together + v]
            for v in T.unroll(together):
                numbers[step * together + v] = T.cast(stored[v], "float32")


@T.inline
def _walk(row, query, largest, total, sums):
    """What this team finds in its keys. Lanes of a warp stay together: the last steps may have keys for some alone."""
    operands = T.meta_var(row.operands)
    numbers = T.alloc_local((max(row.of_keys.count, row.of_values.count),), "float32")
    product = T.alloc_local((1,), "float32")
    frontier: T.let = operands.frontier(row.batch, row.query)
    for step in T.serial(T.ceildiv(T.max(frontier, 0), TEAMS)):
        key: T.let = step * TEAMS + row.team
        product[0] = T.float32(0)
        if key < frontier:
            _load(row, row.of_keys, operands.key, (row.batch, row.group, key), 0, numbers)
            for i in T.unroll(row.of_keys.count):
                product[0] = product[0] + query[i] * numbers[i]
        product[0] = T.cuda.warp_reduce(product[0], "sum", LANES)
        if key < frontier:
            score: T.let = operands.score(product[0], row.batch, row.head, row.query, key)
            before: T.let = largest[0]
            largest[0] = T.max(before, score)
            kept: T.let = T.exp(before - largest[0])
            weight: T.let = T.exp(score - largest[0])
            total[0] = total[0] * kept + weight
            first_part: T.let = row.slice * (operands.slice_columns // row.of_values.together)
            _load(row, row.of_values, operands.value, (row.batch, row.group, key), first_part, numbers)
            for i in T.unroll(row.of_values.count):
                sums[i] = sums[i] * kept + weight * numbers[i]


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
    query = T.alloc_local((row.of_keys.count,), "float32")
    sums = T.alloc_local((row.of_values.count,), "float32")
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    largest[0] = T.float32(LOWEST)
    total[0] = T.float32(0)
    for i in T.unroll(row.of_values.count):
        sums[i] = T.float32(0)
    _load(row, row.of_keys, row.operands.query, (row.batch, row.head, row.query), 0, query)
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
