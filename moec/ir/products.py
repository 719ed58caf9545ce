"""Products of rows with weights in plain numpy, in the arithmetic of a :class:`~moec.ir.dialect.ProductSpec`."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import ml_dtypes
import numpy as np

from moec.ir.dialect import Arithmetic, ProductSpec

Array = np.ndarray[Any, Any]

_BEHIND_TF32, _HALF_OF_TF32 = np.uint32(0x1FFF), np.uint32(0x1000)
"""The bits of float32 that tf32 does not have, and half of its last one."""
_CONVERTED_AT_ONCE = 1 << 17
"""Elements of a weight that are converted to a wider type together: few enough to stay in the cache."""


@dataclasses.dataclass(frozen=True)
class _RowElements:
    """The elements of quantised activations: the ``largest`` magnitude, the type, and what their scales are."""

    largest: np.float32
    dtype: Any
    scales: Literal["quotients", "powers of two", "codes"] = "quotients"


_E4M3, _E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
_ELEMENTS = {
    "int8": _RowElements(np.float32(127), np.int8),  # -128 is not used
    "fp8": _RowElements(np.float32(448), _E4M3),
    "mxfp8": _RowElements(np.float32(448), _E4M3, "powers of two"),
    "mxfp4": _RowElements(np.float32(6), _E2M1, "powers of two"),
    "nvfp4": _RowElements(np.float32(6), _E2M1, "codes"),
}
_LARGEST_CODE = np.float32(448)
"""The largest scale of a group in nvfp4, without the factor of the row."""
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
        share = np.abs(rows).max(axis=-1, keepdims=True, initial=0) / _ELEMENTS["int8"].largest
        scales = np.maximum(share, _SMALLEST_SCALE).astype(ml_dtypes.bfloat16).astype(np.float32)
        return (np.rint(rows / scales) * scales).astype(x.dtype)


def rounded_to_tf32(numbers: Array) -> Array:
    """Float32 numbers with 10 bits of fraction, half away from zero; infinities and NaN stay what they are."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = ((bits + _HALF_OF_TF32) & ~_BEHIND_TF32).view(np.float32)
    return np.where(np.isfinite(numbers), rounded, numbers)


def quantize_rows(rows: Array, group: int, arithmetic: Arithmetic = "int8") -> tuple[Array, Array]:
    """Scales [...,groups] and quantised numbers [...,K], of the arithmetic's type, of float32 rows. A group with an
    infinity or a NaN gets a scale that is not finite, and zeros."""
    width, elements = rows.shape[-1], _ELEMENTS[arithmetic]
    largest, starts = elements.largest, np.arange(0, width, min(group or width, width))
    scales = _scales(elements, np.maximum.reduceat(np.abs(rows), starts, axis=-1))
    repeated = _of_elements(scales, group, width)
    usable = np.isfinite(repeated) & (repeated > 0)
    shares = np.clip(np.where(usable, rows / np.where(usable, repeated, 1), 0), -largest, largest)
    return scales, (np.rint(shares) if arithmetic == "int8" else shares).astype(elements.dtype)


def _scales(elements: _RowElements, magnitudes: Array) -> Array:
    """The scales of groups whose largest magnitudes [...,groups] are given."""
    shares = magnitudes / elements.largest
    if elements.scales == "quotients":
        return shares
    if elements.scales == "codes":
        codes, factors = codes_and_factors(magnitudes)
        return codes.astype(np.float32) * factors
    fraction, exponent = np.frexp(shares)
    exponents = np.where(fraction > 0, np.maximum(exponent - (fraction == 0.5), -127), -127)
    return np.where(np.isfinite(shares), np.ldexp(np.float32(1), exponents), np.float32(np.nan))


def codes_and_factors(magnitudes: Array) -> tuple[Array, Array]:
    """The scales of ``nvfp4`` in two levels, codes of e4m3 [...,groups] and factors [...,1] in float32, of groups whose
    largest magnitudes are given."""
    largest = _ELEMENTS["nvfp4"].largest
    factors = magnitudes.max(axis=-1, keepdims=True) / (_LARGEST_CODE * largest)
    usable = np.isfinite(factors) & (factors > 0)
    codes = np.where(usable, magnitudes / largest / np.where(usable, factors, 1), 0)
    return np.minimum(codes, _LARGEST_CODE).astype(_E4M3), factors


def _of_elements(scales: Array, group: int, width: int) -> Array:
    """Repeat the scales [...,groups] for each element of a row, [...,width]. A group may be larger than the row."""
    return np.repeat(scales, min(group or width, width), axis=-1)[..., :width]
