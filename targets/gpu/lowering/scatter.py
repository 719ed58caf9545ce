"""ScatterND and ScatterElements on a GPU: each number of the result applies the updates that write to it, in order.

A single thread could take the updates one after another without a search, but a GPU is slow at that. Instead there are
three kernels, each with one thread for each number that it writes:

1. ``fill``: ``first[p] = -1``.
2. ``link``: the thread of an update compares it with all others that may write to the same row. It stores the update in
   ``first`` of the row if no earlier one writes there, and the following one in ``next``. No other thread writes these
   places.
3. ``follow``: a number of the result starts as that of the data and takes its updates from the first to the last.

The result is that of the updates in their order, however threads are scheduled. No atomic operation is needed.
"""

from __future__ import annotations

from typing import Any

from tvm import relax, tirx
from tvm.script import tirx as T

from moec.targets.tvm.kernels.serial_kernels import combination
from moec.targets.tvm.lowering.lowering import Lowering
from moec.targets.tvm.onnx.indexing import scatter_converters

_NOBODY = -1


def fill() -> tirx.PrimFunc:
    """The kernel that sets ``first`` int64 [P] to -1; ``next`` int64 [outer, N, inner] is left as it is."""

    @T.prim_func(private=True, s_tir=True)
    def kernel(first: T.handle, following: T.handle):
        T.func_attr({"tirx.noalias": True})
        P = T.int64()
        outer = T.int64()
        N = T.int64()
        inner = T.int64()
        First = T.match_buffer(first, (P,), "int64")
        _next = T.match_buffer(following, (outer, N, inner), "int64")
        for p in T.parallel(P):
            First[p] = T.int64(_NOBODY)

    return kernel


def link() -> tirx.PrimFunc:
    """The kernel that links the updates of each row to a list.

    ``rows`` int64 [outer, N, inner]: the row of each update, -1 if it writes nowhere. Only updates with the same
    indices in the outer and inner axes may have the same row. ``next`` has the same shape; ``first`` [P] is written for
    rows that have an update.
    """

    @T.prim_func(private=True, s_tir=True)
    def kernel(rows: T.handle, first: T.handle, following: T.handle):
        T.func_attr({"tirx.noalias": True})
        outer = T.int64()
        N = T.int64()
        inner = T.int64()
        P = T.int64()
        Rows = T.match_buffer(rows, (outer, N, inner), "int64")
        First = T.match_buffer(first, (P,), "int64")
        Next = T.match_buffer(following, (outer, N, inner), "int64")
        for update in T.parallel(outer * N * inner):
            o: T.let = update // (N * inner)
            n: T.let = update // inner % N
            i: T.let = update % inner
            found = T.alloc_buffer((2,), "int64", scope="local")  # the last update before this one, and the first after
            found[0] = T.int64(_NOBODY)
            found[1] = N
            for other in T.serial(N):
                if Rows[o, other, i] == Rows[o, n, i]:
                    found[0] = T.Select(other < n, other, found[0])
                    found[1] = T.Select(other > n, T.min(found[1], other), found[1])
            Next[o, n, i] = T.Select(found[1] < N, (o * N + found[1]) * inner + i, T.int64(_NOBODY))
            if found[0] < T.int64(0) and Rows[o, n, i] >= T.int64(0):
                First[Rows[o, n, i]] = update

    return kernel


def follow(dtype: str, reduction: str) -> tirx.PrimFunc:
    """The kernel for ``result[p, i] = data[p, i]``, combined with ``updates[n, i]`` for n = ``first[p]``, its ``next``,
    and so on."""
    combine = combination(reduction)

    @T.prim_func(private=True, s_tir=True)
    def kernel(data: T.handle, first: T.handle, following: T.handle, updates: T.handle, result: T.handle):
        T.func_attr({"tirx.noalias": True})
        P = T.int64()
        N = T.int64()
        inner = T.int64()
        Data = T.match_buffer(data, (P, inner), dtype)
        First = T.match_buffer(first, (P,), "int64")
        Next = T.match_buffer(following, (N,), "int64")
        Updates = T.match_buffer(updates, (N, inner), dtype)
        Result = T.match_buffer(result, (P, inner), dtype)
        for place in T.parallel(P * inner):
            p: T.let = place // inner
            i: T.let = place % inner
            value = T.alloc_buffer((1,), dtype, scope="local")
            update = T.alloc_buffer((1,), "int64", scope="local")
            value[0] = Data[p, i]
            update[0] = First[p]
            while update[0] >= T.int64(0):
                value[0] = combine(value[0], Updates[update[0], i])
                update[0] = Next[update[0]]
            Result[p, i] = value[0]

    return kernel


def scatter(lowering: Lowering, data: relax.Expr, rows: relax.Expr, updates: relax.Expr, reduction: str) -> relax.Var:
    """Emit the data after all updates; see :data:`~moec.targets.tvm.onnx.indexing.Scatter`."""
    types = [relax.TensorType(shape, "int64") for shape in ([data.ty.shape[0]], list(rows.ty.shape))]
    nobody = lowering.call_serial(fill(), [], types, "scatter_fill")
    first, following = lowering.call_serial_on(link(), [rows], nobody, "scatter_link")
    following = lowering.reshape(following, [updates.ty.shape[0]])
    changed = follow(str(data.ty.dtype), reduction)
    return lowering.call_serial(changed, [data, first, following, updates], [data.ty], "scatter")[0]


CONVERTERS: dict[str, Any] = scatter_converters(scatter)  # these need a Lowering, more than a LoweringContext
