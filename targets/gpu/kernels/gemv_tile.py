"""The work of one warp in a matrix-vector product: some outputs of one row, or of a few rows with the same matrix.

Each lane reads 16 bytes of a row of the matrix, next to its neighbours', and does so for several rows of the matrix
before the first sums are computed. The numbers serve all input rows. At the end the lanes add up their sums. Floats of
the matrix are loaded :data:`AHEAD` steps before they are multiplied, so that memory is busy in the meantime.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from moec.common.dtypes import dtype_of
from moec.targets.gpu.kernels.block_scaled_rows import load_inputs
from moec.targets.gpu.kernels.fp8_rows import GROUP, decode_pairs, place_of_scale, words_of
from moec.targets.gpu.kernels.grouped_problem import GATE_GROUP, GroupedProblem
from moec.targets.gpu.kernels.instructions import fetch_into_cache
from moec.targets.gpu.kernels.launch import LOAD_BYTES, WARP, neighbours, read_at_once
from moec.targets.gpu.kernels.packed_format import decode_word
from moec.targets.gpu.kernels.tf32 import round_value

COLUMNS_PER_WARP = 4
"""Rows of the matrix that a warp reads together, counting those of gate and up."""
AHEAD = 2
"""Steps whose floats of the matrix are in flight while those of the step before are multiplied."""
_SETS = AHEAD + 1
"""Sets of registers for the floats of a step."""
_QUANTIZED_INPUTS = 8
"""Quantised numbers that a lane reads at once, with one scale."""


def why_not(problem: GroupedProblem) -> str | None:
    """The reason why warps cannot compute the problem this way, or None."""
    reason = problem.why_not_stored()
    if reason is not None:
        return reason
    together = lane_inputs(problem)
    if problem.inner % together:
        return f"{problem.inner} inputs; a lane reads {together} at once"
    return None if problem.stored is None else problem.stored.why_not(together)


def lane_inputs(problem: GroupedProblem, rows: int = 1) -> int:
    """Inputs that a lane reads at once. For one row with a 4-bit or fp8 matrix they are twice as many as for other
    quantised ones, unless that would leave more lanes idle."""
    stored, twice = problem.stored, 2 * _QUANTIZED_INPUTS
    if stored is None:
        return LOAD_BYTES // dtype_of(problem.matrix_dtype).itemsize
    if rows > 1 or not (stored.has_words or problem.in_fp8) or problem.inner % twice or stored.group % twice:
        return _QUANTIZED_INPUTS
    return twice if 2 * _steps(problem, twice) == _steps(problem, _QUANTIZED_INPUTS) else _QUANTIZED_INPUTS


def _steps(problem: GroupedProblem, inputs: int) -> int:
    """The number of steps in which all lanes read, each ``inputs`` inputs at once."""
    return -(-problem.inner // (WARP * inputs))


@dataclasses.dataclass(frozen=True)
class WarpTile:
    """The outputs of a warp, from ``first`` on, of ``rows`` input rows. ``row(r)``: the index of the ``r``-th of these
    rows, int64."""

    problem: GroupedProblem
    first: Any
    lane: Any
    row: Callable[[Any], Any]
    rows: int = 1

    @property
    def inputs(self) -> int:
        """Inputs that a lane reads at once."""
        return lane_inputs(self.problem, self.rows)

    @property
    def count(self) -> int:
        """Outputs of the warp per row."""
        return COLUMNS_PER_WARP // self.problem.columns_per_output

    def column(self, c: Any) -> Any:
        """The ``c``-th column of the warp; if gated, even c are gates and odd c are up. Beyond the last output it is a
        column of the last."""
        output = T.min(self.first + c // self.problem.columns_per_output, self.problem.width - 1)
        if not self.problem.gated:
            return output
        return output // GATE_GROUP * (2 * GATE_GROUP) + output % GATE_GROUP + c % 2 * GATE_GROUP


@T.inline
def _load_row(tile, rows, r, part, values):
    """Load this lane's inputs of row ``r`` and ``part`` into ``values[r]``, as float32, with loads as wide as the row's
    alignment allows."""
    count = T.meta_var(tile.inputs)
    vector = T.meta_var(read_at_once(count, tile.problem.dtype))
    stored = T.alloc_local((count,), tile.problem.dtype)
    for load in T.unroll(count // vector):
        for v in T.vectorized(vector):
            stored[load * vector + v] = rows[tile.row(r), part * count + load * vector + v]
    for v in T.unroll(count):
        values[r, v] = T.cast(stored[v], "float32")
        if tile.problem.tf32:
            round_value(values, (r, v))


@T.inline
def _load_packed_row(tile, rows, r, part, values):
    """Load this lane's inputs of a row in fp8 into ``values[r]``, multiplied by their scale."""
    count = T.meta_var(tile.inputs)
    codes = T.alloc_local((1, count), "uint8")
    numbers = T.alloc_local((count,), "float32")
    pairs = T.decl_buffer((1, count // 2), "uint16", data=codes.data)
    scales = T.meta_var(words_of(rows, "float32"))
    for v in T.vectorized(count):
        codes[0, v] = rows[tile.row(r), part * count + v]
    scale: T.let = scales[tile.row(r), place_of_scale(tile.problem.inner, part * count // GROUP)]
    decode_pairs(pairs, 0, numbers)
    for v in T.unroll(count):
        values[r, v] = numbers[v] * scale


@T.inline
def _read_weights(tile, matrix, expert, step, weights):
    """Load this lane's numbers of the matrix of a step."""
    count, place = T.meta_var((tile.inputs, step % _SETS))
    for c in T.unroll(COLUMNS_PER_WARP):
        for v in T.vectorized(count):
            weights[place, c, v] = matrix.data[
                T.cast(expert, "int64"), tile.column(c), (step * WARP + tile.lane) * count + v
            ]


@T.inline
def _multiply_weights(tile, rows, step, weights, sums):
    """Add this lane's products of a step, whose numbers of the matrix were loaded."""
    count, place = T.meta_var((tile.inputs, step % _SETS))
    values = T.alloc_local((tile.rows, count), "float32")
    for r in T.unroll(tile.rows):
        _load_row(tile, rows, r, step * WARP + tile.lane, values)
        for c in T.unroll(COLUMNS_PER_WARP):
            for v in T.unroll(count):
                sums[r, c] = sums[r, c] + values[r, v] * T.cast(weights[place, c, v], "float32")


@T.inline
def _multiply_floats(tile, rows, matrix, expert, sums):
    """Add this lane's products of all steps. The loop has no conditions: ptxas would move a load with one behind the
    products that it is to overlap."""
    parts = T.meta_var(tile.problem.inner // tile.inputs)
    turns = T.meta_var(max(0, (parts // WARP - AHEAD) // _SETS))
    weights = T.alloc_local((_SETS, COLUMNS_PER_WARP, tile.inputs), tile.problem.matrix_dtype)
    for step in T.unroll(AHEAD):
        if step * WARP + tile.lane < parts:
            _read_weights(tile, matrix, expert, step, weights)
    if turns > 0:
        for turn in T.serial(turns, unroll=False):
            for i in T.unroll(_SETS):
                _read_weights(tile, matrix, expert, turn * _SETS + i + AHEAD, weights)
                _multiply_weights(tile, rows, turn * _SETS + i, weights, sums)
    for step in T.unroll(turns * _SETS, _steps(tile.problem, tile.inputs)):
        if (step + AHEAD) * WARP + tile.lane < parts:
            _read_weights(tile, matrix, expert, step + AHEAD, weights)
        if step * WARP + tile.lane < parts:
            _multiply_weights(tile, rows, step, weights, sums)


@T.inline
def _read_codes(tile, matrix, expert, part, codes):
    stored = T.meta_var(matrix.stored)
    count = T.meta_var(codes.shape[1])
    for c in T.unroll(COLUMNS_PER_WARP):
        if stored.has_words:
            words = T.decl_buffer(matrix.word_shape, "uint32", data=matrix.data.data)
            for v in T.vectorized(count):
                codes[c, v] = words[T.cast(expert, "int64"), tile.column(c), part * count + v]
        else:
            for v in neighbours(count):
                codes[c, v] = matrix.data[T.cast(expert, "int64"), tile.column(c), part * count + v]


@T.inline
def _decode(problem, codes, zeros, c, numbers):
    """Decode the codes of column ``c`` into ``numbers``, as float32 without scale."""
    stored = T.meta_var(problem.stored)
    if problem.in_fp8:
        pairs = T.decl_buffer((COLUMNS_PER_WARP, codes.shape[1] // 2), "uint16", data=codes.data)
        decode_pairs(pairs, c, numbers)
    elif stored.has_words:
        for word in T.unroll(codes.shape[1]):
            decode_word(stored, codes[c, word], T.cast(zeros[c], "float32"), numbers, word * 8)
    else:
        for v in T.unroll(_QUANTIZED_INPUTS):
            code: T.let = stored.code(lambda byte: codes[c, byte], v)
            numbers[v] = stored.number(code, zeros[c])


@T.inline
def _multiply_quantized(tile, rows, matrix, expert, part, sums):
    """Add this lane's products for one part. They are summed without scale, and the sum is multiplied by the scale."""
    stored = T.meta_var(matrix.stored)
    count = T.meta_var(tile.inputs)
    element = T.meta_var("uint32" if stored.has_words else "uint8")
    bytes_read = T.meta_var(count * stored.bits // 8)
    values = T.alloc_local((tile.rows, count), "float32")
    codes = T.alloc_local((COLUMNS_PER_WARP, bytes_read // dtype_of(element).itemsize), element)
    scales = T.alloc_local((COLUMNS_PER_WARP,), "float32")
    zeros = T.alloc_local((COLUMNS_PER_WARP,), "int32")
    numbers = T.alloc_local((count,), "float32")
    partial = T.local_scalar("float32")
    _read_codes(tile, matrix, expert, part, codes)
    for c in T.unroll(COLUMNS_PER_WARP):
        scales[c] = matrix.scale(expert, tile.column(c), part * count)
        zeros[c] = matrix.zero(expert, tile.column(c), part * count)
    for r in T.unroll(tile.rows):
        if tile.problem.scaling is not None:
            load_inputs(tile.problem.scaling, tile.problem.inner, rows, tile.row(r), part * count, values, r)
        elif tile.problem.in_fp8:
            _load_packed_row(tile, rows, r, part, values)
        else:
            _load_row(tile, rows, r, part, values)
    for c in T.unroll(COLUMNS_PER_WARP):
        _decode(tile.problem, codes, zeros, c, numbers)
        for r in T.unroll(tile.rows):
            partial = T.float32(0)
            for v in T.unroll(count):
                partial = partial + values[r, v] * numbers[v]
            if stored.has_words and stored.word_factor != 1:
                partial = partial * T.float32(stored.word_factor)
            sums[r, c] = sums[r, c] + partial * scales[c]


@T.inline
def fetch_rows(tile, matrix, expert):
    """Start to fetch the numbers of this lane's first steps into the second-level cache."""
    count = T.meta_var(tile.inputs)
    elements = T.meta_var(count if matrix.stored is None else count * matrix.stored.bits // 8)
    for step in T.unroll(AHEAD):
        part: T.let = step * WARP + tile.lane
        if part < tile.problem.inner // count:
            for c in T.unroll(COLUMNS_PER_WARP):
                fetch_into_cache(matrix.data.ptr_to([T.cast(expert, "int64"), tile.column(c), part * elements]))


@T.inline
def multiply_rows(tile, rows, matrix, expert, sums):
    """Set ``sums`` [rows, :data:`COLUMNS_PER_WARP`] to this lane's part of the products, in float32. The caller adds up
    the lanes."""
    for r in T.unroll(tile.rows):
        for c in T.unroll(COLUMNS_PER_WARP):
            sums[r, c] = T.float32(0)
    if matrix.stored is None:
        _multiply_floats(tile, rows, matrix, expert, sums)
    else:
        for step in T.serial(_steps(tile.problem, tile.inputs)):
            part: T.let = step * WARP + tile.lane
            if part < tile.problem.inner // tile.inputs:
                _multiply_quantized(tile, rows, matrix, expert, part, sums)
