"""From stored weights to numbers in vector registers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.kernels.dot import byte_words, pair_floats, pair_words
from moec.targets.cpu.kernels.emit import named
from moec.targets.cpu.kernels.multiplication import Multiplication, Weights, WeightTile
from moec.targets.cpu.kernels.register_tile import prefetch
from moec.targets.cpu.kernels.tiled_format import TiledFormat

PREFETCH_BYTES = 4096
"""How far ahead of their use weights are prefetched."""


def _all_lanes(number: Any, lanes: int) -> Any:
    return T.broadcast(T.int32(number) if isinstance(number, int) else number, lanes)


def pair(data: Any, start: Any, lanes: int) -> tuple[Any, Any]:
    """Two vectors of float32: the even and the odd inputs of ``lanes`` columns of bfloat16 pairs."""
    return pair_floats(T.bind(pair_words(data, [start], lanes)), lanes)


def quads(
    product: Multiplication, data: Any, tile: WeightTile, index: Any, *, streamed: bool = True
) -> Iterator[list[Any]]:
    """The quads of inputs in the ``index``-th unit of packing, each as one vector of words per ``lanes`` columns.

    A word has four stored numbers as unsigned bytes. ``streamed``: whether to prefetch."""
    lanes, stored = product.machine.lanes, product.stored
    size = product.columns * stored.bits // 2 * stored.quads
    start = named("start", T.bind(tile.data + index * size))
    if streamed:
        for line in range(0, size, 64):
            prefetch(data[start + PREFETCH_BYTES + line])
    if stored.bits == 8:
        yield [T.bind(byte_words(data, [start + 4 * lanes * v], lanes)) for v in range(product.vectors)]
        return
    words: dict[int, Any] = {}
    for position in range(stored.quads):
        for low, bits in reversed(stored.planes):
            number, place = divmod(position, 4 // bits)
            if place == 0:
                at = start + (low * stored.quads + 4 * number) * lanes
                words[low] = named("upper" if low else "lower", T.bind(byte_words(data, [at], lanes)))
        numbers = [_number(stored, words, position, v, lanes) for v in range(product.vectors)]
        if stored.table:
            numbers = [_looked_up(product, number) for number in numbers]
        yield [T.bind(number) for number in numbers]


def _number(stored: TiledFormat, words: Mapping[int, Any], position: int, v: int, lanes: int) -> Any:
    """The numbers of a quad in the ``v``-th vector of columns, from the ``words`` of the planes by their first bit."""
    parts = []
    for low, bits in stored.planes:
        part = _bits(words[low], (position % (4 // bits) * 2 + v) * bits, bits, lanes)
        parts.append(part << _all_lanes(low, lanes) if low else part)
    return functools.reduce(operator.or_, parts)


def _bits(words: Any, first: int, count: int, lanes: int) -> Any:
    """``count`` bits of every byte of the words, from bit ``first`` on."""
    words = words if first == 0 else words >> _all_lanes(first, lanes)
    return words & _all_lanes(((1 << count) - 1) * 0x01010101, lanes)


def _looked_up(product: Multiplication, codes: Any) -> Any:
    """The unsigned bytes of codes, by a table lookup within a register."""
    lanes, table = product.machine.lanes, bytes(product.stored.table)
    entries = [int.from_bytes(table[i : i + 4], "little", signed=True) for i in range(0, 16, 4)]
    bytes_type = f"int8x{4 * lanes}"
    repeated = T.Shuffle([T.int32(entry) for entry in entries * (lanes // 4)], list(range(lanes)))
    operands = T.reinterpret(bytes_type, repeated), T.reinterpret(bytes_type, codes)
    looked_up = T.call_llvm_pure_intrin(bytes_type, product.machine.byte_shuffle, *operands)
    return T.reinterpret(f"int32x{lanes}", looked_up)


def _e4m3(codes: Any, lanes: int) -> Any:
    """The numbers of float8 e4m3 codes, as float32.

    Sign, exponent and fraction move to their places in float32; the bias of its exponents is 127, that of e4m3 is 7. A
    code that is 127 without its sign is a NaN."""
    magnitude = codes & _all_lanes(127, lanes)
    bits = ((codes & _all_lanes(128, lanes)) << _all_lanes(24, lanes)) | (magnitude << _all_lanes(20, lanes))
    number = T.reinterpret(f"float32x{lanes}", bits) * T.broadcast(T.float32(2.0**120), lanes)
    nan = T.broadcast(T.float32(float("nan")), lanes)
    return T.Select(magnitude == _all_lanes(127, lanes), nan, number)


def minimum(product: Multiplication, weights: Weights, start: Any, v: int) -> Any:
    """The minima of the ``v``-th vector of columns, whose group's minima begin at ``start``, as float32."""
    return _floats(product, weights.minima, weights.minimum_factors, start, v)


