"""Products of rows with weights in plain numpy, in the arithmetic of a :class:`~moec.ir.dialect.ProductSpec`."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from moec.ir.dialect import Arithmetic, ProductSpec

Array = np.ndarray[Any, Any]

_BEHIND_TF32, _HALF_OF_TF32 = np.uint32(0x1FFF), np.uint32(0x1000)
"""The bits of float32 that tf32 does not have, and half of its last one."""
_CONVERTED_AT_ONCE = 1 << 17
"""Elements of a weight that are converted to a wider type together: few enough to stay in the cache."""
_LARGEST = {"int8": np.float32(127), "fp8": np.float32(448)}
"""The largest magnitude of a quantised activation, by arithmetic; -128 is not used."""
_SMALLEST_SCALE = np.float32(2.0**-126)


def product(a: Array, b: Array) -> Array:
    """The matrix product a [n,K] times b [K,N] in the type of a.

    With few rows, converting b costs more than multiplying. Then a few columns at a time are converted, in cache.
    """
    if len(a) == 0:
        return np.empty((0, b.shape[1]), a.dtype)
    if a.dtype == b.dtype or b.size <= _CONVERTED_AT_ONCE or len(a) >= 16:
        return a @ b.astype(a.dtype, copy=False)
    result = np.empty((a.shape[0], b.shape[1]), a.dtype)
    step = max(1, _CONVERTED_AT_ONCE // b.shape[0])
    for start in range(0, b.shape[1], step):
        result[:, start : start + step] = a @ b[:, start : start + step].astype(a.dtype)
    return result


def rounded_rows(spec: ProductSpec, rows: Array) -> Array:
    """Round rows [...,K] as their arithmetic requires; the result has their own type.

    Rounding always starts from float32, so that a reference in float64 multiplies the same numbers as a kernel.
    """
    if spec.arithmetic == "float32" or rows.size == 0:
        return rows
    narrow = rows.astype(np.float32)
    if spec.arithmetic == "tf32":
        return rounded_to_tf32(narrow).astype(rows.dtype)
    if spec.arithmetic == "bfloat16":
        return narrow.astype(ml_dtypes.bfloat16).astype(rows.dtype)
    scales, quantized = quantize_rows(narrow, spec.activation_group, spec.arithmetic)
    repeated = _of_elements(scales, spec.activation_group, rows.shape[-1]).astype(rows.dtype)
    return np.where(np.isfinite(repeated), repeated, np.nan) * quantized.astype(rows.dtype)


def round_rows(x: Array) -> Array:
    """``moec.RoundRows``: x [..., N] → y [..., N], rounded from float32 in every case."""
    rows = x.astype(np.float32)
    with np.errstate(all="ignore"):
        share = np.abs(rows).max(axis=-1, keepdims=True, initial=0) / _LARGEST["int8"]
        scales = np.maximum(share, _SMALLEST_SCALE).astype(ml_dtypes.bfloat16).astype(np.float32)
        return (np.rint(rows / scales) * scales).astype(x.dtype)


def rounded_to_tf32(numbers: Array) -> Array:
    """Float32 numbers with 10 bits of fraction, half away from zero; infinities and NaN stay what they are."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = ((bits + _HALF_OF_TF32) & ~_BEHIND_TF32).view(np.float32)
    return np.where(np.isfinite(numbers), rounded, numbers)


def quantize_rows(rows: Array, group: int, arithmetic: Arithmetic = "int8") -> tuple[Array, Array]:
    """Scales [...,groups] and quantised numbers [...,K], int8 or float8 e4m3, of float32 rows. A group with an infinity
    or a NaN gets a scale that is not finite, and zeros."""
    width = rows.shape[-1]
    largest, starts = _LARGEST[arithmetic], np.arange(0, width, min(group or width, width))
    scales = np.maximum.reduceat(np.abs(rows), starts, axis=-1) / largest
    repeated = _of_elements(scales, group, width)
    usable = np.isfinite(repeated) & (repeated > 0)
    shares = np.clip(np.where(usable, rows / np.where(usable, repeated, 1), 0), -largest, largest)
    return scales, shares.astype(ml_dtypes.float8_e4m3fn) if arithmetic == "fp8" else np.rint(shares).astype(np.int8)


def _of_elements(scales: Array, group: int, width: int) -> Array:
    """Repeat the scales [...,groups] for each element of a row, [...,width]. A group may be larger than the row."""
    return np.repeat(scales, min(group or width, width), axis=-1)[..., :width]
