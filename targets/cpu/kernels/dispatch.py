"""Dispatch: sort the (token, slot) pairs by expert and cut every expert's rows into blocks.

A stable counting sort: histogram over the experts, exclusive prefix sum, then every pair goes to the next free place of
its expert. Pairs keep the order of the tokens, so the result is unique; nothing is materialised as one-hot. The sort
is sequential: it takes about a nanosecond per pair and pass, against some microseconds of matrix product per pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, named
from moec.targets.tvm.kernels.kernel import Kernel
from moec.targets.tvm.text.steps import begin_step

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
        begin_step("pairs of each expert, counted")
        for e in T.serial(E):
            place[e] = 0
        for token, slot in T.grid(tokens, slots):
            expert: T.let = chosen[token, slot]
            if T.And(expert >= 0, expert < E):
                place[expert] = place[expert] + 1
        begin_step("the place of each expert's first pair")
        offsets[0] = 0
        for e in T.serial(E):
            offsets[e + 1] = offsets[e] + place[e]
            place[e] = offsets[e]
        for token, slot in T.grid(tokens, slots):
            expert: T.let = chosen[token, slot]
            if T.And(expert >= 0, expert < E):
                order[place[expert]] = T.cast(token * slots + slot, "int32")
                place[expert] = place[expert] + 1
        begin_step("blocks of rows with one expert")
        _cut_into_blocks(E, offsets, blocks, block_count)

    return kernel


def dispatch_rows(experts: int) -> tirx.PrimFunc:
    """``(experts[T, k], offsets[E + 1], positions[T, k], tokens[P], owners[P])``, all int32, with P = T * k.

    :class:`~moec.ir.dialect.DispatchSpec` defines the results. Ids outside [0, E) are not dispatched."""
    parameters = [
        Parameter("chosen", ("T", "k"), "int32"),
        Parameter("offsets", (experts + 1,), "int32"),
        Parameter("positions", ("T", "k"), "int32"),
        Parameter("tokens", ("P",), "int32"),
        Parameter("owners", ("P",), "int32"),
    ]

    def body(chosen: Any, offsets: Any, positions: Any, tokens: Any, owners: Any) -> None:
        place = named("place", T.alloc_buffer((experts + 1,), "int32"))

        def set_place(expert: Any, value: Any) -> None:
            T.buffer_store(place, value, [expert])

        def of_pairs(what: Callable[[Any, Any, Any], None]) -> None:
            """Emit ``what(token, slot, expert)`` per pair, in order; ``experts`` for a pair that is not dispatched."""
            with loop("token", T.serial(chosen.shape[0])) as token, loop("slot", T.serial(chosen.shape[1])) as slot:
                id_ = chosen[token, slot]
                is_stored = T.And(id_ >= 0, id_ < experts)
                what(token, slot, named("expert", T.bind(T.Select(is_stored, id_, T.int32(experts)))))

        def sort(token: Any, slot: Any, expert: Any) -> None:
            row = named("row", T.bind(place[expert]))
            T.buffer_store(positions, T.Select(expert < experts, row, T.int32(-1)), [token, slot])
            T.buffer_store(tokens, T.cast(token, "int32"), [row])
            T.buffer_store(owners, T.min(expert, experts - 1), [row])
            set_place(expert, row + 1)

        with loop("e", T.serial(experts + 1)) as e:
            set_place(e, T.int32(0))
        of_pairs(lambda token, slot, expert: set_place(expert, place[expert] + 1))
        T.buffer_store(offsets, T.int32(0), [0])
        with loop("e", T.serial(experts)) as e:
            T.buffer_store(offsets, offsets[e] + place[e], [e + 1])
        with loop("e", T.serial(experts + 1)) as e:
            set_place(e, offsets[e])
        of_pairs(sort)

    return emit_kernel(parameters, body)


def most_blocks(experts: int, pairs: int | tirx.PrimExpr) -> int | tirx.PrimExpr:
    """Upper bound of the number of blocks, for the length of the array of blocks."""
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
DISPATCH_ROWS = Kernel(
    "dispatch_rows",
    "rows = pairs of token and slot sorted by expert; offsets, positions, tokens and owners of them",
    dispatch_rows,
    how=lambda experts, _: f"stable counting sort into {experts} experts and a place for pairs of none; one thread",
)
