"""Rounding of float32 to tf32: 10 bits of fraction, ties away from zero."""

from __future__ import annotations

from tvm.script import tirx as T

from moec.targets.gpu.kernels.instructions import set_tf32


@T.inline
def round_value(values, place):
    """Round ``values[place]`` (float32) to tf32, in place."""
    bits = T.alloc_local((1,), "uint32")
    set_tf32(bits[0], values[place])
    values[place] = T.reinterpret("float32", bits[0])
