"""The signatures of attention kernels: their tensors, bound to shapes, and the parameters in the order of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.attention_operands import AttentionOperands, KeyParts
from moec.targets.gpu.kernels.launch import ATTRIBUTES
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.kernels.int8_rows import INT8_ROWS, rows_in


def attention_kernel(problem: AttentionProblem, dtype: str, body: Callable[[AttentionOperands], None]) -> tirx.PrimFunc:
    """The kernel ``(query[B, H, S, D], key[B, G, P, D], value[B, G, P, Dv], mask[B|1, H|1, S|1, P], lengths[B],
    sinks[H], result[B, H, S, Dv])``; the result is [B, S, H, Dv] if ``query_major``. The macro ``body(operands)`` emits
    its code, from ``T.device_entry()`` on.

    A missing mask, missing lengths or sinks are a tensor with sizes of 1, which is not read. Lengths are int64, sinks
    float32. B, G, S and P are dynamic and may be 0; H is G times the heads of a group.

    Paged keys and values are [pages, B, G, page, D] of the type in which they are stored. A page holds a multiple of
    :data:`KEYS_TOGETHER` keys unless it is the only one. The mask then has at least as many keys as are in use. Values
    that are columns of keys have rows of D numbers, and both tensors are the same. Pages of int8 rows are [pages, B, G,
    bytes] (:mod:`moec.targets.tvm.kernels.int8_rows`).

    For a batch of sequences the kernel is ``(query[1, H, S, D], key[pages, 1, G, page, D], value[pages, 1, G, page,
    Dv], lengths[N], spans[N, 2], table[N, M], sinks[H], result[1, H, S, Dv])``. Queries of no span, and those of
    sequences that the other kernel computes, keep what is in the result.
    """
    bind, _ = _binding(problem, dtype, body)
    if problem.sequences:

        @T.prim_func
        def of_sequences(
            query_handle: T.handle,
            key_handle: T.handle,
            value_handle: T.handle,
            lengths_handle: T.handle,
            spans_handle: T.handle,
            table_handle: T.handle,
            sinks_handle: T.handle,
            result_handle: T.handle,
        ):
            T.func_attr(ATTRIBUTES)
            handles = T.meta_var((query_handle, key_handle, value_handle, lengths_handle, sinks_handle, result_handle))
            bind(handles, None, spans_handle, table_handle)

        return of_sequences

    @T.prim_func
    def kernel(
        query_handle: T.handle,
        key_handle: T.handle,
        value_handle: T.handle,
        mask_handle: T.handle,
        lengths_handle: T.handle,
        sinks_handle: T.handle,
        result_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        handles = T.meta_var((query_handle, key_handle, value_handle, lengths_handle, sinks_handle, result_handle))
        bind(handles, None, mask_handle)

    return kernel


def kernel_of_parts(problem: AttentionProblem, dtype: str, body: Callable[[AttentionOperands], None]) -> tirx.PrimFunc:
    """The kernel of :func:`attention_kernel` with two more parameters before the result, both float32:
    ``sums[parts, B, H, Q, Dv]`` and ``statistics[parts, B, H, Q, 2]``. If there are several parts, these are written
    instead of the result. Q is at least S. For a batch of sequences B is 1."""
    bind, (B, G) = _binding(problem, dtype, body)
    heads, Dv = G * problem.heads_per_group, problem.value_size
    parts, Q = tirx.Var("parts", "int32"), tirx.Var("Q", "int32")
    if problem.sequences:

        @T.prim_func
        def of_sequences(
            query_handle: T.handle,
            key_handle: T.handle,
            value_handle: T.handle,
            lengths_handle: T.handle,
            spans_handle: T.handle,
            table_handle: T.handle,
            sinks_handle: T.handle,
            sums_handle: T.handle,
            statistics_handle: T.handle,
            result_handle: T.handle,
        ):
            T.func_attr(ATTRIBUTES)
            sums = T.match_buffer(sums_handle, (parts, 1, heads, Q, Dv), "float32")
            statistics = T.match_buffer(statistics_handle, (parts, 1, heads, Q, 2), "float32")
            found = T.meta_var(KeyParts(sums, statistics, parts))
            handles = T.meta_var((query_handle, key_handle, value_handle, lengths_handle, sinks_handle, result_handle))
            bind(handles, found, spans_handle, table_handle)

        return of_sequences

    @T.prim_func
    def kernel(
        query_handle: T.handle,
        key_handle: T.handle,
        value_handle: T.handle,
        mask_handle: T.handle,
        lengths_handle: T.handle,
        sinks_handle: T.handle,
        sums_handle: T.handle,
        statistics_handle: T.handle,
        result_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        sums = T.match_buffer(sums_handle, (parts, B, heads, Q, Dv), "float32")
        statistics = T.match_buffer(statistics_handle, (parts, B, heads, Q, 2), "float32")
        found = T.meta_var(KeyParts(sums, statistics, parts))
        handles = T.meta_var((query_handle, key_handle, value_handle, lengths_handle, sinks_handle, result_handle))
        bind(handles, found, mask_handle)

    return kernel


def _binding(problem, dtype, body):
    """A macro ``bind(handles, parts, mask)`` that binds the tensors of a call to their shapes and emits
    ``body(operands)``, and the variables B and G. ``handles``: of query, key, value, lengths, sinks and result. Of a
    batch of sequences, it is ``bind(handles, parts, spans, table)``."""
    D, Dv, ratio = problem.head_size, problem.value_size, problem.heads_per_group
    sizes = {name: tirx.Var(name, "int32") for name in ("B", "G", "S", "P", "pages", "page", "L", "N", "M")}
    B, G, S, P, pages, page, L, N, M = sizes.values()
    entries = 1 if problem.sequences else B
    keys_shape: tuple[Any, ...] = (pages, entries, G, page) if problem.paged else (B, G, P)
    rows, key_shape, value_shape = page, (*keys_shape, D), (*keys_shape, problem.value_row)
    if problem.paged == INT8_ROWS:  # both have as many rows; a page of values has another number of bytes
        rows, values = rows_in(page, D), tirx.Var("value_page", "int32")
        key_shape, value_shape = keys_shape, (*keys_shape[:-1], page if problem.value_row == D else values)
    count, stored = (pages * rows, problem.paged) if problem.paged else (P, dtype)
    mask_shape: tuple[Any, ...] = (1, 1, 1, 1)
    if problem.mask:
        own = zip(problem.mask_broadcast, (B, G * ratio, S), strict=True)
        mask_shape = (*(1 if alone else size for alone, size in own), L if problem.paged else P)

    result_shape = (entries, S, G * ratio, Dv) if problem.query_major else (entries, G * ratio, S, Dv)

    @T.inline
    def bind_operands(handles, parts, batches, keys, mask, lengths_shape, spans, table):
        query_handle, key_handle, value_handle, lengths_handle, sinks_handle, result_handle = T.meta_var(handles)
        key = T.match_buffer(key_handle, key_shape, stored)
        query = T.match_buffer(query_handle, (entries, G * ratio, S, D), dtype)
        value = T.match_buffer(value_handle, value_shape, stored)
        sinks = T.match_buffer(sinks_handle, (G * ratio if problem.has_sinks else 1,), "float32")
        result = T.match_buffer(result_handle, result_shape, dtype)
        lengths = T.match_buffer(lengths_handle, lengths_shape, "int64")
        body(
            AttentionOperands(
                problem, query, key, value, mask, lengths, sinks, result, batches, G, S, keys, rows, parts, spans, table
            )
        )

    @T.inline
    def bind(handles, parts, mask_handle):
        mask = T.match_buffer(mask_handle, mask_shape, problem.mask or "bool")
        bind_operands(handles, parts, B, count, mask, (B if problem.has_lengths else 1,), None, None)

    @T.inline
    def bind_sequences(handles, parts, spans_handle, table_handle):
        spans = T.match_buffer(spans_handle, (N, 2), "int64")
        table = T.match_buffer(table_handle, (N, M), "int64")
        bind_operands(handles, parts, N, M * rows, None, (N,), spans, table)

    return bind_sequences if problem.sequences else bind, (B, G)