def _floats(product: Multiplication, table: Any, factors: Any, start: Any, v: int) -> Any:
    lanes, stored = product.machine.lanes, product.stored
    numbers = table[T.ramp(start + v * lanes, 1, lanes)]
    if stored.has_float_codes:
        floats = _e4m3(T.cast(numbers, f"int32x{lanes}"), lanes)
    else:
        floats = T.cast(numbers, f"float32x{lanes}")
    if not stored.super_group:
        return floats
    place = start // (stored.span * product.columns) * product.columns + v * lanes
    return floats * T.cast(factors[T.ramp(place, 1, lanes)], f"float32x{lanes}")


def scale(product: Multiplication, weights: Weights, start: Any, v: int) -> Any:
    """The scales of the ``v``-th vector of columns, whose group's scales begin at ``start``, as float32; halved where
    the numbers are in halves."""
    if product.stored.scale == "float8_e8m0fnu":
        scales = _powers(weights.scales, start, v, product.machine.lanes)
    else:
        scales = _floats(product, weights.scales, weights.scale_factors, start, v)
    return scales * T.broadcast(T.float32(0.5), product.machine.lanes) if product.stored.is_e2m1 else scales


def _powers(exponents: Any, start: Any, v: int, lanes: int) -> Any:
    """The powers of two 2**(e - 127); e = 0 is denormal, e = 255 is not a number."""
    exponent = T.cast(exponents[T.ramp(start + v * lanes, 1, lanes)], f"int32x{lanes}")
    power = T.reinterpret(f"float32x{lanes}", exponent << _all_lanes(23, lanes))
    lowest = T.broadcast(T.float32(2.0**-127), lanes)
    power = T.Select(exponent == _all_lanes(0, lanes), lowest, power)
    nan = T.broadcast(T.float32(float("nan")), lanes)
    return T.Select(exponent == _all_lanes(255, lanes), nan, power)


def prefetch_scales(product: Multiplication, scales: Any, start: Any) -> None:
    """Emit the prefetch of the scales that belong to the weights that are prefetched at the group whose scales begin at
    ``start``."""
    groups_ahead = max(1, PREFETCH_BYTES // product.tile_elements_of(product.stored.group))
    prefetch(scales[start + groups_ahead * product.columns])


def zero(product: Multiplication, zeros: Any, start: Any, v: int) -> Any:
    """The zero points of the ``v``-th vector of columns as int32."""
    lanes = product.machine.lanes
    if product.stored.minima:
        return _all_lanes(0, lanes)
    if not product.stored.zero_points:
        return _all_lanes(product.stored.zero, lanes)
    return T.cast(zeros[T.ramp(start + v * lanes, 1, lanes)], f"int32x{lanes}")


def store_quads(product: Multiplication, weights: Weights, tile: WeightTile, index: Any, panel: Any, row: Any) -> None:
    """Emit the decoding of the ``index``-th quads that lie together into rows of ``panel`` [inputs, columns] from
    ``row`` on, as float32."""
    lanes, stored = product.machine.lanes, product.stored
    group = index * (4 * stored.quads) // stored.group if stored.group else 0
    scales = named("scales", T.bind(tile.scales + group * product.columns))
    vectors = range(product.vectors)
    factors = [named("factor", T.bind(scale(product, weights, scales, v))) for v in vectors]
    offsets = [named("offset", T.bind(zero(product, weights.zeros, scales, v))) for v in vectors]
    minima = [named("least", T.bind(minimum(product, weights, scales, v))) for v in vectors if stored.minima]
    for first, quad in enumerate(quads(product, weights.data, tile, index)):
        for v, vector in enumerate(quad):
            for position in range(4):
                number = (vector >> _all_lanes(8 * position, lanes)) & _all_lanes(255, lanes)
                integer = not stored.is_e4m3
                value = T.cast(number - offsets[v], f"float32x{lanes}") if integer else _e4m3(number, lanes)
                value = value * factors[v] - minima[v] if minima else value * factors[v]
                T.buffer_store(panel, value, [row + 4 * first + position, T.ramp(v * lanes, 1, lanes)])
