"""Conversion of stored weights back to ggml's blocks: the inverse of :mod:`moec.frontend.gguf.file.formats`.

A format has blocks only if they hold its numbers, scales and minima as they are. Only zero points, which GGUF does not
have, become minima: scale * zero point, rounded to float16, so off by at most 1/2048 of the minimum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.frontend.gguf.file.formats import FLOATS, QUANTISED
from moec.ir.weights.encode import Table, codes_of
from moec.ir.weights.format import WeightFormat

Array = np.ndarray[Any, Any]
Tables = Mapping[Table, Array]


def kind_of(form: WeightFormat, dtype: ir.DataType | None) -> str | None:
    """The type of tensors that holds all weights of a format; None if GGUF has none, or has their factors in a tensor
    of their own (NVFP4). ``dtype``: type of the scales, or of their factors; of the weights themselves where they are
    floats."""
    if not form.quantized:
        return next((kind for kind, own in FLOATS.items() if own == form.data_type), None)
    if form.zero_points and form.group:
        form = dataclasses.replace(form, zero_points=False, minima=True)
    rows = ((kind, QUANTISED[kind]) for kind in _PACKERS)
    return next((kind for kind, row in rows if row.form == form and row.scale == dtype), None)


def with_minima(tables: Tables) -> Tables:
    """The tables with minima in the place of zero points, if they have these. Raises ValueError for a minimum beyond
    the range of the type of the scales."""
    if "zero_point" not in tables:
        return tables
    scale, zero = tables["scale"], tables["zero_point"]
    with np.errstate(over="ignore"):
        minimum = (scale.astype(np.float32) * zero.astype(np.float32)).astype(scale.dtype)
    if not np.isfinite(minimum).all():
        raise ValueError(f"has a minimum beyond the range of {scale.dtype}")
    return {"data": tables["data"], "scale": scale, "minimum": minimum}


def pack(kind: str, tables: Tables) -> Array:
    """Pack the tables [out, ...] of a matrix into blocks, uint8 [bytes]. Rows have to fill whole blocks."""
    if kind in FLOATS:
        data = tables["data"].astype(FLOATS[kind].numpy().newbyteorder("<"), copy=False)
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    row = QUANTISED[kind]
    weights = row.form.super_group or row.form.group
    blocks = {table: tables[table].reshape(-1, weights // row.inputs_of(table)) for table in row.tables}
    return np.concatenate(_PACKERS[kind](blocks), axis=1).reshape(-1)


def _bytes(array: Array) -> Array:
    """View the elements of blocks [n, elements] as bytes [n, bytes]."""
    return np.ascontiguousarray(array).view(np.uint8)


def _nibbles(numbers: Array) -> Array:
    """Pack numbers of 4 bits, [n, 2 * bytes]: the first half is in the low halves of the bytes."""
    low, high = np.split(numbers & 15, 2, axis=-1)
    return low | (high << 4)


def _joined(numbers: Array, width: int, bits: int) -> Array:
    """Pack numbers of ``bits`` bits, uint8 [n, numbers]: the inverse of ``_shifted`` of the formats."""
    fields = numbers.reshape(len(numbers), -1, 8 // bits, width)
    moved = fields << (bits * np.arange(8 // bits, dtype=np.uint8))[:, None]
    return np.bitwise_or.reduce(moved, axis=2).reshape(len(numbers), -1)


def _whole(data: Array, zero: int) -> Array:
    """Numbers plus ``zero`` as uint8."""
    return (data.astype(np.int8) + np.int8(zero)).astype(np.uint8)


def _fifth_bits(numbers: Array) -> Array:
    return np.packbits(numbers >> 4, axis=-1, bitorder="little")


def _q4_0(tables: Tables) -> list[Array]:
    return [_bytes(tables["scale"]), _nibbles(_whole(tables["data"], 8))]


def _q4_1(tables: Tables) -> list[Array]:
    return [*_scale_and_minimum(tables), _nibbles(tables["data"].astype(np.uint8))]


def _scale_and_minimum(tables: Tables) -> list[Array]:
    return [_bytes(tables["scale"]), _bytes(-tables["minimum"])]


def _q5_0(tables: Tables) -> list[Array]:
    numbers = _whole(tables["data"], 16)
    return [_bytes(tables["scale"]), _fifth_bits(numbers), _nibbles(numbers)]


def _q5_1(tables: Tables) -> list[Array]:
    numbers = tables["data"]
    return [*_scale_and_minimum(tables), _fifth_bits(numbers), _nibbles(numbers)]


def _q8_0(tables: Tables) -> list[Array]:
    return [_bytes(tables["scale"]), _bytes(tables["data"])]


def _mxfp4(tables: Tables) -> list[Array]:
    return [_bytes(tables["scale"]), _nibbles(_bytes(tables["data"]))]


def _six_bits(scales: Array, minima: Array) -> Array:
    """Pack 8 scales and 8 minima of six bits into 12 bytes."""
    low, middle = (codes[:, :4] | (codes[:, 4:] >> 4) << 6 for codes in (scales, minima))
    return np.concatenate([low, middle, (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4], axis=1)


def _factors(tables: Tables) -> list[Array]:
    return [_bytes(tables["scale_factor"]), _bytes(tables["minimum_factor"])]


def _q2_k(tables: Tables) -> list[Array]:
    codes = tables["scale_code"] | tables["minimum_code"] << 4
    return [codes, _joined(tables["data"].astype(np.uint8), 32, 2), *_factors(tables)]


def _q3_k(tables: Tables) -> list[Array]:
    numbers, codes = _whole(tables["data"], 4), _whole(tables["scale_code"], 32)
    scales = [_nibbles(codes), _joined(codes >> 4, 4, 2)]
    return [_joined(numbers >> 2, 32, 1), _joined(numbers & 3, 32, 2), *scales, _bytes(tables["scale_factor"])]


def _q4_k(tables: Tables) -> list[Array]:
    codes = _six_bits(tables["scale_code"], tables["minimum_code"])
    return [*_factors(tables), codes, _joined(tables["data"].astype(np.uint8), 32, 4)]


def _q5_k(tables: Tables) -> list[Array]:
    codes, numbers = _six_bits(tables["scale_code"], tables["minimum_code"]), tables["data"]
    return [*_factors(tables), codes, _joined(numbers >> 4, 32, 1), _joined(numbers & 15, 32, 4)]


def _q6_k(tables: Tables) -> list[Array]:
    numbers = _whole(tables["data"], 32)
    halves = [_joined(numbers & 15, 64, 4), _joined(numbers >> 4, 32, 2)]
    return [*halves, _bytes(tables["scale_code"]), _bytes(tables["scale_factor"])]


def _iq4_nl(tables: Tables) -> list[Array]:
    return [_bytes(tables["scale"]), _nibbles(codes_of(tables["data"], "iq4"))]


def _iq4_xs(tables: Tables) -> list[Array]:
    codes = _whole(tables["scale_code"], 32)
    scales = [_joined(codes >> 4, 1, 2), _joined(codes & 15, 1, 4)]
    return [_bytes(tables["scale_factor"]), *scales, _joined(codes_of(tables["data"], "iq4"), 16, 4)]


_PACKERS: dict[str, Callable[[Tables], list[Array]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "MXFP4": _mxfp4,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
