"""The sum of the partial results that :mod:`.attention_few` computed for parts of the keys, in the order of the parts.

A block of threads computes a row of the result, each thread some of its columns. If there is only one part, the grid is
empty, since that part's results are already final.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.attention_operands import (
    FEW_QUERIES,
    KEYS_TOGETHER,
    LOWEST,
    AttentionOperands,
    quotient,
)
from moec.targets.gpu.kernels.launch import EARLY_ATTRIBUTES
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.kernels.kernel import Kernel

THREADS = 128
_BLOCKS = 256
"""Blocks of threads that keep a GPU with about 130 multiprocessors busy. It is the same for every GPU, so that results
are, too."""
_MOST_PARTS = 64
PARTS_OF_SEQUENCES = 16
"""The most parts of the keys of a sequence in a batch. Their number must not follow from the other sequences."""


def parts_for(tiles: Any, keys: Any) -> Any:
    """The number of parts that keys are divided into, at least one. ``tiles``: tiles of rows, each of which walks over
    every part. Both arguments are numbers or int64 expressions."""
    rows = tirx.max(tiles, tirx.IntImm("int64", 1))
    most = tirx.min((keys + (KEYS_TOGETHER - 1)) // KEYS_TOGETHER, tirx.IntImm("int64", _MOST_PARTS))
    return tirx.max(tirx.min((rows + (_BLOCKS - 1)) // rows, most), tirx.IntImm("int64", 1))


def parts_of_sequences(keys: Any) -> Any:
    """The number of parts that the keys of every sequence of a batch fit into, at least one. ``keys``: int64, the most
    of a sequence."""
    most = tirx.min((keys + (KEYS_TOGETHER - 1)) // KEYS_TOGETHER, tirx.IntImm("int64", PARTS_OF_SEQUENCES))
    return tirx.max(most, tirx.IntImm("int64", 1))


def keys_divided(problem: AttentionProblem, keys: Any, queries: Any) -> Any:
    """The most keys that are divided into parts: all, or those of the windows of all queries, from the multiple of
    :data:`KEYS_TOGETHER` before them on."""
    return tirx.min(keys, queries + (problem.window + KEYS_TOGETHER)) if problem.window else keys


def part_length(operands: AttentionOperands, batch: Any) -> Any:
    """The number of keys of a part. In a batch of sequences it follows from the sequence alone, and the last parts may
    be empty: they change no bit."""
    if operands.problem.sequences:
        keys, parts = operands.used_keys(batch), PARTS_OF_SEQUENCES
    else:
        assert operands.parts is not None, "the kernel for few queries divides keys"
        keys, parts = operands.keys, operands.parts.count
    blocks = T.ceildiv(keys_divided(operands.problem, keys, operands.queries_of(batch)), KEYS_TOGETHER)
    return T.ceildiv(blocks, parts) * KEYS_TOGETHER


@T.inline
def _join_row(problem, dtype, thread, parts, tensors, row):
    """Join the parts of a row, given as (batch entry, head, query), a column per thread."""
    sums, statistics, result = T.meta_var(tensors)
    batch, head, query = T.meta_var(row)
    columns = T.meta_var(problem.value_size)
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    found = T.alloc_local((1,), "float32")
    largest[0] = T.float32(LOWEST)
    for part in T.serial(parts):
        largest[0] = T.max(largest[0], statistics[part, batch, head, query, 0])
    for step in T.serial(-(-columns // THREADS)):
        column: T.let = step * THREADS + thread
        if column < columns:
            total[0] = T.float32(0)
            found[0] = T.float32(0)
            for part in T.serial(parts):
                factor: T.let = T.exp(statistics[part, batch, head, query, 0] - largest[0])
                total[0] = total[0] + statistics[part, batch, head, query, 1] * factor
                found[0] = found[0] + sums[part, batch, head, query, column] * factor
            place = T.meta_var((batch, query, head, column) if problem.query_major else (batch, head, query, column))
            result[place] = T.cast(quotient(found[0], total[0]), dtype)


def attention_join(problem: AttentionProblem, dtype: str) -> tirx.PrimFunc:
    """The kernel ``(sums[parts, B, H, Q, columns], statistics[parts, B, H, Q, 2], result[B, H, S, columns])``; the
    result is [B, S, H, columns] if ``query_major``. Sums and statistics are float32; the result has ``dtype``.
    Statistics are the largest score of a part and the sum of its weights. Q is at least S.

    For a batch of sequences, of which B is 1, the kernel takes ``spans[N, 2]`` before the result, and joins the queries
    of sequences with up to :data:`FEW_QUERIES` alone."""
    if problem.sequences:
        return _join_sequences(problem, dtype)

    @T.prim_func
    def kernel(sums_handle: T.handle, statistics_handle: T.handle, result_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        parts = T.int32()
        B = T.int32()
        H = T.int32()
        Q = T.int32()
        S = T.int32()
        sums = T.match_buffer(sums_handle, (parts, B, H, Q, problem.value_size), "float32")
        statistics = T.match_buffer(statistics_handle, (parts, B, H, Q, 2), "float32")
        result = T.match_buffer(result_handle, _result_shape(problem, B, S, H), dtype)
        T.device_entry()
        row = T.cta_id([B * H * S * T.min(parts - 1, 1)])
        thread = T.thread_id([THREADS])
        query: T.let = row % S
        head: T.let = row // S % H
        batch: T.let = T.cast(row // S // H, "int64")
        _join_row(problem, dtype, thread, parts, (sums, statistics, result), (batch, head, query))

    return kernel


def _join_sequences(problem: AttentionProblem, dtype: str) -> tirx.PrimFunc:
    @T.prim_func
    def kernel(sums_handle: T.handle, statistics_handle: T.handle, spans_handle: T.handle, result_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        parts = T.int32()
        N = T.int32()
        H = T.int32()
        Q = T.int32()
        S = T.int32()
        sums = T.match_buffer(sums_handle, (parts, 1, H, Q, problem.value_size), "float32")
        statistics = T.match_buffer(statistics_handle, (parts, 1, H, Q, 2), "float32")
        spans = T.match_buffer(spans_handle, (N, 2), "int64")
        result = T.match_buffer(result_handle, _result_shape(problem, 1, S, H), dtype)
        T.device_entry()
        few = T.meta_var(T.min(S, FEW_QUERIES))
        row = T.cta_id([N * H * few * T.min(parts - 1, 1)])
        thread = T.thread_id([THREADS])
        query: T.let = row % few
        head: T.let = row // few % H
        sequence: T.let = row // few // H
        count: T.let = spans[sequence, 1]
        if T.And(T.cast(query, "int64") < count, count <= FEW_QUERIES):
            own: T.let = spans[sequence, 0] + T.cast(query, "int64")
            _join_row(problem, dtype, thread, parts, (sums, statistics, result), (T.int64(0), head, own))

    return kernel


def _result_shape(problem: AttentionProblem, batch: Any, queries: Any, heads: Any) -> tuple[Any, ...]:
    places = (queries, heads) if problem.query_major else (heads, queries)
    return (batch, *places, problem.value_size)


ATTENTION_JOIN = Kernel(
    "attention_join",
    "y = parts of softmax(q @ k^T * scale + mask) @ v, joined",
    attention_join,
    how=lambda problem, _: "the parts of the keys in their order",
)
