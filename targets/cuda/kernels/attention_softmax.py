"""Online softmax: turn scores in the registers of a warp into weights, one tile of keys after another.

Weights are rounded to 16 bits, so the fast exponential is precise enough (``gpu.kernels.activation``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, MMA_DEPTH
from moec.targets.gpu.kernels.attention_operands import AttentionOperands, quotient, start_row
from moec.targets.gpu.kernels.attention_rows import RowTile

PACK = {"float16": "cvt.rn.f16x2.f32", "bfloat16": "cvt.rn.bf16x2.f32"}
"""The instruction that rounds two floats to 16 bits and packs them into one register."""


@dataclasses.dataclass(frozen=True)
class LaneRows:
    """A lane's registers for its two rows, 8 apart, of the 16 rows of a warp from ``first`` on.

    - ``scores`` [keys / 8, 4]: scores, replaced by weights in float32.
    - ``weights`` [keys / 16, 4]: weights in 16 bits, two per register.
    - ``sums`` [columns / 8, 4]: of weighted values.
    - ``largest`` [2]: the largest score of each row so far. ``kept`` [2]: the factor that rescales sums to it.
    - ``totals`` [2]: this lane's part of the sum of each row's weights.
    """

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
        """Instructions along the columns, 8 columns each; the last may be beyond the values' columns."""
        return int(self.sums.shape[0])

    def row(self, lower: Any) -> Any:
        """The index of a row within the tile; ``lower``: 0 or 1, for the upper or the lower one of the two."""
        return self.first + lower * 8 + self.lane // 4

    def column(self, step: Any) -> Any:
        """The first of the two neighbouring keys (or columns) that this lane has of the 8 of a step."""
        return step * MMA_COLUMNS + self.lane % 4 * 2


@T.inline
def start_rows(own):
    """Initialise the registers before the first key. Each row's weights are summed by four lanes, of which one counts
    the sink."""
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
    """Turn the products of one row into scores. If ``hides``, scores of keys that the row does not see are minus
    infinity."""
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
    """Turn the products with the keys from ``first_key`` on into scores. The test for hidden keys is skipped if all
    rows see the whole tile, but not with a mask, since a mask has no entries for missing rows."""
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
    """Turn scores into weights, and set ``kept`` to the factor that rescales earlier sums to the new largest score.
    Four lanes share a row."""
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
    """Rescale the sums so far to the new largest score."""
    for lower in T.unroll(2):
        for j in T.unroll(own.column_steps):
            for v in T.unroll(2):
                own.sums[j, lower * 2 + v] = own.sums[j, lower * 2 + v] * own.kept[lower]


@T.inline
def pack_weights(own):
    """Pack the weights into registers as the product with the values takes its left operand, 16 keys at a time."""
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
    """Store the weighted sums of the values divided by the sums of the weights; zeros if no key is seen."""
    rows, result = T.meta_var(own.rows), T.meta_var(own.operands.result)
    batch: T.let = T.cast(rows.batch, "int64")
    share = T.alloc_local((1,), "float32")
    for lower in T.unroll(2):
        row: T.let = own.row(lower)
        total: T.let = T.cuda.warp_reduce(own.totals[lower], "sum", 4)
        # The largest score has weight 1, so a total is zero or at least about 1, and its inverse does not overflow.
        share[0] = quotient(T.float32(1), total)
        if rows.has(row):
            for j in T.unroll(own.column_steps):
                column: T.let = own.column(j)
                if column < own.operands.slice_columns:
                    for v in T.vectorized(2):
                        result[batch, rows.head(row), rows.query(row), rows.column(column) + v] = T.cast(
                            own.sums[j, lower * 2 + v] * share[0], own.dtype
                        )
