"""Floats of 8 bits, OCP e4m3, by instructions that every target has.

A sign, four bits of exponent that count from 7, three bits of fraction. The largest number is 448; the code without
sign 127 is not a number, and there is no infinity.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

LARGEST = 448.0
_FRACTION = 23 - 3
"""Bits of a fraction of float32 that e4m3 does not have."""
_BIASES = 127 - 7
"""How much higher the exponents of float32 count."""
_SMALLEST_NORMAL = 2.0**-6
_SMALLEST = 2.0**-9


def number_of(code: Any) -> Any:
    """float32 of a code that is a number, int32."""
    bits = ((code & 128) << 24) | ((code & 127) << _FRACTION)
    return T.reinterpret("float32", bits) * T.float32(2.0**_BIASES)


def code_of(x: Any) -> Any:
    """The code, int32, of the nearest number (half to even) to a float32 of at most :data:`LARGEST`."""
    bits = T.reinterpret("int32", x)
    magnitude = bits & 0x7FFFFFFF
    # Half of what is cut off, less one where the last bit that stays is even.
    rounded = (magnitude + ((1 << (_FRACTION - 1)) - 1) + ((magnitude >> _FRACTION) & 1)) >> _FRACTION
    steps = T.cast(T.nearbyint(T.abs(x) * T.float32(1 / _SMALLEST)), "int32")
    few = T.Select(T.abs(x) < T.float32(_SMALLEST_NORMAL), steps, rounded - (_BIASES << 3))
    return few | ((bits >> 24) & 128)
