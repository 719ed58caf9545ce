"""The scale of a group of activations, from the bits of its largest magnitude, see
:class:`~moec.ir.dialect.ProductSpec`.

Bits of magnitudes are int32. Infinities and NaNs are larger than the bits of all numbers; their scale is NaN.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.tvm.kernels.activation import at_most
from moec.targets.tvm.kernels.small_floats import E2M1, E4M3, SmallFloat

ELEMENTS: dict[str, SmallFloat] = {"fp8": E4M3, "mxfp8": E4M3, "mxfp4": E2M1, "nvfp4": E2M1}
"""The type of an activation less its scale, by arithmetic."""
POWERS = ("mxfp8", "mxfp4")
"""The arithmetics whose scales are powers of two."""
_INFINITY_BITS = 0x7F800000
_FRACTION_BITS = (1 << 23) - 1


def is_finite(bits: Any) -> Any:
    return bits < T.int32(_INFINITY_BITS)


def has_factor(arithmetic: str) -> bool:
    """Whether all scales of a row are multiplied by one factor."""
    return arithmetic == "nvfp4"


def factor_of(bits: Any) -> Any:
    """The factor of a row, float32, from its largest magnitude; not finite if that is not."""
    return T.reinterpret("float32", bits) / T.float32(E4M3.largest * E2M1.largest)


def exponent_of(bits: Any, element: SmallFloat) -> Any:
    """The code, int32, of the smallest power of two that is at least magnitude / largest element, and at least 2**-127;
    code c means 2**(c - 127).

    Both numbers are 1 + fraction times a power of two: the quotient is between that of the powers and the next one if
    the fraction of the magnitude is larger. An addition carries into the exponent just then.
    """
    exponent, threshold = _exponent_and_fraction(element.largest)
    carried = (bits + T.int32(_FRACTION_BITS - threshold)) >> 23
    return T.max(carried - exponent, T.int32(0))


def _exponent_and_fraction(number: float) -> tuple[int, int]:
    exponent = int(number).bit_length() - 1
    return exponent, int((number / 2**exponent - 1) * (_FRACTION_BITS + 1))


def power_of(code: Any) -> Any:
    """2**(code - 127), float32; the smallest is no normal number."""
    return T.reinterpret("float32", T.Select(code == 0, T.int32(1 << 22), code << 23))


def code_of_scale(bits: Any, factor: Any) -> Any:
    """The code of e4m3, int32, by which ``factor`` is multiplied; 0 if the factor is 0 or not finite."""
    usable = T.And(factor > T.float32(0), is_finite(T.reinterpret("int32", factor)))
    share = T.reinterpret("float32", bits) / T.float32(E2M1.largest) / T.Select(usable, factor, T.float32(1))
    return E4M3.code_of(T.Select(usable, at_most(share, E4M3.largest), T.float32(0)))


def scale_of(arithmetic: str, bits: Any, factor: Any = None) -> Any:
    """The scale of a group, float32. ``factor``: that of its row, if the arithmetic has one."""
    if has_factor(arithmetic):
        return E4M3.number_of(code_of_scale(bits, factor)) * factor
    if arithmetic in POWERS:
        power = power_of(exponent_of(bits, ELEMENTS[arithmetic]))
        return T.Select(is_finite(bits), power, T.float32(float("nan")))
    largest = 127.0 if arithmetic == "int8" else ELEMENTS[arithmetic].largest
    return T.reinterpret("float32", bits) / T.float32(largest)
