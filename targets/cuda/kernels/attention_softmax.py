"""Online softmax: turn scores in the registers of a warp into weights, one tile of keys after another.

A weight is 2 ** ((score * unit - largest) * factor), see :class:`Exponent`: one multiply-add and the instruction
``ex2``. ``ex2.approx.ftz`` is within 2**-22 of the result (PTX ISA), and makes zero of results below 2**-126. The
exponent itself is rounded once, as the product of the score and the scale would be. Weights are then rounded to 16
bits, at best to 2**-12, so neither matters.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, MMA_DEPTH, MMA_ROWS
from moec.targets.gpu.kernels.attention_operands import LOWEST, AttentionOperands, quotient, start_row
from moec.targets.gpu.kernels.attention_rows import RowTile
from moec.targets.tvm.heavy.attention import AttentionProblem

PACK = {"float16": "cvt.rn.f16x2.f32", "bfloat16": "cvt.rn.bf16x2.f32"}
"""The instruction that rounds two floats to 16 bits and packs them into one register."""
_EX2, _INVERSE = "ex2.approx.ftz.f32", "rcp.approx.ftz.f32"
_LOG2_E = math.log2(math.e)


class Exponent(NamedTuple):
    """The exponent of 2 for a score: (score * unit - largest) * factor. ``is_scaled``: whether scores are products
    times the scale, with the cap. Otherwise they are the products themselves, and ``unit`` contains the scale."""

    unit: float
    factor: float
    is_scaled: bool


def exponent_of(problem: AttentionProblem) -> Exponent:
    """The exponent of a problem.

    A mask of floats may hold the lowest number instead of minus infinity, so its scores are subtracted from one another
    before they are multiplied: multiplied first, they would overflow, and a row that is masked all over would have no
    weights. Products stand for scores only if the largest product has the largest score.
    """
    if problem.mask not in ("", "bool"):
        return Exponent(1.0, _LOG2_E, True)
    if problem.softcap > 0 or problem.scale <= 0:
        return Exponent(_LOG2_E, 1.0, True)
    return Exponent(problem.scale * _LOG2_E, 1.0, False)


@dataclasses.dataclass(frozen=True)
class LaneRows:
    """A lane's registers for its two rows, 8 apart, of the 16 rows of a warp from ``first`` on.

    - ``scores`` [keys / 8, 4]: scores, replaced by weights in float32.
    - ``weights`` [keys / 16, 4]: weights in 16 bits, two per register.
    - ``sums`` [columns / 8, 4]: of weighted values.
    - ``largest`` [2]: the largest score of each row so far, times the unit of :class:`Exponent`. ``kept`` [2]: the
      factor that rescales sums to it.
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
    def exponent(self) -> Exponent:
        return exponent_of(self.operands.problem)

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
        if own.operands.problem.has_sinks:
            in_exponent = T.meta_var(T.float32(_LOG2_E / own.exponent.factor))
            own.largest[lower] = T.max(own.largest[lower] * in_exponent, T.float32(LOWEST))


def _times(x: Any, factor: float) -> Any:
    return x if factor == 1.0 else x * T.float32(factor)


def _times_and_less(x: Any, factor: float, less: Any) -> Any:
    """``x * factor - less``, rounded once."""
    return x - less if factor == 1.0 else T.call_pure_extern("float32", "__fmaf_rn", x, T.float32(factor), -less)


