"""K-tiles of a quantised matrix for tensor cores: codes are read early, and decoded to 16-bit floats later.

A thread reads the codes of its chunks into registers before it multiplies a k-tile. Afterwards it decodes them and
stores the floats where asynchronous copies would have put them. So the latency of reading is hidden behind the work of
the tensor cores.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_tile import CHUNK, CHUNKS, DEPTH, Tile
from moec.targets.gpu.kernels.launch import neighbours
from moec.targets.gpu.kernels.packed_format import decode_word


class Fetched(NamedTuple):
    """Registers of a thread for what it has read: ``codes`` [columns, bytes of a chunk], ``scales`` [columns] and zero
    points (``zeros``) [columns]."""

    codes: Any
    scales: Any
    zeros: Any


def columns_of_thread(tile: Tile) -> int:
    """The number of columns of a k-tile of which a thread decodes a chunk each."""
    return tile.shape.columns // tile.shape.rows_per_copy


def chunk_bytes(tile: Tile) -> int:
    """Bytes of a chunk in the stored format."""
    stored = tile.problem.stored
    assert stored is not None
    return CHUNK * stored.bits // 8


@T.inline
def fetch(tile, fetched, k_tile):
    """Read this thread's codes, scales and zero points of a k-tile into registers."""
    matrix = T.meta_var(tile.operands.matrix)
    expert: T.let = tile.expert
    for i in T.unroll(columns_of_thread(tile)):
        # Columns beyond the last are read from the last one; their sums are not stored.
        column: T.let = tile.column_or_last(tile.first_column + tile.copied_row(i))
        for v in neighbours(chunk_bytes(tile)):
            fetched.codes[i, v] = matrix.data[
                T.cast(expert, "int64"), column, (k_tile * CHUNKS + tile.chunk) * chunk_bytes(tile) + v
            ]
        fetched.scales[i] = matrix.scale(expert, column, k_tile * DEPTH + tile.chunk * CHUNK)
        fetched.zeros[i] = matrix.zero(expert, column, k_tile * DEPTH + tile.chunk * CHUNK)


@T.inline
def decode(tile, fetched, stage):
    """Decode this thread's codes and store the floats in a stage of the matrix's k-tiles."""
    stored = T.meta_var(tile.problem.stored)
    exact = T.alloc_local((CHUNK,), "float32")
    numbers = T.alloc_local((CHUNK,), tile.problem.dtype)
    for i in T.unroll(columns_of_thread(tile)):
        if stored.has_words:
            words = T.decl_buffer((columns_of_thread(tile),), "uint32", data=fetched.codes.data)
            decode_word(stored, words[i], T.cast(fetched.zeros[i], "float32"), exact, 0)
            if stored.word_factor != 1:
                for v in T.unroll(CHUNK):
                    exact[v] = exact[v] * T.float32(stored.word_factor)
        else:
            for v in T.unroll(CHUNK):
                code: T.let = stored.code(lambda byte: fetched.codes[i, byte], v)
                exact[v] = stored.number(code, fetched.zeros[i])
        for v in T.unroll(CHUNK):
            numbers[v] = T.cast(exact[v] * fetched.scales[i], tile.problem.dtype)
        for v in T.vectorized(CHUNK):
            tile.column_tiles[stage, tile.copied_row(i), tile.place + v] = numbers[v]
