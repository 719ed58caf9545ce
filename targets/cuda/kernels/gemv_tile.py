"""What a warp computes of a matrix-vector product: some outputs of one row, or of a few rows with the same matrix.

The lanes of the warp read 16 bytes of a line of the matrix each, side by side, and of the next lines before the first
sums are done. What has been read serves all rows. At the end the lanes add up their sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.kernels.grouped_problem import GATE_GROUP, GroupedProblem
from moec.targets.cuda.kernels.launch import WARP, neighbours
from moec.targets.cuda.kernels.tf32 import round_values

COLUMNS_PER_WARP = 4
"""Rows of the matrix that a warp reads together, those of gate and up both counted."""
_LOAD_BYTES = 16
_QUANTIZED_INPUTS = 8
"""Quantised numbers that a lane reads at once; they share a scale."""
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def why_not(problem: GroupedProblem) -> str | None:
    """The reason why a warp cannot compute the problem like this, or None."""
    reason = problem.why_not_stored()
    if reason is not None:
        return reason
    together = lane_inputs(problem)
    if problem.inner % together:
        return f"{problem.inner} inputs; a lane reads {together} at once"
    return None if problem.stored is None else problem.stored.why_not(together)


def lane_inputs(problem: GroupedProblem) -> int:
    """Inputs that a lane reads at once."""
    if problem.stored is not None:
        return _QUANTIZED_INPUTS
    return _LOAD_BYTES // _BYTES[problem.matrix_dtype]


@dataclasses.dataclass(frozen=True)
class WarpTile:
    """What a warp knows of its outputs: ``first`` is the first of them. ``row(r)`` is the ``r``-th of its ``rows`` rows
    of the input, int64."""

    problem: GroupedProblem
    first: Any
    lane: Any
    row: Callable[[Any], Any]
    rows: int = 1

    @property
    def count(self) -> int:
        """Outputs of a row."""
        return COLUMNS_PER_WARP // self.columns_per_output

    @property
    def columns_per_output(self) -> int:
        return 2 if self.problem.gated else 1

    def column(self, c: Any) -> Any:
        """The ``c``-th column; where gated, even ones are gates and odd ones up. The last one for those behind it."""
        output = T.min(self.first + c // self.columns_per_output, self.problem.width - 1)
        if not self.problem.gated:
            return output
        return output // GATE_GROUP * (2 * GATE_GROUP) + output % GATE_GROUP + c % 2 * GATE_GROUP


@T.inline
def _load_row(tile, rows, row, part, values):
    """A part of a row, in float32; as many bytes at once as the storage has."""
    count = T.meta_var(lane_inputs(tile.problem))
    vector = T.meta_var(min(count, _LOAD_BYTES // _BYTES[tile.problem.dtype]))
    stored = T.alloc_local((count,), tile.problem.dtype)
    for load in T.unroll(count // vector):
        for v in T.vectorized(vector):
            stored[load * vector + v] = rows[row, part * count + load * vector + v]
    for v in T.unroll(count):
        values[v] = T.cast(stored[v], "float32")
    if tile.problem.tf32:
        round_values(values, count)


@T.inline
def _multiply_floats(tile, rows, matrix, expert, part, sums):
    count = T.meta_var(lane_inputs(tile.problem))
    values = T.alloc_local((count,), "float32")
    weights = T.alloc_local((COLUMNS_PER_WARP, count), tile.problem.matrix_dtype)
    for c in T.unroll(COLUMNS_PER_WARP):
        for v in T.vectorized(count):
            weights[c, v] = matrix.data[T.cast(expert, "int64"), tile.column(c), part * count + v]
    for r in T.unroll(tile.rows):
        _load_row(tile, rows, tile.row(r), part, values)
        for c in T.unroll(COLUMNS_PER_WARP):
            for v in T.unroll(count):
                sums[r, c] = sums[r, c] + values[v] * T.cast(weights[c, v], "float32")


@T.inline
def _multiply_quantized(tile, rows, matrix, expert, part, sums):
    """The numbers of a part are summed as they are, and the sum is multiplied by their scale."""
    stored = T.meta_var(matrix.stored)
    count = T.meta_var(_QUANTIZED_INPUTS)
    bytes_read = T.meta_var(count * stored.bits // 8)
    values = T.alloc_local((count,), "float32")
    codes = T.alloc_local((COLUMNS_PER_WARP, bytes_read), "uint8")
    scales = T.alloc_local((COLUMNS_PER_WARP,), "float32")
    zeros = T.alloc_local((COLUMNS_PER_WARP,), "int32")
    partial = T.alloc_local((1,), "float32")
    for c in T.unroll(COLUMNS_PER_WARP):
        for v in neighbours(bytes_read):
            codes[c, v] = matrix.data[T.cast(expert, "int64"), tile.column(c), part * bytes_read + v]
        scales[c] = matrix.scale(expert, tile.column(c), part * count)
        zeros[c] = matrix.zero(expert, tile.column(c), part * count)
    for r in T.unroll(tile.rows):
        _load_row(tile, rows, tile.row(r), part, values)
        for c in T.unroll(COLUMNS_PER_WARP):
            partial[0] = T.float32(0)
            for v in T.unroll(count):
                code: T.let = stored.code(lambda byte: codes[c, byte], v)
                partial[0] = partial[0] + values[v] * stored.number(code, zeros[c])
            sums[r, c] = sums[r, c] + partial[0] * scales[c]


@T.inline
def multiply_rows(tile, rows, matrix, expert, sums):
    """``sums`` [rows, :data:`COLUMNS_PER_WARP`]: every lane's part of the products, in float32."""
    count = T.meta_var(lane_inputs(tile.problem))
    for r in T.unroll(tile.rows):
        for c in T.unroll(COLUMNS_PER_WARP):
            sums[r, c] = T.float32(0)
    for step in T.serial(-(-tile.problem.inner // (WARP * count))):
        part: T.let = step * WARP + tile.lane
        if part < tile.problem.inner // count:
            if matrix.stored is None:
                _multiply_floats(tile, rows, matrix, expert, part, sums)
            else:
                _multiply_quantized(tile, rows, matrix, expert, part, sums)
