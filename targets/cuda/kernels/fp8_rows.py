"""Rows in fp8 as kernels hand them on: the numbers of a row, then its scales.

A row of ``inner`` inputs is ``inner`` codes of e4m3, then a float32 for every :data:`GROUP` of them, then zeros up to a
multiple of 16 bytes: copies take so many, and lead to the scales by the number of the row alone.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.architectures import FP8 as FP8  # kernels take it from here

GROUP = 128
"""Inputs that share a scale: as many as a line of a panel has bytes."""
_SCALE_BYTES = 4
_ALIGNMENT = 16


def why_not_packed(inner: int, group: int) -> str | None:
    """The reason why rows of so many inputs, of which ``group`` share a scale, cannot be packed, or None."""
    if group != GROUP:
        return f"groups of {group or inner} activations; expected {GROUP}"
    return f"{inner} inputs are no multiple of {GROUP}" if inner % GROUP else None


def row_bytes(inner: int) -> int:
    scales = inner // GROUP * _SCALE_BYTES
    return inner + -(-scales // _ALIGNMENT) * _ALIGNMENT


def words_of(rows: Any, dtype: str) -> Any:
    """The bytes of packed rows as numbers of 32 bits."""
    return T.decl_buffer((1, int(rows.shape[1]) // _SCALE_BYTES), dtype, data=rows.data)


def place_of_scale(inner: int, group: Any) -> Any:
    """Where the scale of a group is among the numbers of 32 bits of a row."""
    return inner // _SCALE_BYTES + group
