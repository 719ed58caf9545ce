"""Float32 rounded to tf32: 10 bits of fraction, of two equally near numbers the larger one."""

from __future__ import annotations

from tvm.script import tirx as T

ROUND_TO_TF32 = "cvt.rna.tf32.f32"
"""The instruction: bits of the result, value."""


@T.inline
def round_values(values, count):
    """The first ``count`` elements of ``values`` (float32) become tf32."""
    bits = T.alloc_local((1,), "uint32")
    for v in T.unroll(count):
        T.ptx[ROUND_TO_TF32](bits[0], values[v])
        values[v] = T.reinterpret("float32", bits[0])
