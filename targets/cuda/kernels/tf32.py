"""Float32 rounded to tf32: 10 bits of fraction, of two equally near numbers the larger one."""

from __future__ import annotations

from tvm.script import tirx as T

ROUND_TO_TF32 = "cvt.rna.tf32.f32"
"""The instruction: bits of the result, value."""


@T.inline
def round_value(values, place):
    """``values[place]`` (float32) becomes tf32."""
    bits = T.alloc_local((1,), "uint32")
    T.ptx[ROUND_TO_TF32](bits[0], values[place])
    values[place] = T.reinterpret("float32", bits[0])
