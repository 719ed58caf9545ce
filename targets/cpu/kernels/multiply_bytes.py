"""Products of int8 rows with quantised weights: integer sums within a group, float32 sums over the groups.

A stored number u of the weights means ``(u - zero) * scale``, so a group of a row contributes
``scale * row_scale * (sum of u * a - zero * sum of a)``; the sums of a are known from the quantisation of the row. All
integer arithmetic is exact.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.kernels import decode, matrix_tile
from moec.targets.cpu.kernels.dot import byte_dot, byte_words
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Tile, Weights
from moec.targets.cpu.kernels.register_tile import Sums, emit_row_tiles


def emit(product: Multiplication, rows: Rows, weights: Weights, tile: Tile, sums: Any, first: Any, count: Any) -> None:
    multiply = _BytesProduct(product, rows, weights, tile, sums, first)
    if product.dot_group:
        _clear(sums, count, product.columns)
    if not product.tiles_used:
        emit_row_tiles(count, product.row_tile, multiply.by_dot)
    else:
        with T.If(count < weights.crossover):
            with T.Then():
                emit_row_tiles(count, product.row_tile, multiply.by_dot)
            with T.Else():
                multiply.by_tiles(count)
    multiply.finish(count)


def _clear(sums: Any, count: Any, columns: int) -> None:
    with T.serial(count) as r, T.vectorized(columns) as j:
        T.buffer_store(sums, T.float32(0), [r, j])


class _BytesProduct:
    """The product of one block of rows with one tile."""

    def __init__(
        self, product: Multiplication, rows: Rows, weights: Weights, tile: Tile, sums: Any, first: Any
    ) -> None:
        self._product = product
        self._rows, self._weights, self._tile = rows, weights, tile
        self._sums, self._first = sums, first
        self._lanes = product.machine.lanes
        self._vectors = product.columns // self._lanes
        self._group = product.dot_group or tile.inner
        self._groups = tile.inner // product.dot_group if product.dot_group else 1

    def by_dot(self, row: Any, height: int) -> None:
        """Emit the sums of ``height`` rows from ``row`` on with dot instructions."""
        with T.serial(self._groups) as group:
            dots = Sums(height, self._product.columns, "int32")
            self._fill_with_offsets(dots, row, group)
            with T.serial(self._group // 4) as index:
                self._add_quad(dots, row, T.bind(group * (self._group // 4) + index))
            scales = self._group_scales(group)
            for i, dot in dots.rows():
                self._add(row + i, group, [dot.vector(v, self._lanes) for v in range(self._vectors)], scales)

    def _fill_with_offsets(self, dots: Sums, row: Any, group: Any) -> None:
        """Emit ``dots = -zero * sum of the row's group``."""
        zeros = self._zeros(group)
        for i, dot in dots.rows():
            row_sum = T.bind(self._row_sum(row + i, group))
            for v, zero in enumerate(zeros):
                dot.set_vector(self._every_lane(-row_sum) * zero, v, self._lanes)

    def _add_quad(self, dots: Sums, row: Any, index: Any) -> None:
        dot_instruction = byte_dot(self._product.machine)
        vectors = decode.quad(self._product, self._weights.data, self._tile, index)
        for i, dot in dots.rows():
            word = byte_words(self._rows.values, [self._first + row + i, 4 * index], 1)
            left = T.bind(self._every_lane(word))
            for v, vector in enumerate(vectors):
                dot.set_vector(dot_instruction(dot.vector(v, self._lanes), vector, left), v, self._lanes)

    def by_tiles(self, count: Any) -> None:
        """Emit the sums of all ``count`` rows with matrix tiles."""
        panel, start = self._panel()
        rows = self._rows.values
        block = matrix_tile.BlockProduct("int8", rows, int(rows.shape[1]), panel, self._product.step_bytes)
        dots = T.alloc_buffer((matrix_tile.ROWS, matrix_tile.ROWS), "int32")
        matrix_tile.configure(self._product.step_bytes)
        with T.serial(T.ceildiv(count, matrix_tile.ROWS)) as index:
            row = T.bind(index * matrix_tile.ROWS)
            height = T.bind(T.min(matrix_tile.ROWS, count - row))
            with T.serial(self._groups) as group:
                place = self._first + row, group * self._group, start + group * self._group * matrix_tile.ROWS
                steps = block.steps(self._group)
                with T.If(height > matrix_tile.ROWS // 2):
                    with T.Then():
                        block.emit(*place, steps, dots, 0, halves=2)
                    with T.Else():
                        block.emit(*place, steps, dots, 0, halves=1)
                self._add_block(dots, row, height, group)
        matrix_tile.release()

    def _panel(self) -> tuple[Any, Any]:
        """The tile's weights as bytes, and where in the buffer they start; four-bit weights are unpacked first."""
        if self._product.stored.bits == 8:
            return self._weights.data, self._tile.data
        panel = T.alloc_buffer((self._panel_inner // 4, 4 * self._product.columns), "uint8")
        with T.serial(self._tile.inner // 4) as index:
            decode.store_bytes(self._product, self._weights, self._tile, index, panel)
        flat = T.decl_buffer((self._panel_inner * self._product.columns,), "uint8", data=panel.data)
        return flat, 0

    @property
    def _panel_inner(self) -> int:
        return int(self._rows.values.shape[1]) // 4 * 4

    def _add_block(self, dots: Any, row: Any, height: Any, group: Any) -> None:
        scales, zeros = self._group_scales(group), self._zeros(group)
        with T.serial(height) as i:
            row_sum = T.bind(self._row_sum(row + i, group))
            vectors = [
                dots[i, T.ramp(v * self._lanes, 1, self._lanes)] - self._every_lane(row_sum) * zero
                for v, zero in enumerate(zeros)
            ]
            self._add(row + i, group, vectors, scales)

    def _add(self, row: Any, group: Any, dots: list[Any], scales: list[Any]) -> None:
        """Emit the addition of a group's dot products, scaled where the scale belongs to the group, to a row's sums."""
        row_scale = self._row_scales(row, group if self._product.activation_group else None)
        for v, dot in enumerate(dots):
            place = (row, T.ramp(v * self._lanes, 1, self._lanes))
            value = T.cast(dot, f"float32x{self._lanes}")
            factors = scales[v : v + 1] + row_scale
            if factors:
                value = value * functools.reduce(operator.mul, factors)
            T.buffer_store(self._sums, self._sums[place] + value if self._product.dot_group else value, place)

    def finish(self, count: Any) -> None:
        """Emit the multiplication by those scales that belong to a whole row or column."""
        column_scales = [] if self._product.stored.group else self._scales(self._tile.scales)
        if not column_scales and self._product.activation_group:
            return
        with T.serial(count) as row:
            row_scale = self._row_scales(row, None if self._product.activation_group else 0)
            for v in range(self._vectors):
                place = (row, T.ramp(v * self._lanes, 1, self._lanes))
                factors = [self._sums[place], *column_scales[v : v + 1], *row_scale]
                T.buffer_store(self._sums, functools.reduce(operator.mul, factors), place)

    def _row_scales(self, row: Any, group: Any) -> list[Any]:
        """The scale of a row's group in every lane; nothing where ``group`` is None."""
        return [] if group is None else [self._every_lane(T.bind(self._rows.scales[self._first + row, group]))]

    def _scales(self, start: Any) -> list[Any]:
        vectors = range(self._vectors)
        return [T.bind(decode.scale(self._product, self._weights.scales, start, v)) for v in vectors]

    def _group_scales(self, group: Any) -> list[Any]:
        """Nothing where scales belong to whole columns."""
        if not self._product.stored.group:
            return []
        return self._scales(T.bind(self._tile.scales + group * self._product.columns))

    def _zeros(self, group: Any) -> list[Any]:
        start = self._tile.scales + (group * self._product.columns if self._product.stored.group else 0)
        return [T.bind(decode.zero(self._product, self._weights.zeros, start, v)) for v in range(self._vectors)]

    def _row_sum(self, row: Any, group: Any) -> Any:
        return self._rows.sums[self._first + row, group]

    def _every_lane(self, number: Any) -> Any:
        return T.broadcast(number, self._lanes)
