"""The largest magnitude of a part of a row, which a warp finds."""

from __future__ import annotations

from tvm.script import tirx as T

from moec.targets.gpu.kernels.instructions import reduce_lanes
from moec.targets.gpu.kernels.launch import WARP


@T.inline
def find_largest(source, row, first, end, steps, largest):
    """Find the bits of the largest magnitude of a row's elements before ``end``, of which this lane reads every
    :data:`WARP`-th one from ``first`` on, in ``steps`` steps."""
    largest[0] = 0
    for step in T.serial(steps):
        if first + step * WARP < end:
            magnitude: T.let = T.abs(T.cast(source[row, first + step * WARP], "float32"))
            largest[0] = T.max(largest[0], T.reinterpret("int32", magnitude))
    largest[0] = reduce_lanes(largest[0], "max")
