"""The rows of an attention that a block of threads computes.

The heads that share keys form one matrix of rows: row r is query ``r // heads per group`` of head ``r % heads per
group``. A block computes some consecutive rows, and all or some columns of their values.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.targets.gpu.kernels.attention_operands import AttentionOperands
from moec.targets.gpu.kernels.launch import blocks_for


@dataclasses.dataclass(frozen=True)
class RowTile:
    """The work of a block of threads: ``count`` rows from ``first`` on, in one ``group`` of heads of a ``batch`` entry;
    a ``slice`` of the columns of the values; and a ``part`` of the keys, if these are divided."""

    operands: AttentionOperands
    count: int
    batch: Any
    group: Any
    first: Any
    slice: Any
    part: Any = 0

    def has(self, row: Any) -> Any:
        """Whether the row exists; the last tile may have fewer rows."""
        return self.first + row < self.operands.queries_of(self.batch) * self.operands.problem.heads_per_group

    def query(self, row: Any) -> Any:
        return (self.first + row) // self.operands.problem.heads_per_group

    def head(self, row: Any) -> Any:
        ratio = self.operands.problem.heads_per_group
        return self.group * ratio + (self.first + row) % ratio

    def frontier(self, row: Any) -> Any:
        """The first key that is hidden from the row, as are all after it."""
        return self.operands.frontier(self.batch, self.query(row))

    @property
    def end(self) -> Any:
        """The first key that is hidden from all rows of the tile, as are all after it: the last query sees the most."""
        last = T.min(self.query(self.count - 1), self.operands.queries_of(self.batch) - 1)
        return T.max(self.operands.frontier(self.batch, last), 0)

    def first_key(self, row: Any) -> Any:
        """The first key of the row's window."""
        return self.operands.first_key(self.batch, self.query(row))

    @property
    def begin(self) -> Any:
        """The first key in the window of any row of the tile, at most ``end``."""
        return T.min(self.first_key(0), self.end) if self.operands.problem.window else T.int32(0)

    def sees(self, row: Any, key: Any, frontier: Any) -> Any:
        """Whether the row exists and sees a key, as far as the mask does not hide it. ``frontier``: of the row."""
        is_before = T.And(self.has(row), key < frontier)
        return T.And(is_before, key >= self.first_key(row)) if self.operands.problem.window else is_before

    def has_column(self, column: Any) -> Any:
        """Whether the column of the slice exists; the last slice may have fewer columns."""
        whole = self.operands.problem.value_size % self.operands.slice_columns == 0
        return whole or self.column(column) < self.operands.problem.value_size

    def column(self, column: Any) -> Any:
        """The column of the values for a column of the slice."""
        return self.slice * self.operands.slice_columns + column


@T.inline
def _start_tiles(operands, count, threads, body, parts):
    rows = T.meta_var(operands.queries * operands.problem.heads_per_group)
    tiles = T.meta_var(blocks_for(rows, count))
    groups = T.meta_var(operands.batches * operands.groups)
    index = T.cta_id([T.max(groups, 1) * tiles * operands.slices * parts])
    thread = T.thread_id([threads])
    part: T.let = index % parts
    slice_index: T.let = index // parts % operands.slices
    place: T.let = index // parts // operands.slices
    pair: T.let = T.truncdiv(place, tiles)
    batch: T.let = T.truncdiv(pair, operands.groups)
    group: T.let = T.truncmod(pair, operands.groups)
    first: T.let = T.truncmod(place, tiles) * count
    if T.And(pair < groups, first < rows):
        body(RowTile(operands, count, batch, group, first, slice_index, part), thread)


@T.inline
def _start_tiles_of_sequences(operands, count, threads, body, parts):
    """Tiles are numbered sequence by sequence. The host knows their number within one for each sequence, and each block
    walks over the sequences up to its own, so that no other kernel and no host has to list them."""
    ratio = T.meta_var(operands.problem.heads_per_group)
    tiles = T.meta_var(blocks_for(operands.queries * ratio, count) + operands.batches)
    groups = T.meta_var(T.max(operands.groups, 1))
    index = T.cta_id([groups * tiles * operands.slices * parts])
    thread = T.thread_id([threads])
    part: T.let = index % parts
    slice_index: T.let = index // parts % operands.slices
    place: T.let = index // parts // operands.slices
    group: T.let = T.truncmod(place, groups)
    tile = T.alloc_local((1,), "int32")
    own = T.alloc_local((1,), "int32")
    tile[0] = T.truncdiv(place, groups)
    own[0] = -1
    for sequence in T.serial(operands.batches):
        rows: T.let = T.Select(operands.is_served(sequence), operands.queries_of(sequence) * ratio, 0)
        if own[0] < 0:
            if tile[0] * count < rows:
                own[0] = sequence
            else:
                tile[0] = tile[0] - T.ceildiv(rows, count)
    if T.And(own[0] >= 0, operands.groups > 0):
        found: T.let = own[0]
        first: T.let = tile[0] * count
        body(RowTile(operands, count, found, group, first, slice_index, part), thread)


@T.inline
def start_row_tiles(operands, count, threads, body, parts=1):
    """Launch a block of ``threads`` threads for every tile of ``count`` rows and each of ``parts`` parts of the keys,
    and emit ``body(tile, thread)``."""
    if operands.problem.sequences:
        _start_tiles_of_sequences(operands, count, threads, body, parts)
    else:
        _start_tiles(operands, count, threads, body, parts)
