"""Nothing but loads: how fast memory can be read.

Every thread reads one contiguous part from front to end, as the kernels read weights: prefetched by software, since
the hardware's own prefetcher stops at every page. The exclusive or of all that was read is stored, so that nothing can
be left out.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

ROW = 64
"""Elements of a row, four bytes each."""

_LINE = 16
_PREFETCH_ROWS = 16


def read_memory() -> tirx.PrimFunc:
    """The kernel ``(data[parts, rows, ROW], folded[parts, ROW])``, int32; one part per thread."""

    @T.prim_func(s_tir=True)
    def kernel(data_handle: T.handle, folded_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        parts = T.int64()
        rows = T.int64()
        data = T.match_buffer(data_handle, (parts, rows, ROW), "int32", align=64)
        folded = T.match_buffer(folded_handle, (parts, ROW), "int32", align=64)
        for part in T.parallel(parts):
            fold = T.alloc_buffer((ROW,), "int32")
            for i in T.vectorized(ROW):
                fold[i] = 0
            for row in T.serial(rows):
                for line in T.unroll(ROW // _LINE):
                    ahead = T.address_of(data[part, row + _PREFETCH_ROWS, line * _LINE])
                    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", ahead, T.int32(0), T.int32(3), T.int32(1)))
                for i in T.vectorized(ROW):
                    fold[i] = fold[i] ^ data[part, row, i]
            for i in T.vectorized(ROW):
                folded[part, i] = fold[i]

    return kernel
