"""The layout of packed rows in fp8: the numbers of a row, followed by its scales.

A row of ``inner`` inputs is ``inner`` codes of e4m3, then a float32 scale for every :data:`GROUP` of them, then zeros
up to a multiple of 16 bytes. That is the size of copies, and the index of a row is enough to find its scales.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.gpu.constants import FP8 as FP8  # kernels take it from here
from moec.targets.gpu.kernels.instructions import set_halves_of_fp8

GROUP = 128
"""Inputs that share a scale: as many as a row of a k-tile holds."""
_SCALE_BYTES = 4
_ALIGNMENT = 16


def why_not_packed(inner: int, group: int) -> str | None:
    """The reason why rows of ``inner`` inputs, of which ``group`` share a scale, cannot be packed, or None."""
    if group != GROUP:
        return f"groups of {group or inner} activations; expected {GROUP}"
    return f"{inner} inputs are no multiple of {GROUP}" if inner % GROUP else None


def row_bytes(inner: int) -> int:
    scales = inner // GROUP * _SCALE_BYTES
    return inner + -(-scales // _ALIGNMENT) * _ALIGNMENT


def words_of(rows: Any, dtype: str) -> Any:
    """The bytes of packed rows, viewed as 32-bit numbers of ``dtype``."""
    return T.decl_buffer((1, int(rows.shape[1]) // _SCALE_BYTES), dtype, data=rows.data)


def place_of_scale(inner: int, group: Any) -> Any:
    """The index of a group's scale among the 32-bit numbers of a row."""
    return inner // _SCALE_BYTES + group


@T.inline
def decode_pairs(pairs, line, numbers):
    """Decode the codes in ``pairs[line]`` (uint16, two codes each) into ``numbers`` (float32); NaN stays NaN.

    The instruction needs sm_89 or newer, as packed rows do anyway.
    """
    halves = T.alloc_local((2,), "float16")
    both = T.decl_buffer((1,), "uint32", data=halves.data)
    for p in T.unroll(pairs.shape[1]):
        set_halves_of_fp8(both[0], pairs[line, p])
        for v in T.unroll(2):
            numbers[2 * p + v] = T.cast(halves[v], "float32")
