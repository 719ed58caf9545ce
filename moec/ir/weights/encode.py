"""The numbers of stored weights: floats to a narrower format and back, in plain numpy, rounded to nearest.

A group is ``group`` consecutive inputs of one output; they share a scale. Where the inputs are no multiple of it, the
last group is shorter, as ONNX's blocked DequantizeLinear says. Scales are rounded to the type they are stored in before
anything is divided by them.

=====================  ==============================  ====================================
elements               stored                          scale
=====================  ==============================  ====================================
16-bit floats          themselves                      none
integers of 8 bits     -127 to 127                     largest / 127
integers of b bits     -2**(b-1) to 2**(b-1) - 1       largest, with its sign, / -2**(b-1)
the 16 of iq4          the nearest of -127 to 113      largest, with its sign, / -127
with zero points       0 to 2**b - 1                   (maximum - minimum) / (2**b - 1)
with minima            0 to 2**b - 1                   the same
narrow floats          to the largest of their type L  largest / L
the same, of OCP MX    to the largest of their type L  2**(floor(log2(largest)) -
                                                       floor(log2(L)))
=====================  ==============================  ====================================

In nvfp4 (NVIDIA's, OCP e2m1) a scale largest / L is rounded to e4m3 times a float32, which is that of the whole matrix:
its largest element / (6 * 448). Errors hold for groups whose largest element is at least 2**-14 of the matrix's.
Source: ``NVFP4QTensor`` of modelopt.torch.quantization.

Largest and smallest are those of the group. A range with zero points always contains 0, and an element's error is up to
2 / (2**b - 1) of the largest one; without them it is the format's :attr:`~moec.ir.weights.format.Elements.error`.
Imported int8 weights may hold -128 too. The errors hold where the scale is a normal number of its type; in groups whose
scale is a subnormal float16 (largest element below 0.008 for int8, 0.0005 for int4), rounding the scale adds up to
4e-6. Letting the largest element of an int4 group be -8 makes the error of Gaussian weights 12% smaller than -7 to 7
does. The scale of an fp8 group of 128 inputs is that of 128 x 128 weights: as many consecutive outputs have the same
one (DeepSeek-V3's layout, arXiv 2412.19437, section 3.3).

Scales of two levels, and minima, are whole numbers times a factor: the largest of those that share it over the largest
whole number (:data:`_LARGEST_CODES`), in float16. Each is off by at most half a factor, so that an element is off by at
most half a scale, half the factor of the minima, and 2**b - 1 (without minima 2**(b-1)) times half the factor of the
scales, and what rounding a factor adds. Source: ``quantize_row_q4_K_ref`` and ``quantize_row_q6_K_ref`` of
``ggml-quants.c``, without their searches for better scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from moec.ir.weights.format import ELEMENTS, FormatName, WeightFormat

Array = np.ndarray[Any, Any]

_ELEMENTS_AT_ONCE = 1 << 16
_LARGEST_CODES = {"int2": 15, "int3": 31, "int4": 63, "int5": 63, "int6": 127, "iq4": 31}
"""The largest code of scales, and of minima, in the K formats of ggml with these elements."""
_SHORT = 64
"""Elements of a group up to which numpy finds extremes faster side by side."""


Table = Literal[
    "data", "scale", "zero_point", "minimum", "scale_code", "scale_factor", "minimum_code", "minimum_factor"
]
"""Tables of a stored weight. Scales of two levels (:mod:`moec.ir.weights.levels`) are products of codes and factors,
and only these are stored; so are minima."""


class StoredMatrix(Protocol):
    """A matrix as it is stored; scale, zero point and minimum have one entry per group along the axis of the inputs."""

    def read(self, table: Table) -> Array | None:
        """The table of that name; None where the format has none."""
        ...

    @property
    def data(self) -> Array: ...
    @property
    def scale(self) -> Array | None: ...
    @property
    def zero_point(self) -> Array | None: ...
    @property
    def minimum(self) -> Array | None: ...


class Encoded(NamedTuple):
    """A stored matrix whose arrays are in memory. Scales and minima of two levels are there as products, too."""

    data: Array
    scale: Array | None = None
    zero_point: Array | None = None
    minimum: Array | None = None
    scale_code: Array | None = None
    scale_factor: Array | None = None
    minimum_code: Array | None = None
    minimum_factor: Array | None = None

    def read(self, table: Table) -> Array | None:
        """The table of that name; None where the format has none."""
        return getattr(self, table)


def encode(weight: Array, form: WeightFormat, axis: int = -1) -> Encoded:
    """Convert ``weight`` to another format; ``axis`` is that of the inputs.

    Raises ValueError for a number that the format cannot hold (an infinity or NaN in a quantised format, a number
    beyond the range of float16 or of float16 scales), and for scales of two levels unless numbers have 2 to 6 bits.
    """
    if form.super_group and form.name not in _LARGEST_CODES:
        raise ValueError(f"nothing is rounded to {form}")
    size = weight.shape[axis]
    if form.minima or form.two_levels:
        data, *tables = _by_rows(weight, form, axis, lambda groups: _by_levels(groups, form, size))
        assert data is not None
        return Encoded(data, *tables)
    if form.quantized:
        data, scale, zero_point = _by_rows(weight, form, axis, lambda groups: _encoded(groups, form, size))
        assert data is not None
        return Encoded(data, scale, zero_point)
    with np.errstate(over="ignore"):
        data = weight.astype(form.data_type.numpy())
    beyond = np.isfinite(weight) & ~np.isfinite(data)
    if beyond.any():
        raise ValueError(f"{weight[beyond].max():.3g} is beyond the range of {form.name}")
    return Encoded(data)


def scales_of(weight: Array, form: WeightFormat, axis: int = -1) -> tuple[Array, Array | None]:
    """Scales and zero points (None where the format has none) of a quantised format; errors as for :func:`encode`."""
    scale, zero_point = _by_rows(weight, form, axis, lambda groups: _scales(groups, form))
    assert scale is not None
    return scale, zero_point


def decode(encoded: StoredMatrix, form: WeightFormat, axis: int = -1) -> Array:
    """The stored weight in float32 (float64 if it is stored so); not copied if it is stored in that type."""
    data = encoded.data
    if form.name == "float64":
        return data
    numbers = data.astype(np.float32, copy=False)
    if not form.quantized:
        return numbers
    assert encoded.scale is not None
    if encoded.zero_point is not None:
        numbers -= per_element(encoded.zero_point.astype(np.float32), form, data.shape[axis], axis)
    numbers = numbers * per_element(encoded.scale.astype(np.float32), form, data.shape[axis], axis)
    if encoded.minimum is not None:
        numbers -= per_element(encoded.minimum.astype(np.float32), form, data.shape[axis], axis)
    return numbers


def group_count(size: int, form: WeightFormat) -> int:
    """Number of groups that ``size`` inputs form."""
    return -(-size // (form.group or max(size, 1)))


def _by_rows(
    weight: Array, form: WeightFormat, axis: int, compute: Callable[[Array], tuple[Array | None, ...]]
) -> list[Array | None]:
    """Apply ``compute`` to the groups [rows, groups, group] of a few rows (outputs) at a time, which stay in the cache.
    Return the joined results [rows, ...], with the inputs moved back to ``axis``."""
    moved = np.moveaxis(weight, axis, -1)
    size = moved.shape[-1]
    rows = moved.reshape(math.prod(moved.shape[:-1]), size)
    blocks = [compute(_groups(rows[start:end], form)) for start, end in _portions(moved.shape, form)]
    results: list[Array | None] = []
    for parts in zip(*blocks, strict=True):
        arrays = [part for part in parts if part is not None]
        if not arrays:
            results.append(None)
            continue
        whole = np.concatenate(arrays).reshape(*moved.shape[:-1], arrays[0].shape[-1])
        results.append(np.ascontiguousarray(np.moveaxis(whole, -1, axis)))
    return results


def _portions(shape: tuple[int, ...], form: WeightFormat) -> Iterator[tuple[int, int]]:
    """Start and end of portions of the rows of matrices [..., outputs, inputs]; rows that share scales stay
    together."""
    outputs, size = (1, *shape)[-2:]
    count = math.prod(shape[:-1])
    together = max(outputs, 1) if form.elements.has_factors else form.shared_outputs
    if together > 1:
        for first in range(0, count, max(outputs, 1)):
            for start in range(first, first + outputs, together):
                yield start, min(start + together, first + outputs)
        if count:
            return
    step = max(1, _ELEMENTS_AT_ONCE // max(size, 1))
    for start in range(0, max(count, 1), step):
        yield start, start + step


def _groups(rows: Array, form: WeightFormat) -> Array:
    """Rows in float32 as [rows, groups, group]. They keep their order in memory, which is the fastest to read. Zeros,
    which change no scale, fill the last group."""
    size = rows.shape[-1]
    group, count = form.group or max(size, 1), group_count(size, form)
    wide = rows.astype(np.float32)
    if count * group > size:
        wide = np.concatenate([wide, np.zeros((len(rows), count * group - size), np.float32)], axis=1)
    return wide.reshape(len(rows), count, group)


def _by_levels(groups: Array, form: WeightFormat, size: int) -> tuple[Array | None, ...]:
    """The tables of :class:`Encoded` of rows of ``size`` elements, in a format with minima or scales of two levels."""
    low, high = _finite_extremes(groups, form)
    if form.elements.has_factors:
        scale, *scales = _of_one_factor(np.abs(np.maximum(-low, high)) / np.float32(form.elements.largest), form)
        minimum, minima, shifted = None, [None, None], groups
    elif form.minima:
        scale, *scales = _levels((high - low) / np.float32((1 << form.elements.bits) - 1), form)
        minimum, *minima = _levels(np.maximum(-low, 0), form)
        shifted = groups + minimum[..., None].astype(np.float32)
    else:
        scale, *scales = _levels(np.where(-low >= high, low, high) / np.float32(_range(form)[0]), form)
        minimum, minima, shifted = None, [None, None], groups
    numbers = numbers_within(shifted, scale[..., None], None, form)
    rows = numbers.reshape(len(groups), groups.shape[1] * groups.shape[2])
    return stored(rows[:, :size], form), scale, None, minimum, *scales, *minima


def _of_one_factor(exact: Array, form: WeightFormat) -> tuple[Array, Array, Array]:
    """Round the scales [rows, groups] of a matrix to codes times one factor, which brings the largest of them to the
    largest code: the scales, their codes, and the factor of each row."""
    dtype = form.scale_type.numpy()
    most = np.float32(ml_dtypes.finfo(dtype).max)
    factor = exact.max(initial=0) / most
    codes = np.minimum(_quotient(exact, np.full_like(exact, factor)), most).astype(dtype)
    return codes.astype(np.float32) * factor, codes, np.full((len(exact), 1), factor, np.float32)


def _levels(exact: Array, form: WeightFormat) -> tuple[Array, Array | None, Array | None]:
    """Round scales or minima [rows, groups] to the type that they are stored in: the table, and its codes and factors
    where it has two levels."""
    if not form.super_group:
        return _as_scales(exact, np.abs(exact), form), None, None
    span, count, largest = form.super_group // form.group, exact.shape[1], _LARGEST_CODES[form.name]
    spans = np.pad(exact, ((0, 0), (0, -count % span))).reshape(len(exact), -(-count // span), span)
    extreme = np.take_along_axis(spans, np.abs(spans).argmax(-1)[..., None], -1)
    lowest = 0 if form.minima else -largest - 1
    factors = _as_scales(extreme / np.float32(lowest or largest), np.abs(extreme), form)
    codes = np.clip(np.rint(_quotient(spans, factors)), lowest, largest)
    flat = len(exact), spans.shape[1] * span
    table = (codes * factors.astype(np.float32)).reshape(flat)[:, :count]
    kind = np.uint8 if form.minima else np.int8
    return table, codes.astype(kind).reshape(flat)[:, :count], factors[..., 0]


def _finite_extremes(groups: Array, form: WeightFormat) -> tuple[Array, Array]:
    """The smallest and the largest element of each group and 0. Raises ValueError where one is not finite."""
    low, high = _extremes(groups)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"it holds an infinity or a NaN, which {form.name} cannot")
    return low, high


def _scales(groups: Array, form: WeightFormat) -> tuple[Array, Array | None]:
    low, high = _finite_extremes(groups, form)
    largest = np.abs(np.maximum(-low, high))  # no -0
    if form.elements.has_exponents:
        return _shared_exponents(largest, form), None
    if not form.elements.whole:
        return _float_scales(largest, form), None
    lowest, levels = _range(form)[0], (1 << form.elements.bits) - 1
    if form.zero_points:
        exact = (high - low) / np.float32(levels)
    elif lowest == -_range(form)[1]:
        exact = largest / np.float32(-lowest)
    else:
        exact = np.where(-low >= high, low, high) / np.float32(lowest)
    scale = _as_scales(exact, largest, form)
    if not form.zero_points:
        return scale, None
    return scale, stored(np.clip(np.rint(_quotient(-low, scale)), 0, levels), form)


def _extremes(groups: Array) -> tuple[Array, Array]:
    """The smallest and the largest element of each group and 0; NaN where there is one."""
    if groups.flags.c_contiguous and groups.shape[-1] <= _SHORT:
        groups = np.moveaxis(np.ascontiguousarray(np.moveaxis(groups, -1, 0)), 0, -1)
    return np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)


def _encoded(groups: Array, form: WeightFormat, size: int) -> tuple[Array, Array, Array | None]:
    """Data, scale and zero point of rows that have ``size`` elements without the zeros that fill the last group."""
    scale, zero_point = _scales(groups, form)
    zero = None if zero_point is None else zero_point[..., None].astype(np.float32)
    rows = numbers_within(groups, scale[..., None], zero, form).reshape(len(groups), groups.shape[1] * groups.shape[2])
    return stored(rows[:, :size], form), scale, zero_point


def numbers_within(weight: Array, scale: Array, zero_point: Array | None, form: WeightFormat) -> Array:
    """The float32 numbers that :func:`stored` takes for a weight: divided by the scale, clamped to the range of the
    format, and rounded to its elements if these are integers. Scales and zero points (float32) broadcast to the
    weight."""
    numbers = _quotient(weight, scale)
    if not form.elements.whole:
        return np.clip(numbers, -form.elements.largest, form.elements.largest, out=numbers)
    if form.elements.numbers:
        table = np.array(form.elements.numbers, np.float32)
        return table[np.searchsorted((table[1:] + table[:-1]) / 2, numbers)]
    np.rint(numbers, out=numbers)
    if zero_point is not None:
        numbers += zero_point
    return np.clip(numbers, *_range(form), out=numbers)


def codes_of(data: Array, name: FormatName) -> Array:
    """The places of int8 numbers, uint8, among the few that a format has. Raises ValueError for any other number."""
    numbers = ELEMENTS[name].numbers
    places = np.full(256, len(numbers), np.uint8)
    places[np.array(numbers, np.int8).view(np.uint8)] = np.arange(len(numbers))
    codes = places[np.ascontiguousarray(data).view(np.uint8)]
    if codes.max(initial=0) == len(numbers):
        raise ValueError(f"it holds a number that is none of the {len(numbers)} of {name}")
    return codes


def stored(numbers: Array, form: WeightFormat) -> Array:
    """Convert numbers (integers if the format has integers) to the type they are stored in. Numpy holds an integer of
    fewer than 8 bits in the lower bits of a byte. Masking bytes takes a fifth of the time of a conversion."""
    dtype, bits = form.data_type.numpy(), form.data_type.bitwidth
    if form.elements.whole and bits < 8:
        return (numbers.astype(np.int8) & ((1 << bits) - 1)).view(dtype)
    return numbers.astype(dtype)


def _quotient(numbers: Array, scale: Array) -> Array:
    """Divide by the scales; 0 where the scale is 0: in a group of zeros, or of numbers too small for its type."""
    wide = scale.astype(np.float32)
    if wide.all():
        return numbers / wide
    return np.divide(numbers, wide, out=np.zeros_like(numbers), where=wide != 0)


def _shared_exponents(largest: Array, form: WeightFormat) -> Array:
    """The scales of OCP MX: the power of two that gives the largest element of a group the exponent of the format's
    largest number."""
    _, exponents = np.frexp(largest)  # largest = fraction in [1/2, 1) times 2 ** exponent
    exponents = exponents - np.frexp(form.elements.largest)[1]
    return (np.clip(exponents, -127, 127) + 127).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)


def _float_scales(largest: Array, form: WeightFormat) -> Array:
    """The scales that bring the largest element of a group, or of its block (:func:`_portions`), to the format's
    largest number. Raises ValueError for a scale beyond the range of its type."""
    if form.shared_outputs > 1:
        largest = np.broadcast_to(largest.max(0, keepdims=True, initial=0), largest.shape)
    return _as_scales(largest / np.float32(form.elements.largest), largest, form)


def _as_scales(exact: Array, largest: Array, form: WeightFormat) -> Array:
    with np.errstate(over="ignore"):
        scale = exact.astype(form.scale_type.numpy())
    if not np.isfinite(scale).all():
        raise ValueError(f"{largest.max():.3g} needs a scale beyond the range of float16; choose larger groups")
    return scale


def _range(form: WeightFormat) -> tuple[int, int]:
    """The smallest and the largest stored integer."""
    bits, numbers = form.elements.bits, form.elements.numbers
    if numbers:
        return numbers[0], numbers[-1]
    if form.zero_points or form.minima:
        return 0, (1 << bits) - 1
    return (-127, 127) if bits == 8 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def per_element(per_group: Array, form: WeightFormat, size: int, axis: int) -> Array:
    """Repeat scales or zero points of groups for each of the ``size`` inputs along ``axis``."""
    repeated = np.repeat(per_group, form.group or max(size, 1), axis=axis)
    return np.take(repeated, np.arange(size), axis=axis) if repeated.shape[axis] != size else repeated
