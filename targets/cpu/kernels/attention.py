"""Attention without the matrix of scores: ``y = softmax(q @ k^T * scale + mask) @ v``, streaming over the keys.

The method is that of FlashAttention (Dao et al., 2022; arXiv 2205.14135): per block of keys compute the scores, keep
per query the largest score so far and the sum of exponentials relative to it, and rescale what was accumulated
whenever a larger score appears. Memory is a few small blocks per task, whatever the number of keys.

A task is one (batch, query head, block of queries); key/value head ``h * kv_heads // heads`` serves query head h
(grouped-query attention). Keys are copied transposed and padded with zeros into a panel [D, key block], so that
scores are vectors over keys with the register tile of the matrix products. Blocks of keys are visited in ascending
order whatever the number of threads.
"""

from __future__ import annotations

import dataclasses
import functools

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.elementary import exponential
from moec.targets.cpu.kernels.emit import vector_parts
from moec.targets.cpu.kernels.register_tile import accumulate, emit_row_tiles
from moec.targets.cpu.machine import Machine

QUERY_TILES_PER_TASK = 4
KEY_TILES_PER_BLOCK = 2
_LOWEST = -3.4028234e38


@dataclasses.dataclass(frozen=True)
class AttentionProblem:
    """What is static about an attention. ``mask`` is the type of the mask: a float type is added to the scores, bool
    says which keys a query sees. ``mask_broadcast`` says for [batch, head, query] whether the mask has size 1 there.
    ``causal``: query i sees keys 0 to i. ``softcap`` > 0 bounds scores to ``softcap * tanh(score / softcap)``."""

    head_size: int
    value_size: int
    scale: float
    causal: bool = False
    softcap: float = 0.0
    mask: str = "float32"
    mask_broadcast: tuple[bool, bool, bool] = (True, True, True)


@T.inline
def _pack_keys(panel, k, batch, group, first_key, count, key_block):
    for d in range(panel.shape[0]):
        if count < key_block:
            for j in T.vectorized(key_block):
                panel[d, j] = T.float32(0)
        for j in range(count):
            panel[d, j] = T.cast(k[batch, group, first_key + j, d], "float32")


def _score_tile(scores, q, panel, batch, head, first_query, row, height: int, start, width: int, scale: float) -> None:
    sums = accumulate(
        height,
        width,
        panel.shape[0],
        lambda i, d: q[batch, head, first_query + row + i, d],
        lambda d, j: panel[d, start + j],
    )
    for i, total in sums.rows():
        with T.vectorized(width) as j:
            T.buffer_store(scores, total[j] * T.float32(scale), [row + i, start + j])


@T.inline
def _limit_and_mask(scores, row, count, key_block, softcap, masked):
    if softcap > 0.0:
        for j in range(key_block):
            scores[row, j] = T.tanh(scores[row, j] / T.float32(softcap)) * T.float32(softcap)
    if count == key_block:
        for j in T.vectorized(key_block):
            scores[row, j] = masked(scores[row, j], j)
    else:
        for j in range(count):
            scores[row, j] = masked(scores[row, j], j)
        for j in range(key_block - count):
            scores[row, count + j] = T.float32(float("-inf"))


