"""Grouped product for few tokens: a matrix-vector product per pair (token, slot), which needs no dispatch.

Where tokens are few, so are the pairs that share an expert, and reading the weights takes the time. A warp computes
some outputs of one pair: its lanes read 16 bytes of a weight row each, side by side, and of the next rows before the
first sums are done; at the end the lanes add up their sums. A pair reads its expert's weights itself; pairs with the
same expert find them in the second-level cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.grouped_problem import GATE_GROUP, GroupedProblem, Matrix
from moec.targets.cuda.kernels.launch import ATTRIBUTES, WARP
from moec.targets.cuda.kernels.stored_matrix import StoredFormat

FEW_TOKENS = 16
"""Up to so many tokens this is the better way."""
WARPS = 4
COLUMNS_PER_WARP = 4
"""Rows of the matrix that a warp reads together, those of gate and up both counted."""
_LOAD_BYTES = 16
_QUANTIZED_INPUTS = 8
"""Quantised numbers that a lane reads at once; they share a scale."""
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def why_not(problem: GroupedProblem) -> str | None:
    """The reason why :func:`grouped_gemv` cannot compute the problem, or None."""
    reason = problem.why_not_stored()
    if reason is not None:
        return reason
    together = _lane_inputs(problem)
    if problem.inner % together:
        return f"{problem.inner} inputs; a lane reads {together} at once"
    return None if problem.stored is None else problem.stored.why_not(together)


def _lane_inputs(problem: GroupedProblem) -> int:
    """Inputs that a lane reads at once."""
    if problem.stored is not None:
        return _QUANTIZED_INPUTS
    return _LOAD_BYTES // _BYTES[problem.matrix_dtype]


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """What a warp knows of its outputs: ``first`` is the first of them."""

    problem: GroupedProblem
    first: Any
    lane: Any

    @property
    def count(self) -> int:
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
def _load_row(outputs, rows, row, part, values):
    """A part of a row, in float32; as many bytes at once as the storage has."""
    count = T.meta_var(_lane_inputs(outputs.problem))
    vector = T.meta_var(min(count, _LOAD_BYTES // _BYTES[outputs.problem.dtype]))
    stored = T.alloc_local((count,), outputs.problem.dtype)
    for load in T.unroll(count // vector):
        for v in T.vectorized(vector):
            stored[load * vector + v] = rows[row, part * count + load * vector + v]
    for v in T.unroll(count):
        values[v] = T.cast(stored[v], "float32")


@T.inline
def _multiply_floats(outputs, rows, row, matrix, expert, part, sums):
    count = T.meta_var(_lane_inputs(outputs.problem))
    values = T.alloc_local((count,), "float32")
    weights = T.alloc_local((COLUMNS_PER_WARP, count), outputs.problem.matrix_dtype)
    for c in T.unroll(COLUMNS_PER_WARP):
        for v in T.vectorized(count):
            weights[c, v] = matrix.data[T.cast(expert, "int64"), outputs.column(c), part * count + v]
    _load_row(outputs, rows, row, part, values)
    for c in T.unroll(COLUMNS_PER_WARP):
        for v in T.unroll(count):
            sums[c] = sums[c] + values[v] * T.cast(weights[c, v], "float32")


@T.inline
def _multiply_quantized(outputs, rows, row, matrix, expert, part, sums):
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
        for v in T.vectorized(bytes_read):
            codes[c, v] = matrix.data[T.cast(expert, "int64"), outputs.column(c), part * bytes_read + v]
        scales[c] = matrix.scale(expert, outputs.column(c), part * count)
        zeros[c] = matrix.zero(expert, outputs.column(c), part * count)
    _load_row(outputs, rows, row, part, values)
    for c in T.unroll(COLUMNS_PER_WARP):
        partial[0] = T.float32(0)
        for v in T.unroll(count):
            code: T.let = stored.code(codes[c, v * stored.bits // 8], v)
            partial[0] = partial[0] + values[v] * stored.number(code, zeros[c])
        sums[c] = sums[c] + partial[0] * scales[c]


@T.inline
def _multiply(outputs, rows, row, matrix, expert, sums):
    count = T.meta_var(_lane_inputs(outputs.problem))
    for step in T.serial(-(-outputs.problem.inner // (WARP * count))):
        part: T.let = step * WARP + outputs.lane
        if part < outputs.problem.inner // count:
            if matrix.stored is None:
                _multiply_floats(outputs, rows, row, matrix, expert, part, sums)
            else:
                _multiply_quantized(outputs, rows, row, matrix, expert, part, sums)


@T.inline
def _store(outputs, epilogue, pair, expert, factor, sums, bias, out):
    problem = T.meta_var(outputs.problem)
    for c in T.unroll(COLUMNS_PER_WARP):
        sums[c] = T.cuda.warp_reduce(sums[c], "sum") * factor + bias[expert, outputs.column(c)]
    for i in T.unroll(outputs.count):
        if T.And(outputs.lane == i, outputs.first + i < problem.width):
            if problem.gated:
                value: T.let = epilogue(sums[2 * i], sums[2 * i + 1])
                out[T.cast(pair, "int64"), outputs.first + i] = T.cast(value, problem.out_dtype)
            else:
                out[T.cast(pair, "int64"), outputs.first + i] = T.cast(epilogue(sums[i]), problem.out_dtype)


@T.inline
def _compute(problem, epilogue, rows, matrix, bias, weights, chosen, out, tokens, slots):
    outputs_per_warp = T.meta_var(COLUMNS_PER_WARP // (2 if problem.gated else 1))
    parts = T.meta_var(-(-problem.width // (WARPS * outputs_per_warp)))
    index = T.cta_id([T.max(tokens * slots, 1) * parts])
    thread = T.thread_id([WARPS * WARP])
    pair: T.let = index // parts
    lane: T.let = thread % WARP
    first: T.let = (index % parts * WARPS + thread // WARP) * outputs_per_warp
    if T.And(pair < tokens * slots, first < problem.width):
        token: T.let = T.truncdiv(pair, slots)
        slot: T.let = T.truncmod(pair, slots)
        expert: T.let = chosen[token, slot]
        if T.And(expert >= 0, expert < problem.experts):
            outputs = T.meta_var(_Outputs(problem, first, lane))
            row: T.let = T.cast(token if problem.gathered else pair, "int64")
            factor: T.let = T.cast(weights[token, slot], "float32") if problem.weighted else T.float32(1)
            sums = T.alloc_local((COLUMNS_PER_WARP,), "float32")
            for c in T.unroll(COLUMNS_PER_WARP):
                sums[c] = T.float32(0)
            _multiply(outputs, rows, row, matrix, expert, sums)
            _store(outputs, epilogue, pair, expert, factor, sums, bias, out)


def grouped_gemv(problem: GroupedProblem, epilogue: Callable[..., Any]) -> tirx.PrimFunc:
    """``(rows[R, inner], matrix[E, columns, inner], bias[E, columns], weights[T, k], experts[T, k],
    out[T * k, width])``, with bias in float32 and experts in int32. A quantised matrix is three tensors, see
    :func:`~moec.targets.cuda.kernels.grouped_problem.grouped_kernel`.

    ``out[t * k + slot] = epilogue(rows[r] @ matrix[e].T + bias[e])`` for the pairs whose id e is an expert; the others'
    rows of ``out`` are not written. Row r is t where the problem is ``gathered``, ``t * k + slot`` where not; if
    ``weighted``, it is multiplied by the pair's weight. ``epilogue`` is ``f(gate, up)`` where gated, else ``f(sum)``.
    T may be 0. The problem's rows of a block, and whether it is ``scattered``, say nothing here.
    """
    if problem.stored is not None:
        return _quantized(problem, problem.stored, epilogue)
    E, inner, columns, width = problem.experts, problem.inner, problem.columns, problem.width

    @T.prim_func
    def kernel(
        rows_handle: T.handle,
        matrix_handle: T.handle,
        bias_handle: T.handle,
        weights_handle: T.handle,
        experts_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        R = T.int32()
        tokens = T.int32()
        slots = T.int32()
        Q = T.int32()
        rows = T.match_buffer(rows_handle, (R, inner), problem.dtype)
        matrix = T.match_buffer(matrix_handle, (E, columns, inner), problem.matrix_dtype)
        bias = T.match_buffer(bias_handle, (E, columns), "float32")
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.routing_dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        out = T.match_buffer(out_handle, (Q, width), problem.out_dtype)
        T.device_entry()
        _compute(problem, epilogue, rows, Matrix(None, matrix), bias, weights, chosen, out, tokens, slots)

    return kernel


def _quantized(problem: GroupedProblem, stored: StoredFormat, epilogue: Callable[..., Any]) -> tirx.PrimFunc:
    E, inner, columns, width = problem.experts, problem.inner, problem.columns, problem.width
    groups = (E, columns, stored.groups(inner))

    @T.prim_func
    def kernel(
        rows_handle: T.handle,
        matrix_handle: T.handle,
        scales_handle: T.handle,
        zero_points_handle: T.handle,
        bias_handle: T.handle,
        weights_handle: T.handle,
        experts_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        R = T.int32()
        tokens = T.int32()
        slots = T.int32()
        Q = T.int32()
        rows = T.match_buffer(rows_handle, (R, inner), problem.dtype)
        matrix = T.match_buffer(matrix_handle, (E, columns, stored.row_bytes(inner)), "uint8")
        scales = T.match_buffer(scales_handle, groups, stored.scale_storage)
        zero_points = T.match_buffer(zero_points_handle, groups if stored.zero_points else (1, 1, 1), "uint8")
        bias = T.match_buffer(bias_handle, (E, columns), "float32")
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.routing_dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        out = T.match_buffer(out_handle, (Q, width), problem.out_dtype)
        T.device_entry()
        quantized = T.meta_var(Matrix(stored, matrix, scales, zero_points))
        _compute(problem, epilogue, rows, quantized, bias, weights, chosen, out, tokens, slots)

    return kernel
