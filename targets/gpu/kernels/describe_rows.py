"""The results of ``moec.Dispatch``, from pairs that are sorted by expert: one thread per row."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.launch import EARLY_ATTRIBUTES, blocks_for
from moec.targets.tvm.kernels.kernel import Kernel

THREADS = 256


def describe_rows(experts: int) -> tirx.PrimFunc:
    """The kernel ``(pairs[Q], experts[Q], offsets[E + 1], positions[T, k], tokens[P], owners[P])``, all int32, with
    P = T * k <= Q. ``pairs``: the pairs ``t * k + slot`` sorted by expert; ``experts``: their experts, E for a pair
    that is not dispatched. P may be 0."""
    E = experts

    @T.prim_func
    def kernel(
        pairs_handle: T.handle,
        experts_handle: T.handle,
        offsets_handle: T.handle,
        positions_handle: T.handle,
        tokens_handle: T.handle,
        owners_handle: T.handle,
    ):
        T.func_attr(EARLY_ATTRIBUTES)
        Q = T.int32()
        token_count = T.int32()
        slots = T.int32()
        P = T.int32()
        pairs = T.match_buffer(pairs_handle, (Q,), "int32")
        sorted_experts = T.match_buffer(experts_handle, (Q,), "int32")
        offsets = T.match_buffer(offsets_handle, (E + 1,), "int32")
        positions = T.match_buffer(positions_handle, (token_count, slots), "int32")
        tokens = T.match_buffer(tokens_handle, (P,), "int32")
        owners = T.match_buffer(owners_handle, (P,), "int32")
        T.device_entry()
        block = T.cta_id([blocks_for(P, THREADS)])
        thread = T.thread_id([THREADS])
        row: T.let = block * THREADS + thread
        before = T.alloc_local((1,), "int32")
        if row < P:
            expert: T.let = sorted_experts[row]
            pair: T.let = pairs[row]
            token: T.let = T.truncdiv(pair, slots)
            positions[token, T.truncmod(pair, slots)] = T.Select(expert < E, row, -1)
            tokens[row] = token
            owners[row] = T.min(expert, E - 1)
            before[0] = -1
            if row > 0:
                before[0] = sorted_experts[row - 1]
            for begun in T.serial(expert - before[0]):
                offsets[before[0] + 1 + begun] = row
            if row == P - 1:
                for begun in T.serial(E - expert):
                    offsets[expert + 1 + begun] = P
        if T.And(P == 0, row == 0):
            for bound in T.serial(E + 1):
                offsets[bound] = 0

    return kernel


DESCRIBE_ROWS = Kernel(
    "describe_rows",
    "offsets, positions, tokens and owners of rows sorted by expert",
    describe_rows,
    how=lambda experts, _: f"one thread per row; where the expert changes, it writes the offsets of {experts} experts",
)