@T.inline
def _exponentiate(scores, largest, total, rescale, row, key_block, lanes):
    """Turn a row of scores into exponentials relative to its largest score so far, and update the running sum."""
    maxima = T.alloc_buffer((lanes,), "float32", scope="local")
    partial = T.alloc_buffer((lanes,), "float32", scope="local")
    joined = T.alloc_buffer((2,), "float32", scope="local")
    for lane in T.vectorized(lanes):
        maxima[lane] = T.float32(_LOWEST)
    for vector in T.unroll(key_block // lanes):
        for lane in T.vectorized(lanes):
            maxima[lane] = T.max(maxima[lane], scores[row, vector * lanes + lane])
    joined[0] = largest[row]
    for lane in T.unroll(lanes):
        joined[0] = T.max(joined[0], maxima[lane])
    rescale[row] = exponential(largest[row] - joined[0])
    largest[row] = joined[0]
    for lane in T.vectorized(lanes):
        partial[lane] = T.float32(0)
    for vector in range(key_block // lanes):
        for lane in T.vectorized(lanes):
            scores[row, vector * lanes + lane] = exponential(scores[row, vector * lanes + lane] - joined[0])
        for lane in T.vectorized(lanes):
            partial[lane] = partial[lane] + scores[row, vector * lanes + lane]
    joined[1] = T.float32(0)
    for lane in T.unroll(lanes):
        joined[1] = joined[1] + partial[lane]
    total[row] = total[row] * rescale[row] + joined[1]


def _add_values(
    sums_of_values, scores, v, rescale, batch, group, first_key, count, row, height: int, start: int, width: int
) -> None:
    sums = accumulate(
        height,
        width,
        count,
        lambda i, j: scores[row + i, j],
        lambda j, d: v[batch, group, first_key + j, start + d],
    )
    for i, total in sums.rows():
        with T.vectorized(width) as j:
            value = sums_of_values[row + i, start + j] * rescale[row + i] + total[j]
            T.buffer_store(sums_of_values, value, [row + i, start + j])


def _parts(size: int, width: int) -> list[tuple[int, int]]:
    """Cut columns into whole register tiles and a rest in powers of two."""
    whole = size - size % width
    rest = [(whole + start, count) for start, count in vector_parts(size % width)]
    return [(start, width) for start in range(0, whole, width)] + rest


def _masked(problem: AttentionProblem, mask, batch, head, query, first_key):
    """The function (score, position in the block of keys) -> score after the mask."""
    one_batch, one_head, one_query = problem.mask_broadcast
    zero = T.int64(0)
    row = (zero if one_batch else batch, zero if one_head else head, zero if one_query else query)

    def masked(score, j):
        lowest = T.float32(float("-inf"))
        entry = mask[(*row, first_key + j)]
        score = T.Select(entry, score, lowest) if problem.mask == "bool" else score + T.cast(entry, "float32")
        return T.Select(first_key + j > query, lowest, score) if problem.causal else score

    return masked


def _emit_scores(problem, machine: Machine, scores, q, panel, batch, head, first_query, rows) -> None:
    width = machine.column_tile

    def emit(row, height):
        with T.serial(KEY_TILES_PER_BLOCK) as tile:
            start = T.bind(tile * width)
            _score_tile(scores, q, panel, batch, head, first_query, row, height, start, width, problem.scale)

    emit_row_tiles(rows, machine.row_tile, emit)


def _emit_values(machine: Machine, sums_of_values, scores, v, rescale, batch, group, first_key, count, rows) -> None:
    def emit(row, height):
        for start, width in _parts(int(sums_of_values.shape[1]), machine.column_tile):
            _add_values(sums_of_values, scores, v, rescale, batch, group, first_key, count, row, height, start, width)

    emit_row_tiles(rows, machine.row_tile, emit)


@T.inline
def _begin(largest, total, sums_of_values, rows, Dv):
    for row in range(rows):
        largest[row] = T.float32(_LOWEST)
        total[row] = T.float32(0)
        for d in T.vectorized(Dv):
            sums_of_values[row, d] = T.float32(0)


@T.inline
def _store(y, total, sums_of_values, batch, head, first_query, rows, Dv, dtype):
    for row in range(rows):
        for d in T.vectorized(Dv):
            y[batch, head, first_query + row, d] = T.cast(sums_of_values[row, d] / total[row], dtype)


@functools.cache
def attention(problem: AttentionProblem, machine: Machine, dtype: str = "float32") -> tirx.PrimFunc:
    """The kernel ``(q[B, H, S, D], k[B, G, P, D], v[B, G, P, Dv], mask[B|1, H|1, S|1, P], y[B, H, S, Dv])``.

    H is a multiple of G. B, H, G, S (queries), P (keys) are dynamic; ``dtype`` is how q, k, v and y are stored,
    arithmetic is float32. A query that sees no key gives NaN, as softmax does.
    """
    D, Dv = problem.head_size, problem.value_size
    key_block = KEY_TILES_PER_BLOCK * machine.column_tile
    block = machine.row_tile * QUERY_TILES_PER_TASK
    one_batch, one_head, one_query = problem.mask_broadcast

    @T.prim_func(s_tir=True)
    def kernel(q_handle: T.handle, k_handle: T.handle, v_handle: T.handle, mask_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        B, H, G, S, P = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        q = T.match_buffer(q_handle, (B, H, S, D), dtype, align=64)
        k = T.match_buffer(k_handle, (B, G, P, D), dtype, align=64)
        v = T.match_buffer(v_handle, (B, G, P, Dv), dtype, align=64)
        mask_shape = T.meta_var((1 if one_batch else B, 1 if one_head else H, 1 if one_query else S, P))
        mask = T.match_buffer(mask_handle, mask_shape, problem.mask, align=64)
        y = T.match_buffer(y_handle, (B, H, S, Dv), dtype, align=64)
        for task in T.parallel(B * H * T.ceildiv(S, block)):
            blocks: T.let[T.int64] = T.max(T.ceildiv(S, block), T.int64(1))
            head: T.let[T.int64] = task // blocks % T.max(H, T.int64(1))
            batch: T.let[T.int64] = task // blocks // T.max(H, T.int64(1))
            group: T.let[T.int64] = head * G // T.max(H, T.int64(1))
            first_query: T.let[T.int64] = task % blocks * block
            rows: T.let[T.int64] = T.min(block, S - first_query)
            panel = T.alloc_buffer((D, key_block), "float32")
            scores = T.alloc_buffer((block, key_block), "float32")
            sums_of_values = T.alloc_buffer((block, Dv), "float32")
            largest = T.alloc_buffer((block,), "float32")
            total = T.alloc_buffer((block,), "float32")
            rescale = T.alloc_buffer((block,), "float32")
            _begin(largest, total, sums_of_values, rows, Dv)
            for step in range(T.ceildiv(P, key_block)):
                first_key: T.let[T.int64] = step * key_block
                count: T.let[T.int64] = T.min(key_block, P - first_key)
                _pack_keys(panel, k, batch, group, first_key, count, key_block)
                _emit_scores(problem, machine, scores, q, panel, batch, head, first_query, rows)
                for row in range(rows):
                    masked = T.meta_var(_masked(problem, mask, batch, head, first_query + row, first_key))
                    _limit_and_mask(scores, row, count, key_block, problem.softcap, masked)
                    _exponentiate(scores, largest, total, rescale, row, key_block, machine.lanes)
                _emit_values(machine, sums_of_values, scores, v, rescale, batch, group, first_key, count, rows)
            _store(y, total, sums_of_values, batch, head, first_query, rows, Dv, dtype)

    return kernel
