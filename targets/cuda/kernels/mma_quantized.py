"""Panels of a quantised matrix for tensor cores: read early, decoded into 16-bit floats when the time has come.

A thread reads the codes of its pieces into registers before it multiplies a panel, and afterwards stores them, decoded,
where asynchronous copies would have put them: what it takes to read them passes while the tensor cores work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tvm.script import tirx as T

from moec.targets.cuda.kernels.launch import neighbours
from moec.targets.cuda.kernels.mma_tile import DEPTH, PIECE, PIECES, Tile
from moec.targets.cuda.kernels.packed_format import decode_word


class Fetched(NamedTuple):
    """Registers of a thread: codes [lines, bytes of a piece], scales [lines] and zero points [lines]."""

    codes: Any
    scales: Any
    zeros: Any


def lines_of(tile: Tile) -> int:
    """Columns of a panel that a thread decodes a piece of."""
    return tile.shape.columns // tile.shape.lines_per_copy


def piece_bytes(tile: Tile) -> int:
    """Bytes of a piece as it is stored."""
    stored = tile.problem.stored
    assert stored is not None
    return PIECE * stored.bits // 8


@T.inline
def fetch(tile, fetched, panel):
    matrix = T.meta_var(tile.operands.matrix)
    expert: T.let = tile.expert
    for i in T.unroll(lines_of(tile)):
        # The last column stands for those behind it, whose sums are not stored.
        column: T.let = tile.column_or_last(tile.first_column + tile.line(i))
        for v in neighbours(piece_bytes(tile)):
            fetched.codes[i, v] = matrix.data[
                T.cast(expert, "int64"), column, (panel * PIECES + tile.piece) * piece_bytes(tile) + v
            ]
        fetched.scales[i] = matrix.scale(expert, column, panel * DEPTH + tile.piece * PIECE)
        fetched.zeros[i] = matrix.zero(expert, column, panel * DEPTH + tile.piece * PIECE)


@T.inline
def decode(tile, fetched, stage):
    stored = T.meta_var(tile.problem.stored)
    exact = T.alloc_local((PIECE,), "float32")
    numbers = T.alloc_local((PIECE,), tile.problem.dtype)
    for i in T.unroll(lines_of(tile)):
        if stored.has_words:
            words = T.decl_buffer((lines_of(tile),), "uint32", data=fetched.codes.data)
            decode_word(stored, words[i], T.cast(fetched.zeros[i], "float32"), exact, 0)
            if stored.word_factor != 1:
                for v in T.unroll(PIECE):
                    exact[v] = exact[v] * T.float32(stored.word_factor)
        else:
            for v in T.unroll(PIECE):
                code: T.let = stored.code(lambda byte: fetched.codes[i, byte], v)
                exact[v] = stored.number(code, fetched.zeros[i])
        for v in T.unroll(PIECE):
            numbers[v] = T.cast(exact[v] * fetched.scales[i], tile.problem.dtype)
        for v in T.vectorized(PIECE):
            tile.column_panels[stage, tile.line(i), tile.place + v] = numbers[v]
