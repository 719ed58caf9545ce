"""Scores in the registers of a warp become weights, one tile of keys after another (online softmax).

Weights are rounded to 16 bits, so that the exponential may be the fast one (:mod:`.activation`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.kernels.attention_operands import AttentionOperands, quotient, start_row
from moec.targets.cuda.kernels.attention_rows import RowTile
from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, MMA_DEPTH

PACK = {"float16": "cvt.rn.f16x2.f32", "bfloat16": "cvt.rn.bf16x2.f32"}
"""Two floats into a register."""


@dataclasses.dataclass(frozen=True)
class LaneRows:
    """Of the 16 rows of a warp, from ``first`` on, a lane has two, 8 apart.

    ``scores`` [keys / 8, 4] become weights; ``weights`` [keys / 16, 4] are those, two of 16 bits in a register;
    ``sums`` [columns / 8, 4] of the result; ``largest`` [2] score so far; ``kept`` [2] makes sums fit a new one;
    ``totals`` [2]: the lane's part of the sums of weights."""

    rows: RowTile
    dtype: str
    first: Any
    lane: Any
    scores: Any
    weights: Any
    sums: Any
    largest: Any
    totals: Any
    kept: Any

    @property
    def operands(self) -> AttentionOperands:
        return self.rows.operands

    @property
    def keys(self) -> int:
        return int(self.scores.shape[0]) * MMA_COLUMNS

    @property
    def column_steps(self) -> int:
        """Multiplications of 8 columns; the last may be more than the values have."""
        return int(self.sums.shape[0])

    def row(self, lower: Any) -> Any:
        """One of the two rows."""
        return self.first + lower * 8 + self.lane // 4

    def column(self, step: Any) -> Any:
        """The first of two neighbouring keys, or columns, that it has of each 8."""
        return step * MMA_COLUMNS + self.lane % 4 * 2


@T.inline
def start_rows(own):
    """No key was seen yet. Four lanes have a part each of the sum of a row's weights: one counts the sink."""
    for j in T.unroll(own.column_steps):
        for v in T.unroll(4):
            own.sums[j, v] = T.float32(0)
    for lower in T.unroll(2):
        row: T.let = own.row(lower)
        is_counted = T.meta_var(T.And(own.rows.has(row), own.lane % 4 == 0))
        start_row(own.operands, own.rows.head(row), is_counted, own.largest, own.totals, lower)


def _exponential(x: Any) -> Any:
    return T.call_pure_extern("float32", "__expf", x)


@T.inline
def _score(own, first_key, lower, hides):
    """Products become scores; where ``hides``, those of keys that the row does not see are minus infinity."""
    rows = T.meta_var(own.rows)
    row: T.let = own.row(lower)
    frontier: T.let = rows.frontier(row)
    for j in T.unroll(own.keys // MMA_COLUMNS):
        for v in T.unroll(2):
            key: T.let = first_key + own.column(j) + v
            if hides:
                if T.And(rows.has(row), key < frontier):
                    own.scores[j, lower * 2 + v] = own.operands.score(
                        own.scores[j, lower * 2 + v], rows.batch, rows.head(row), rows.query(row), key
                    )
                else:
                    own.scores[j, lower * 2 + v] = T.float32(float("-inf"))
            else:
                own.scores[j, lower * 2 + v] = own.operands.score(
                    own.scores[j, lower * 2 + v], rows.batch, rows.head(row), rows.query(row), key
                )


@T.inline
def hide(own, first_key):
    """Products with the keys from ``first_key`` on become scores. Of a tile that all rows see whole nothing is hidden,
    unless there is a mask, which has entries for rows that there are and no others."""
    for lower in T.unroll(2):
        if own.operands.problem.mask != "":
            _score(own, first_key, lower, True)
        else:
            if first_key + own.keys <= own.rows.frontier(own.first):
                _score(own, first_key, lower, False)
            else:
                _score(own, first_key, lower, True)


@T.inline
def weigh(own):
    """Scores become weights; ``kept`` is what makes sums so far fit a new largest score. Four lanes have a row."""
    largest = T.alloc_local((1,), "float32")
    for lower in T.unroll(2):
        largest[0] = own.largest[lower]
        for j in T.unroll(own.keys // MMA_COLUMNS):
            for v in T.unroll(2):
                largest[0] = T.max(largest[0], own.scores[j, lower * 2 + v])
        largest[0] = T.cuda.warp_reduce(largest[0], "max", 4)
        own.kept[lower] = _exponential(own.largest[lower] - largest[0])
        own.largest[lower] = largest[0]
        own.totals[lower] = own.totals[lower] * own.kept[lower]
        for j in T.unroll(own.keys // MMA_COLUMNS):
            for v in T.unroll(2):
                weight: T.let = _exponential(own.scores[j, lower * 2 + v] - largest[0])
                own.totals[lower] = own.totals[lower] + weight
                own.scores[j, lower * 2 + v] = weight


@T.inline
def rescale(own):
    """What was summed before fits the new largest score."""
    for lower in T.unroll(2):
        for j in T.unroll(own.column_steps):
            for v in T.unroll(2):
                own.sums[j, lower * 2 + v] = own.sums[j, lower * 2 + v] * own.kept[lower]


@T.inline
def pack_weights(own):
    """Weights of 16 keys at a time, as the product with the values takes them from registers."""
    for step in T.unroll(own.keys // MMA_DEPTH):
        for side in T.unroll(2):
            for lower in T.unroll(2):
                T.ptx[PACK[own.dtype]](
                    own.weights[step, side * 2 + lower],
                    own.scores[2 * step + side, lower * 2 + 1],
                    own.scores[2 * step + side, lower * 2],
                )


@T.inline
def store_rows(own):
    """Writes the weighted sums of the values by the sums of the weights; zeros where no key is seen."""
    rows, result = T.meta_var(own.rows), T.meta_var(own.operands.result)
    batch: T.let = T.cast(rows.batch, "int64")
    share = T.alloc_local((1,), "float32")
    for lower in T.unroll(2):
        row: T.let = own.row(lower)
        total: T.let = T.cuda.warp_reduce(own.totals[lower], "sum", 4)
        # The largest score has weight 1: a total is zero, or at least about 1.
        share[0] = quotient(T.float32(1), total)
        if rows.has(row):
            for j in T.unroll(own.column_steps):
                column: T.let = own.column(j)
                if column < own.operands.slice_columns:
                    for v in T.vectorized(2):
                        result[batch, rows.head(row), rows.query(row), rows.column(column) + v] = T.cast(
                            own.sums[j, lower * 2 + v] * share[0], own.dtype
                        )
