"""Padding of rows with trailing zeros to a multiple of 16 bytes.

Products copy and read rows 16 bytes at a time. Rows of another size are padded with zeros, and so is the matrix when it
is packed. The zeros do not change the sums.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx
from tvm.script import tirx as T

from moec.common.dtypes import dtype_of
from moec.targets.gpu.kernels.launch import EARLY_ATTRIBUTES, LOAD_BYTES, blocks_for
from moec.targets.tvm.kernels.kernel import Kernel, why_not_stored

THREADS = 128


@dataclasses.dataclass(frozen=True)
class Padding:
    """The padding of rows of ``dtype`` from ``inner`` to ``padded`` elements, a multiple of 16 bytes."""

    inner: int
    padded: int
    dtype: str

    @property
    def together(self) -> int:
        """Elements that a thread stores at once."""
        return LOAD_BYTES // dtype_of(self.dtype).itemsize


def whole_vectors(size: int, dtype: str) -> int:
    """``size`` elements of ``dtype``, rounded up to a multiple of 16 bytes."""
    together = Padding(size, size, dtype).together
    return -(-size // together) * together


def pad_rows(padding: Padding) -> tirx.PrimFunc:
    """The kernel ``(rows[R, inner], out[R, padded])``, which pads each row with zeros. R may be 0."""
    together, dtype = padding.together, padding.dtype
    shares = padding.padded // together

    @T.prim_func
    def kernel(rows_handle: T.handle, out_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        R = T.int32()
        rows = T.match_buffer(rows_handle, (R, padding.inner), dtype)
        out = T.match_buffer(out_handle, (R, padding.padded), dtype)
        T.device_entry()
        block = T.cta_id([blocks_for(R * shares, THREADS)])
        thread = T.thread_id([THREADS])
        share: T.let = block * THREADS + thread
        row: T.let = T.truncdiv(share, shares)
        # Not bound to a variable, so that TVM sees that vector stores are aligned.
        first = T.meta_var(T.truncmod(share, shares) * together)
        numbers = T.alloc_local((together,), dtype)
        if row < R:
            for v in T.unroll(together):
                numbers[v] = T.cast(0, dtype)
                if first + v < padding.inner:
                    numbers[v] = rows[T.cast(row, "int64"), first + v]
            for v in T.vectorized(together):
                out[T.cast(row, "int64"), first + v] = numbers[v]

    return kernel


PAD_ROWS = Kernel(
    "pad_rows",
    "out[r] = rows[r], zeros behind",
    pad_rows,
    how=lambda padding, _: f"{padding.inner} to {padding.padded} inputs; 16 bytes per thread",
    why_not=lambda padding, _: why_not_stored(padding.dtype),
)
