"""Floats of 8 and 4 bits, OCP e4m3 and e2m1, by instructions that every target has.

A sign, some bits of exponent and of fraction. e4m3 counts exponents from 7, and its code without sign 127 is not a
number; e2m1 counts them from 1, and all its codes are numbers. Neither has an infinity.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

_FRACTION, _BIAS = 23, 127
"""Bits of a fraction of float32, and the number that its exponents count from."""


@dataclasses.dataclass(frozen=True)
class SmallFloat:
    """A type of floats. ``bits``: of a number; ``fraction``: bits of its fraction; ``bias``: the number that its
    exponents count from; ``largest``: its largest number."""

    bits: int
    fraction: int
    bias: int
    largest: float

    @property
    def _sign(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def _cut(self) -> int:
        """Bits of a fraction of float32 that the type does not have."""
        return _FRACTION - self.fraction

    @property
    def _biases(self) -> int:
        """The difference to the number that exponents of float32 count from."""
        return _BIAS - self.bias

    def number_of(self, code: Any) -> Any:
        """float32 of a code that is a number, int32."""
        bits = ((code & self._sign) << (32 - self.bits)) | ((code & (self._sign - 1)) << self._cut)
        return T.reinterpret("float32", bits) * T.float32(2.0**self._biases)

    def code_of(self, x: Any) -> Any:
        """The code, int32, of the nearest number (half to even) to a float32 of at most ``largest``."""
        bits = T.reinterpret("int32", x)
        magnitude = bits & 0x7FFFFFFF
        # Half of what is cut off, less one where the last bit that stays is even.
        rounded = (magnitude + ((1 << (self._cut - 1)) - 1) + ((magnitude >> self._cut) & 1)) >> self._cut
        smallest_normal = 2.0 ** (1 - self.bias)
        steps = T.cast(T.nearbyint(T.abs(x) * T.float32(2**self.fraction / smallest_normal)), "int32")
        few = T.Select(T.abs(x) < T.float32(smallest_normal), steps, rounded - (self._biases << self.fraction))
        return few | ((bits >> (32 - self.bits)) & self._sign)


E4M3 = SmallFloat(8, 3, 7, 448.0)
E2M1 = SmallFloat(4, 1, 1, 6.0)
