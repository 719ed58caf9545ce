"""Elementary functions as plain arithmetic, which LLVM turns into vector code (a call to libm would not be)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import named

_LOWEST, _HIGHEST = -87.33654, 88.72283
_LOG2_E = 1.44269504
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def exponential(x: tirx.Expr) -> tirx.Expr:
    """``exp(x)`` of a float32, within 2 units in the last place; 0 below the normal range, inf above, NaN for NaN.

    ``x = n ln 2 + r``, ``exp(x) = 2**n * exp(r)`` with the polynomial of the Cephes library (Moshier, expf) for exp(r).
    The factor 2**n is applied in two halves because n may be 128, which has no float32.
    """
    return let("x", x, _exponential)


def _exponential(x: tirx.Var) -> tirx.Expr:
    bounded = T.min(T.max(x, T.float32(_LOWEST)), T.float32(_HIGHEST))
    rounded = T.floor(bounded * T.float32(_LOG2_E) + T.float32(0.5))
    result = let("n", rounded, lambda n: _scaled_series(x - n * T.float32(_LN2_HIGH) - n * T.float32(_LN2_LOW), n))
    result = T.Select(x < T.float32(_LOWEST), T.float32(0), result)
    return T.Select(x > T.float32(_HIGHEST), T.float32(float("inf")), result)


def _scaled_series(r: tirx.Expr, n: tirx.Var) -> tirx.Expr:
    """``2**n * exp(r)``."""
    exponent = T.cast(n, "int32")
    half = exponent >> 1
    return let("r", r, _series) * _power_of_two(half) * _power_of_two(exponent - half)


def _series(r: tirx.Var) -> tirx.Expr:
    series = T.float32(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        series = series * r + T.float32(coefficient)
    return series * r * r + r + T.float32(1)


def let(name: str, value: tirx.Expr, body: Callable[[tirx.Var], tirx.Expr]) -> tirx.Expr:
    """An expression with a name for a part that it uses several times: written out, the text would grow without end,
    and an expression that binds names itself must not stand twice in a kernel."""
    variable = tirx.Var(name, "float32")
    return tirx.Let(variable, value, body(variable))


def _power_of_two(exponent: tirx.Expr) -> tirx.Expr:
    return T.reinterpret("float32", (exponent + 127) << 23)


def sums_of_lanes(vectors: Sequence[tirx.Expr], lanes: int) -> tirx.Expr:
    """The sum of each of as many float32 vectors as they have lanes, a power of two, as one vector: neighbours are
    added up until one lane is left of each, for two vectors at once."""
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [named("sums", T.bind(_neighbours(*pair, lanes))) for pair in pairs]
    return vectors[0]


def _neighbours(left: tirx.Expr, right: tirx.Expr, lanes: int) -> tirx.Expr:
    """The sums of neighbouring lanes of two vectors side by side."""
    even, odd = (
        tirx.Shuffle([left, right], [tirx.IntImm("int32", 2 * i + first) for i in range(lanes)]) for first in (0, 1)
    )
    return even + odd
