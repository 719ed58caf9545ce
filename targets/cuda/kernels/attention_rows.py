"""Which rows a block of threads has in an attention.

The heads that share keys make one matrix of rows: row r is query ``r // heads per group`` of head ``r % heads per
group``. A block has some neighbouring ones, and all or some columns of the values.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.kernels.attention_operands import AttentionOperands
from moec.targets.cuda.kernels.launch import blocks_for


@dataclasses.dataclass(frozen=True)
class RowTile:
    """``count`` rows from ``first`` on, in one group of a batch, a ``slice`` of the columns of the values, and a
    ``part`` of the keys, where they are in several."""

    operands: AttentionOperands
    count: int
    batch: Any
    group: Any
    first: Any
    slice: Any
    part: Any = 0

    def has(self, row: Any) -> Any:
        """Whether there is such a row; the last tile may have fewer."""
        return self.first + row < self.operands.queries * self.operands.problem.heads_per_group

    def query(self, row: Any) -> Any:
        return (self.first + row) // self.operands.problem.heads_per_group

    def head(self, row: Any) -> Any:
        ratio = self.operands.problem.heads_per_group
        return self.group * ratio + (self.first + row) % ratio

    def frontier(self, row: Any) -> Any:
        """The keys from this one on are hidden from the row."""
        return self.operands.frontier(self.batch, self.query(row))

    @property
    def end(self) -> Any:
        """The keys from this one on are hidden from all rows: the last query sees the most."""
        last = T.min(self.query(self.count - 1), self.operands.queries - 1)
        return T.max(self.operands.frontier(self.batch, last), 0)

    def has_column(self, column: Any) -> Any:
        """Whether the values have that column of the slice."""
        whole = self.operands.problem.value_size % self.operands.slice_columns == 0
        return whole or self.column(column) < self.operands.problem.value_size

    def column(self, column: Any) -> Any:
        """The column of the values that is this one of the slice."""
        return self.slice * self.operands.slice_columns + column


@T.inline
def start_row_tiles(operands, count, threads, body, parts=1):
    """``body(tile, thread)`` for every tile of ``count`` rows and each of ``parts`` of the keys."""
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