@T.inline
def _scale(own):
    """Turn products into scores without a mask. The cap ``c * tanh(x)`` is computed as ``c - 2 c / (1 + e ** 2x)``: its
    error is some 2**-22 of ``c``. With caps in use, up to 50, that changes a weight by less than 2**-14."""
    problem = T.meta_var(own.operands.problem)
    inverse = T.alloc_local((1,), "float32")
    for j in T.unroll(own.keys // MMA_COLUMNS):
        for v in T.unroll(4):
            if problem.softcap > 0:
                T.ptx[_EX2](inverse[0], own.scores[j, v] * T.float32(2 * _LOG2_E * problem.scale / problem.softcap))
                T.ptx[_INVERSE](inverse[0], T.float32(1) + inverse[0])
                own.scores[j, v] = T.float32(problem.softcap) - T.float32(2 * problem.softcap) * inverse[0]
            else:
                own.scores[j, v] = own.scores[j, v] * T.float32(problem.scale)


@T.inline
def _hide(own, first_key):
    """Apply the mask to the scores of the keys from ``first_key`` on. Scores of keys that a row does not see become
    minus infinity."""
    rows = T.meta_var(own.rows)
    for lower in T.unroll(2):
        row: T.let = own.row(lower)
        frontier: T.let = rows.frontier(row)
        for j in T.unroll(own.keys // MMA_COLUMNS):
            for v in T.unroll(2):
                at = T.meta_var((j, lower * 2 + v))
                key: T.let = first_key + own.column(j) + v
                sees = T.meta_var(rows.sees(row, key, frontier))
                found = T.meta_var(
                    own.operands.masked(own.scores[at], rows.batch, rows.head(row), rows.query(row), key)
                )
                own.scores[at] = T.if_then_else(sees, found, T.float32(float("-inf")))


def tiles_seen(own: LaneRows, row: Any) -> Any:
    """The number of tiles of keys, from the first on, in which no key is hidden from any row from ``row`` on. With a
    mask it is 0, since a mask has no entries for missing rows."""
    return T.int32(0) if own.operands.problem.mask else T.truncdiv(T.max(own.rows.frontier(row), 0), own.keys)


def _may_hide(own: LaneRows, step: Any, seen: Any) -> Any:
    """Whether a key of a tile may be hidden from a row: behind the first ``seen`` tiles, or before the window of the
    last row of the warp."""
    is_behind = step >= seen
    if not own.operands.problem.window:
        return is_behind
    return T.Or(is_behind, step * own.keys < own.rows.first_key(own.first + MMA_ROWS - 1))


@T.inline
def find_scores(own, step, seen):
    """Turn the products with a tile of keys into scores. ``seen``: :func:`tiles_seen` of the rows."""
    if own.exponent.is_scaled:
        _scale(own)
    if _may_hide(own, step, seen):
        _hide(own, step * own.keys)


@T.inline
def weigh(own):
    """Turn scores into weights, and set ``kept`` to the factor that rescales earlier sums to the new largest score.
    Four lanes share a row."""
    unit, factor, _ = T.meta_var(own.exponent)
    largest = T.alloc_local((1,), "float32")
    for lower in T.unroll(2):
        largest[0] = own.scores[0, lower * 2]
        for j in T.unroll(own.keys // MMA_COLUMNS):
            for v in T.unroll(2):
                largest[0] = T.max(largest[0], own.scores[j, lower * 2 + v])
        largest[0] = T.max(own.largest[lower], _times(T.cuda.warp_reduce(largest[0], "max", 4), unit))
        T.ptx[_EX2](own.kept[lower], _times(own.largest[lower] - largest[0], factor))
        own.largest[lower] = largest[0]
        own.totals[lower] = own.totals[lower] * own.kept[lower]
        for j in T.unroll(own.keys // MMA_COLUMNS):
            for v in T.unroll(2):
                difference: T.let = _times_and_less(own.scores[j, lower * 2 + v], unit, largest[0])
                T.ptx[_EX2](own.scores[j, lower * 2 + v], _times(difference, factor))
                own.totals[lower] = own.totals[lower] + own.scores[j, lower * 2 + v]


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
    rows, operands = T.meta_var(own.rows), T.meta_var(own.operands)
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
                if column < operands.slice_columns:
                    for v in T.vectorized(2):
                        place = T.meta_var(
                            operands.result_place(batch, rows.head(row), rows.query(row), rows.column(column) + v)
                        )
                        operands.result[place] = T.cast(own.sums[j, lower * 2 + v] * share[0], own.dtype)
