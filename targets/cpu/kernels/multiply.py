"""Rows times one tile of packed weights: the part of every product that depends on formats and instructions.

Three ways, by the arithmetic of the node:

==========  ======================================  ===================================================================
arithmetic  rows                                    how
==========  ======================================  ===================================================================
float32     float32, or half precision, widened     multiply-adds; quantised weights are decoded into a small panel
                                                    first (:mod:`.multiply_float`)
bfloat16    bfloat16                                dot instructions, or matrix tiles (:mod:`.multiply_pairs`)
int8        int8, with scales and sums per group    dot instructions, or matrix tiles (:mod:`.multiply_bytes`)
==========  ======================================  ===================================================================

Few rows in which many inputs are zero may go by a list of the others instead (:mod:`.sparse_rows`).
"""

from __future__ import annotations

from typing import Any

from moec.targets.cpu.kernels import multiply_bytes, multiply_float, multiply_pairs, sparse_rows
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Weights, WeightTile

_WAYS = {"float32": multiply_float, "bfloat16": multiply_pairs, "int8": multiply_bytes}


def multiply(
    product: Multiplication, rows: Rows, weights: Weights, tile: WeightTile, sums: Any, first: Any, count: Any
) -> None:
    """Emit ``sums[r] = rows[first + r] @ tile`` for r below ``count``, scales applied.

    ``sums`` is a float32 buffer [BLOCK_ROWS, columns]; rows of it behind ``count`` may be overwritten.
    """
    way, operands = _WAYS[product.arithmetic], (product, rows, weights, tile, sums, first, count)
    if product.skips_zeros:
        sparse_rows.emit(*operands, otherwise=lambda: way.emit(*operands))
    else:
        way.emit(*operands)
