"""Dispatch: sort the (token, slot) pairs by expert and cut every expert's rows into blocks.

A stable counting sort: histogram over the experts, exclusive prefix sum, then every pair goes to the next free place of
its expert. Pairs keep the order of the tokens, so the result is unique; nothing is materialised as one-hot. The sort
is sequential: it takes about a nanosecond per pair and pass, against some microseconds of matrix product per pair.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.tvm.kernel import Kernel

BLOCK_ROWS = 192
"""Rows of one block: enough to use a weight often per read from memory, few enough to stay in second-level cache. A
multiple of the row tiles of all machines."""


@T.inline
def _cut_into_blocks(E, offsets, blocks, block_count):
    block_count[0] = 0
    for e in T.serial(E):
        rows: T.let = offsets[e + 1] - offsets[e]
        for b in T.serial((rows + (BLOCK_ROWS - 1)) // BLOCK_ROWS):
            block: T.let = block_count[0]
            blocks[block, 0] = e
            blocks[block, 1] = offsets[e] + b * BLOCK_ROWS
            blocks[block, 2] = T.min(rows - b * BLOCK_ROWS, BLOCK_ROWS)
            block_count[0] = block + 1


def dispatch(experts: int) -> tirx.PrimFunc:
    """``(experts[T, k], order[P], offsets[E + 1], blocks[B, 3], block_count[1])``, all int32, with P = T * k.

    ``order[offsets[e]:offsets[e + 1]]`` are the pairs ``t * k + slot`` that expert e serves. Places of ``order`` beyond
    ``offsets[E]`` are not written: ids outside [0, E), such as -1, belong to no expert. Each of the first
    ``block_count`` blocks is (expert, first place in ``order``, number of rows). B is at least :func:`most_blocks`.
    """
    E = experts

    @T.prim_func(s_tir=True)
    def kernel(
        experts_handle: T.handle,
        order_handle: T.handle,
        offsets_handle: T.handle,
        blocks_handle: T.handle,
        count_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        tokens = T.int64()
        slots = T.int64()
        P = T.int64()
        B = T.int64()
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        order = T.match_buffer(order_handle, (P,), "int32")
        offsets = T.match_buffer(offsets_handle, (E + 1,), "int32")
        blocks = T.match_buffer(blocks_handle, (B, 3), "int32")
        block_count = T.match_buffer(count_handle, (1,), "int32")
        place = T.alloc_buffer((E,), "int32")
        for e in T.serial(E):
            place[e] = 0
        for token, slot in T.grid(tokens, slots):
            expert: T.let = chosen[token, slot]
            if T.And(expert >= 0, expert < E):
                place[expert] = place[expert] + 1
        offsets[0] = 0
        for e in T.serial(E):
            offsets[e + 1] = offsets[e] + place[e]
            place[e] = offsets[e]
        for token, slot in T.grid(tokens, slots):
            expert: T.let = chosen[token, slot]
            if T.And(expert >= 0, expert < E):
                order[place[expert]] = T.cast(token * slots + slot, "int32")
                place[expert] = place[expert] + 1
        _cut_into_blocks(E, offsets, blocks, block_count)

    return kernel


def most_blocks(experts: int, pairs: int | tirx.PrimExpr) -> int | tirx.PrimExpr:
    """How many blocks there can be at most, for an array of blocks of that length."""
    return pairs // BLOCK_ROWS + experts


DISPATCH = Kernel(
    "dispatch",
    "order[T * k] = pairs of token and slot sorted by expert",
    dispatch,
    how=lambda experts, _: (
        f"stable counting sort into {experts} experts, cut into blocks of {BLOCK_ROWS} rows; "
        "one thread, nothing is materialised as one-hot"
    ),
)
