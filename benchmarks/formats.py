"""The formats of weights that are compared, and rounding for contestants without a quantiser.

Scales are rounded to their own type before the weights are divided by them.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of weights. ``arithmetic``: type of numbers that processors multiply fastest at this precision, for the
    roofline. ``group``: number of a row's weights that share a scale; 0 for the whole row."""

    name: str
    arithmetic: str
    bits: float
    group: int = 0


FORMATS = {
    form.name: form
    for form in (
        Format("fp32", "float32", 32),
        Format("bf16", "bfloat16", 16),
        Format("int8", "int8", 8),
        Format("int4-g32", "int8", 4, 32),
        Format("int4-g128", "int8", 4, 128),
        Format("mxfp4", "int8", 4, 32),
    )
}

MXFP4_GROUP = 32
_MXFP4_HIGHEST_EXPONENT = 2
"""Highest exponent of the element type: its largest number is 1.5 * 2**2."""


def round_integers(weights: np.ndarray, bits: int, group: int, scale_type: type) -> tuple[np.ndarray, np.ndarray]:
    """Round to symmetric integers [..., out, in] with scales [..., out, groups]; ``group`` 0 stands for the whole
    row."""
    group = group or weights.shape[-1]
    grouped = weights.reshape(*weights.shape[:-1], -1, group)
    highest = 2 ** (bits - 1) - 1
    scales = (np.abs(grouped).max(axis=-1) / highest).astype(scale_type)
    numbers = np.rint(grouped / scales[..., None].astype(np.float32))
    return np.clip(numbers, -highest - 1, highest).astype(np.int8).reshape(weights.shape), scales


def round_mxfp4(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round as in OCP microscaling: elements float4_e2m1fn [..., out, in] and exponents of two, biased by 127, per 32
    of a row."""
    grouped = weights.reshape(*weights.shape[:-1], -1, MXFP4_GROUP)
    largest = np.maximum(np.abs(grouped).max(axis=-1), np.finfo(np.float32).tiny)
    exponents = np.floor(np.log2(largest)).astype(np.int32) - _MXFP4_HIGHEST_EXPONENT
    elements = np.clip(np.ldexp(grouped, -exponents[..., None]), -6, 6).astype(ml_dtypes.float4_e2m1fn)
    return elements.reshape(weights.shape), (exponents + 127).astype(np.uint8)


def pack_pairs(numbers: np.ndarray) -> np.ndarray:
    """Pack two 4-bit numbers (0 to 15) per byte along the last axis, the first in the low half."""
    return (numbers[..., 0::2] | (numbers[..., 1::2] << 4)).astype(np.uint8)
