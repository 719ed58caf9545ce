"""Packing of weights into the tile order of :mod:`moec.targets.cpu.kernels.tiled_format`.

All layouts of :class:`~moec.ir.dialect.ExpertsSpec` become this order, the only one that kernels read. Experts are
packed one at a time, so that packing needs the memory of one.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np

from moec.common.dtypes import dtype_of
from moec.ir.weights.encode import StoredMatrix, Table, codes_of
from moec.targets.cpu.kernels.grouped_gemm import PackedProduct
from moec.targets.cpu.kernels.multiplication import Multiplication
from moec.targets.cpu.kernels.tiled_format import TiledFormat

_IN_BYTES = (ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fn)
"""Types of scales, and of codes of these, that are stored as bytes."""


def pack_data(problem: PackedProduct, expert: int, parts: Sequence[StoredMatrix]) -> np.ndarray:
    """The tiles of one expert, flat. ``parts``: gate and up, or a single matrix, [in, out] each."""
    product, inner, width = _of(problem, expert)
    codes = [_codes(product, part.data[:inner, :width]) for part in parts]
    tiles = _tiled(problem, codes, product.padded(inner), width, product.stored.zero)
    step = product.stored.step
    if step > 1:
        tiles = tiles.reshape(len(tiles), tiles.shape[1] // step, step, problem.columns).swapaxes(2, 3)
    if product.stored.bits < 8 and not product.stored.is_float:
        half = problem.columns // 2
        tiles = _packed(tiles[:, :, :half], tiles[:, :, half:], product.stored)
    return np.ascontiguousarray(tiles).reshape(-1)


def _packed(first: np.ndarray, second: np.ndarray, stored: TiledFormat) -> np.ndarray:
    """Pack the numbers of the first and the second vector of a tile, [tile, quads, columns, 4] each, into bytes."""
    units, words = first.shape[1] // stored.quads, []
    for low, bits in stored.planes:
        left, right = ((part >> low) & ((1 << bits) - 1) for part in (first, second))
        plane = _side_by_side(left | (right << bits), 2 * bits)
        words.append(plane.reshape(len(plane), units, stored.quads * 2 * bits // 8, *plane.shape[2:]))
    return np.concatenate(words, axis=2)


def _side_by_side(quads: np.ndarray, bits: int) -> np.ndarray:
    """Pack ``8 // bits`` neighbouring quads [tile, quads, columns, 4] of ``bits`` each into one quad of bytes."""
    together = 8 // bits
    return functools.reduce(operator.or_, (quads[:, place::together] << (bits * place) for place in range(together)))


def pack_table(problem: PackedProduct, expert: int, parts: Sequence[StoredMatrix], table: Table) -> np.ndarray:
    """A table of one expert that has entries for groups of inputs, flat, in the order [tile, group, column]."""
    product, inner, width = _of(problem, expert)
    groups = product.stored.groups(product.padded(inner))
    if table.endswith("_factor"):
        groups //= product.stored.span
    arrays = [array[:groups, :width] for part in parts if (array := part.read(table)) is not None]
    if table.endswith("_factor") and product.stored.has_float_codes:
        arrays = [np.broadcast_to(array, (groups, array.shape[1])) for array in arrays]
    if arrays[0].dtype in _IN_BYTES:
        arrays = [np.ascontiguousarray(array).view(np.uint8) for array in arrays]
    dtype = dtype_of(_type_of(product.stored, table))
    return _tiled(problem, arrays, groups, width, 0).astype(dtype, copy=False).reshape(-1)


def _type_of(stored: TiledFormat, table: Table) -> str:
    if table == "zero_point":
        return "uint8"
    return stored.scale if table.endswith("_factor") else stored.scale_storage


def _of(problem: PackedProduct, expert: int) -> tuple[Multiplication, int, int]:
    index, inner, width = problem.sizes(expert)
    return problem.multiplications[index], inner, width


def _codes(product: Multiplication, data: np.ndarray) -> np.ndarray:
    """The numbers in stored form: floats unchanged, integers and codes as unsigned bytes."""
    if product.stored.is_float:
        return data
    if not product.stored.is_whole:
        return np.ascontiguousarray(data).view(np.uint8) & ((1 << product.stored.bits) - 1)
    if product.stored.is_looked_up:
        return codes_of(data, product.stored.element)
    if product.stored.zero_points or product.stored.minima:
        return data.astype(np.uint8)
    return (data.astype(np.int16) + product.stored.zero).astype(np.uint8)


def _tiled(problem: PackedProduct, parts: Sequence[np.ndarray], rows: int, width: int, fill: int) -> np.ndarray:
    """Parts [at most rows, width] (gate and up, or a single one) as [tile, rows, columns], padded with ``fill``."""
    tiles, tile_width = problem.tiles_for(width), problem.tile_width
    tiled = np.full((tiles, rows, len(parts), tile_width), fill, parts[0].dtype)
    for tile in range(tiles):  # tile by tile, so that reading across the rows of a weight stays in cache
        for position, part in enumerate(parts):
            columns = part[:, tile * tile_width : (tile + 1) * tile_width]
            tiled[tile, : len(columns), position, : columns.shape[1]] = columns
    return tiled.reshape(tiles, rows, problem.columns)


def pack_bias(problem: PackedProduct, parts: Sequence[np.ndarray | None]) -> Iterator[np.ndarray]:
    """Biases [E, width] (gate and up, or one alone; None for zeros) as [column tile, columns] in float32, expert by
    expert."""
    for expert in range(problem.experts):
        rows = [
            np.zeros((1, problem.width), np.float32) if part is None else part[expert : expert + 1].astype(np.float32)
            for part in parts
        ]
        yield _tiled(problem, rows, 1, problem.width, 0).reshape(-1)
