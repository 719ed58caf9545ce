"""Products of int8 rows with quantised weights: integer sums within a group, float32 sums over the groups.

A stored number u of the weights means ``(u - zero) * scale``, so a group of a row contributes
``scale * row_scale * (sum of u * a - zero * sum of a)``; the sums of a are known from the quantisation of the row. All
integer arithmetic is exact. With minima it is ``row_scale * (scale * sum of u * a - minimum * sum of a)``.

Where groups of weights are smaller than those of the rows, their float32 sums are kept in registers, and multiplied by
the row's scale once per group of the row. Totals wait in memory between the groups of a row.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.kernels import decode, matrix_tile
from moec.targets.cpu.kernels.dot import byte_dot, byte_words
from moec.targets.cpu.kernels.emit import loop, named
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Weights, WeightTile
from moec.targets.cpu.kernels.register_tile import Sums, clear_rows, emit_row_tiles
from moec.targets.cpu.kernels.unpacked import StoredTile, UnpackedTile, WeightSource

_MANY_TILES = 4
"""With more register tiles than these, the weights of a tile are mostly read from the caches: prefetching them costs
more than it gains, and numbers that are looked up are unpacked first. (Unpacking four-bit integers in every register
tile costs less than bytes from the second-level cache.)"""


def emit(
    product: Multiplication, rows: Rows, weights: Weights, tile: WeightTile, sums: Any, first: Any, count: Any
) -> None:
    multiply = _BytesProduct(product, rows, weights, tile, sums, first)
    if product.dot_group:
        clear_rows(sums, count)
    if product.tiles_used:
        with T.If(count < weights.crossover):
            with T.Then():
                multiply.by_dot(count, multiply.stored)
            with T.Else():
                multiply.by_tiles(count)
    else:
        with T.If(count <= _MANY_TILES * product.row_tile):
            with T.Then():
                multiply.by_dot(count, multiply.stored)
            with T.Else():
                multiply.by_dot(count, multiply.for_many_rows(), least_tiles=_MANY_TILES + 1)
    multiply.finish(count)


class _BytesProduct:
    """The product of one block of rows with one tile."""

    def __init__(
        self, product: Multiplication, rows: Rows, weights: Weights, tile: WeightTile, sums: Any, first: Any
    ) -> None:
        self._product = product
        self._rows, self._weights, self._tile = rows, weights, tile
        self._sums, self._first = sums, first
        self._lanes = product.machine.lanes
        self._dot_instruction = byte_dot(product.machine)
        self.stored = StoredTile(product, weights, tile)

    def for_many_rows(self) -> WeightSource:
        if self._product.stored.table:
            return self.unpacked()
        return StoredTile(self._product, self._weights, self._tile, streamed=False)

    def unpacked(self) -> UnpackedTile:
        return UnpackedTile(self._product, self._weights, self._tile, int(self._rows.values.shape[1]) // 4 * 4)

    def by_dot(self, count: Any, source: WeightSource, least_tiles: int = 1) -> None:
        """Emit the sums of all ``count`` rows with dot instructions."""
        emit_groups = self._emit_scaled_groups if self._product.stored.group else self._emit_groups
        tile_rows = self._product.row_tile
        emit_row_tiles(count, tile_rows, lambda row, height: emit_groups(row, height, source), least_tiles)

    def _emit_groups(self, row: Any, height: int, source: WeightSource) -> None:
        """Weights without groups: what a group of the row contributes is added to its sums at once."""
        product = self._product
        inner = product.activation_group or self._tile.inner
        with loop("group", T.serial(self._row_groups)) as group:
            dots = self._dots(row, height, source, group, inner)
            for i, dot in dots.rows():
                self._add(row + i, group, [self._float(dot.vector(v, self._lanes)) for v in range(product.vectors)])

    def _emit_scaled_groups(self, row: Any, height: int, source: WeightSource) -> None:
        """Weights with groups, of which one or several share a scale of the row. All groups are one loop: LLVM would
        unroll a loop over those that share a scale, and read them all at once, which is ahead of their prefetches."""
        product = self._product
        groups = self._tile.inner // product.stored.group
        per_scale = product.groups_per_scale if product.activation_group else groups
        scaled = Sums(height, product.columns, name="scaled")
        self._clear(scaled)
        with loop("group", T.serial(groups)) as group:
            dots = self._dots(row, height, source, group, product.stored.group)
            scales, minima = source.scales(group), source.minima(group)
            for i, dot, total in dots.rows_with(scaled):
                for v, scale in enumerate(scales):
                    value = self._float(dot.vector(v, self._lanes)) * scale
                    for least in minima[v : v + 1]:
                        value = value - least * self._sum_in_every_lane(row + i, group)
                    total.set_vector(total.vector(v, self._lanes) + value, v, self._lanes)
            with T.If(group % per_scale == per_scale - 1), T.Then():
                for i, total in scaled.rows():
                    values = [total.vector(v, self._lanes) for v in range(product.vectors)]
                    self._add(row + i, group // per_scale, values)
                self._clear(scaled)

    def _clear(self, sums: Sums) -> None:
        """By the vectors that are added later, or LLVM keeps them in memory."""
        for _, total in sums.rows():
            for v in range(self._product.vectors):
                total.set_vector(self._every_lane(T.float32(0)), v, self._lanes)

    def _dots(self, row: Any, height: int, source: WeightSource, group: Any, inner: Any) -> Sums:
        """Emit the integer sums of the ``group``-th ``inner`` inputs of ``height`` rows, and return them."""
        dots = Sums(height, self._product.columns, "int32", name="dots")
        zeros = self._zeros(group)
        for i, dot in dots.rows():
            row_sum = named("row_sum", T.bind(self._row_sum(row + i, group)))
            for v, zero in enumerate(zeros):
                dot.set_vector(self._every_lane(-row_sum) * zero, v, self._lanes)
        together = 4 * self._product.stored.quads
        with loop("position", T.serial(inner // together)) as position:
            index = named("index", T.bind(group * (inner // together) + position))
            for quad, vectors in enumerate(source.quads(index)):
                for i, dot in dots.rows():
                    word = byte_words(self._rows.values, [self._first + row + i, together * index + 4 * quad], 1)
                    left = named("left", T.bind(self._every_lane(word)))
                    for v, vector in enumerate(vectors):
                        dot.set_vector(self._dot_instruction(dot.vector(v, self._lanes), vector, left), v, self._lanes)
        return dots

    def by_tiles(self, count: Any) -> None:
        """Emit the sums of all ``count`` rows with matrix tiles."""
        product, groups = self._product, self._groups
        inner = product.dot_group or self._tile.inner
        source: WeightSource = self.stored
        panel, start = self._weights.data, self._tile.data
        if product.stored.bits != 8:
            source = unpacked = self.unpacked()
            panel, start = unpacked.flat_bytes(), 0
        rows = self._rows.values
        block = matrix_tile.BlockProduct("int8", rows, int(rows.shape[1]), panel, product.step_bytes)
        dots = named("dots", T.alloc_buffer((matrix_tile.ROWS, matrix_tile.ROWS), "int32"))
        matrix_tile.configure(product.step_bytes)
        with loop("index", T.serial(T.ceildiv(count, matrix_tile.ROWS))) as index:
            row = named("row", T.bind(index * matrix_tile.ROWS))
            height = named("height", T.bind(T.min(matrix_tile.ROWS, count - row)))
            with loop("group", T.serial(groups)) as group:
                place = self._first + row, group * inner, start + group * inner * matrix_tile.ROWS
                with T.If(height > matrix_tile.ROWS // 2):
                    with T.Then():
                        block.emit(*place, block.steps(inner), dots, 0, halves=2)
                    with T.Else():
                        block.emit(*place, block.steps(inner), dots, 0, halves=1)
                self._add_block(dots, row, height, group, source)
        matrix_tile.release()

    @property
    def _row_groups(self) -> Any:
        """Groups of a row that have a scale of their own."""
        group = self._product.activation_group
        return self._tile.inner // group if group else 1

    @property
    def _groups(self) -> Any:
        return self._tile.inner // self._product.dot_group if self._product.dot_group else 1

    def _add_block(self, dots: Any, row: Any, height: Any, group: Any, source: WeightSource) -> None:
        zeros = self._zeros(group)
        scales = source.scales(group) if self._product.stored.group else []
        minima = source.minima(group)
        per_scale = self._product.groups_per_scale if self._product.activation_group else 1
        with loop("i", T.serial(height)) as i:
            row_sum = named("row_sum", T.bind(self._row_sum(row + i, group)))
            values = []
            for v, zero in enumerate(zeros):
                dot = dots[i, T.ramp(v * self._lanes, 1, self._lanes)] - self._every_lane(row_sum) * zero
                value = functools.reduce(operator.mul, [self._float(dot), *scales[v : v + 1]])
                for least in minima[v : v + 1]:
                    value = value - least * self._sum_in_every_lane(row + i, group)
                values.append(value)
            self._add(row + i, group // per_scale, values)

    def _add(self, row: Any, row_group: Any, values: list[Any]) -> None:
        """Emit the addition of what a group of a row contributes, times its scale, to the row's sums. Rows without
        groups are scaled at the end."""
        row_scale = self._row_scale(row, row_group) if self._product.activation_group else None
        for v, value in enumerate(values):
            place = (row, T.ramp(v * self._lanes, 1, self._lanes))
            scaled = value if row_scale is None else value * row_scale
            T.buffer_store(self._sums, self._sums[place] + scaled if self._product.dot_group else scaled, place)

    def finish(self, count: Any) -> None:
        """Emit the multiplication by those scales that belong to a whole row or column."""
        product = self._product
        if product.stored.group and product.activation_group:
            return
        column_scales = [] if product.stored.group else self.stored.scales(T.int64(0))
        with loop("row", T.serial(count)) as row:
            row_scale = [] if product.activation_group else [self._row_scale(row, 0)]
            for v in range(product.vectors):
                place = (row, T.ramp(v * self._lanes, 1, self._lanes))
                factors = [self._sums[place], *column_scales[v : v + 1], *row_scale]
                T.buffer_store(self._sums, functools.reduce(operator.mul, factors), place)

    def _zeros(self, group: Any) -> list[Any]:
        start = self._tile.scales + (group * self._product.columns if self._product.stored.group else 0)
        vectors = range(self._product.vectors)
        return [T.bind(decode.zero(self._product, self._weights.zeros, start, v)) for v in vectors]

    def _row_scale(self, row: Any, group: Any) -> Any:
        """The scale of a row's group in every lane."""
        return self._every_lane(T.bind(self._rows.scales[self._first + row, group]))

    def _row_sum(self, row: Any, group: Any) -> Any:
        return self._rows.sums[self._first + row, group]

    def _sum_in_every_lane(self, row: Any, group: Any) -> Any:
        return self._every_lane(T.bind(T.cast(self._row_sum(row, group), "float32")))

    def _float(self, dots: Any) -> Any:
        return T.cast(dots, f"float32x{self._lanes}")

    def _every_lane(self, number: Any) -> Any:
        return T.broadcast(number, self._lanes)
