"""Scores in the registers of a consumer become weights, one tile of keys after another (online softmax).

Weights are rounded to 16 bits, so that the exponential may be the fast one (:mod:`.activation`).
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, MMA_DEPTH

PACK = {"float16": "cvt.rn.f16x2.f32", "bfloat16": "cvt.rn.bf16x2.f32"}
"""Two floats into a register."""


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
        for j in T.unroll(own.operands.slice_columns // MMA_COLUMNS):
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
