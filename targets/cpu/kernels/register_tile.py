"""The heart of every matrix product: a block of sums in registers, and how rows are cut into such blocks."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T


@T.inline
def accumulate(sums, height, width, inner, left, right):
    """``sums[i, j] = sum over k < inner of left(i, k) * right(k, j)``, k ascending, in float32.

    One rank-1 update per k: ``height`` broadcasts and the vectors of ``width`` columns feed ``height * width``
    multiply-adds (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). ``sums`` is only
    indexed by constants, so it stays in registers.
    """
    for i in T.unroll(height):
        for j in T.vectorized(width):
            sums[i, j] = T.float32(0)
    for k in range(inner):
        for i in T.unroll(height):
            for j in T.vectorized(width):
                sums[i, j] = sums[i, j] + T.cast(left(i, k), "float32") * T.cast(right(k, j), "float32")


def emit_row_tiles(rows, tile_rows: int, emit: Callable[..., None]) -> None:
    """Emit the loop over row tiles of at most ``tile_rows`` rows and nearly equal height, so that no row is computed
    in vain: ``emit(first, height)`` with a dynamic first row and a static height. ``rows`` may be 0."""
    tiles = T.bind(T.ceildiv(rows, tile_rows))
    with T.serial(tiles) as index:
        first = T.bind(index * rows // tiles)
        height = T.bind((index + 1) * rows // tiles - first)
        _emit_between(height, 1, tile_rows, lambda static_height: emit(first, static_height))


def _emit_between(height, low: int, high: int, emit: Callable[[int], None]) -> None:
    """Emit a binary choice between the code for ``low`` to ``high`` rows; ``height`` is known only at run time."""
    if low == high:
        emit(low)
        return
    middle = (low + high) // 2
    with T.If(height <= middle):
        with T.Then():
            _emit_between(height, low, middle, emit)
        with T.Else():
            _emit_between(height, middle + 1, high, emit)
