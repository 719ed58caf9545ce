"""From stored weights to numbers in vector registers."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.kernels.dot import byte_words, pair_floats, pair_words
from moec.targets.cpu.kernels.emit import named
from moec.targets.cpu.kernels.multiplication import Multiplication, Tile, Weights
from moec.targets.cpu.kernels.register_tile import prefetch
from moec.targets.cpu.kernels.tiled_format import E2M1_HALVES, ZERO_POINTS

PREFETCH_BYTES = 4096
"""How far ahead of their use weights are prefetched."""


def _all_lanes(number: Any, lanes: int) -> Any:
    return T.broadcast(T.int32(number) if isinstance(number, int) else number, lanes)


def pair(data: Any, start: Any, lanes: int) -> tuple[Any, Any]:
    """Two vectors of float32: the even and the odd inputs of ``lanes`` columns of bfloat16 pairs."""
    return pair_floats(T.bind(pair_words(data, [start], lanes)), lanes)


def quad(product: Multiplication, data: Any, tile: Tile, index: Any, *, streamed: bool = True) -> list[Any]:
    """The ``index``-th four inputs of all columns: one vector of words per ``lanes`` columns, a word holding four
    unsigned bytes, that is stored numbers. ``streamed``: prefetched."""
    lanes, stored = product.machine.lanes, product.stored
    size = product.columns * stored.bits // 2 * stored.quads
    together, position = (index, 0) if stored.quads == 1 else (index // stored.quads, index % stored.quads)
    start = named("start", T.bind(tile.data + together * size))
    if streamed:
        for line in range(0, size, 64):
            prefetch(data[start + PREFETCH_BYTES + line])
    if stored.bits == 8:
        return [T.bind(byte_words(data, [start + 4 * lanes * v], lanes)) for v in range(product.vectors)]
    if stored.bits < 4:
        return _few_bits(product, data, start, position)
    both = named("both", T.bind(byte_words(data, [start], lanes)))
    halves = [_bits(both, 0, 4, lanes), _bits(both, 4, 4, lanes)]
    if stored.element == "mxfp4":
        halves = [_e2m1(product, half) for half in halves]
    return [T.bind(half) for half in halves]


def _bits(words: Any, first: Any, count: int, lanes: int) -> Any:
    """``count`` bits of every byte of the words, from bit ``first`` on."""
    words = words if isinstance(first, int) and first == 0 else words >> _all_lanes(first, lanes)
    return words & _all_lanes(((1 << count) - 1) * 0x01010101, lanes)


def _few_bits(product: Multiplication, data: Any, start: Any, position: Any) -> list[Any]:
    """The ``position``-th quad of those that lie together from ``start`` on, of numbers of two or three bits."""
    lanes, place = product.machine.lanes, named("place", T.bind(T.cast(position, "int32")))
    low = named("low", T.bind(byte_words(data, [start + position // 2 * (4 * lanes)], lanes)))
    numbers = [_bits(low, place % 2 * 4 + 2 * v, 2, lanes) for v in range(product.vectors)]
    if product.stored.bits == 3:
        high = named("high", T.bind(byte_words(data, [start + 8 * lanes], lanes)))
        thirds = [_bits(high, place * 2 + v, 1, lanes) for v in range(product.vectors)]
        numbers = [number | (third << _all_lanes(2, lanes)) for number, third in zip(numbers, thirds, strict=True)]
    return [T.bind(number) for number in numbers]


def _e2m1(product: Multiplication, codes: Any) -> Any:
    """Codes as unsigned bytes, ``12 + 2 * number``, by a table lookup within a register."""
    lanes = product.machine.lanes
    table = bytes(number + 12 for number in E2M1_HALVES)
    entries = [int.from_bytes(table[i : i + 4], "little") for i in range(0, 16, 4)]
    bytes_type = f"int8x{4 * lanes}"
    repeated = T.Shuffle([T.int32(entry) for entry in entries * (lanes // 4)], list(range(lanes)))
    operands = T.reinterpret(bytes_type, repeated), T.reinterpret(bytes_type, codes)
    found = T.call_llvm_pure_intrin(bytes_type, product.machine.byte_shuffle, *operands)
    return T.reinterpret(f"int32x{lanes}", found)


def _e4m3(codes: Any, lanes: int) -> Any:
    """The numbers of codes of float8 e4m3, as float32: sign, exponent and fraction go where float32 has them, whose
    exponents count from 127, those of e4m3 from 7. The code without sign 127 is not a number."""
    magnitude = codes & _all_lanes(127, lanes)
    bits = ((codes & _all_lanes(128, lanes)) << _all_lanes(24, lanes)) | (magnitude << _all_lanes(20, lanes))
    number = T.reinterpret(f"float32x{lanes}", bits) * T.broadcast(T.float32(2.0**120), lanes)
    nan = T.broadcast(T.float32(float("nan")), lanes)
    return T.Select(magnitude == _all_lanes(127, lanes), nan, number)


def scale(product: Multiplication, scales: Any, start: Any, v: int) -> Any:
    """The scales of the ``v``-th vector of columns, whose group's scales begin at ``start``, as float32."""
    lanes = product.machine.lanes
    stored = scales[T.ramp(start + v * lanes, 1, lanes)]
    if product.stored.scale != "float8_e8m0fnu":
        return T.cast(stored, f"float32x{lanes}")
    # 2**(e - 127), halved because the numbers are in halves; e = 0 is denormal, e = 255 is not a number.
    exponent = T.cast(stored, f"int32x{lanes}")
    power = T.reinterpret(f"float32x{lanes}", exponent << _all_lanes(23, lanes))
    lowest = T.broadcast(T.float32(2.0**-127), lanes)
    power = T.Select(exponent == _all_lanes(0, lanes), lowest, power)
    nan = T.broadcast(T.float32(float("nan")), lanes)
    return T.Select(exponent == _all_lanes(255, lanes), nan, power) * T.broadcast(T.float32(0.5), lanes)


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
        return _all_lanes(ZERO_POINTS[product.stored.element], lanes)
    return T.cast(zeros[T.ramp(start + v * lanes, 1, lanes)], f"int32x{lanes}")


def store_quad(product: Multiplication, weights: Weights, tile: Tile, index: Any, panel: Any, row: Any) -> None:
    """Emit the decoding of the ``index``-th four inputs into four rows of ``panel`` [inputs, columns], as float32."""
    lanes, is_e4m3 = product.machine.lanes, product.stored.element == "fp8"
    group = index * 4 // product.stored.group if product.stored.group else 0
    scales = named("scales", T.bind(tile.scales + group * product.columns))
    for v, vector in enumerate(quad(product, weights.data, tile, index)):
        factor = named("factor", T.bind(scale(product, weights.scales, scales, v)))
        offset = named("offset", T.bind(zero(product, weights.zeros, scales, v)))
        for position in range(4):
            number = (vector >> _all_lanes(8 * position, lanes)) & _all_lanes(255, lanes)
            value = _e4m3(number, lanes) if is_e4m3 else T.cast(number - offset, f"float32x{lanes}")
            value = value * factor
            if product.stored.minima:
                value = value - scale(product, weights.minima, scales, v)
            T.buffer_store(panel, value, [row + position, T.ramp(v * lanes, 1, lanes)])
