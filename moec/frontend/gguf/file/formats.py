"""Conversion of ggml's blocks to stored weights: every number, scale and minimum stays as it is in the file.

A row of a matrix consists of blocks of 32 weights; those of NVFP4 have 64, those of the K formats and of IQ4_XS 256,
in groups with their own scales.
Layouts: the structures and ``dequantize_row_*`` of ggml (``ggml-common.h``, ``ggml-quants.c``).

========  ================================================  ==========================================  ======  ======
type      a weight is                                       becomes                                     bits    there
========  ================================================  ==========================================  ======  ======
Q4_0      d * (q - 8)                                       int4 in groups of 32, float16 scales        4.5     4.5
Q4_1      d * q + m                                         uint4 in groups of 32, float16 minima       5       5
Q5_0      d * (q - 16)                                      int5 in groups of 32, float16 scales        5.5     5.5
Q5_1      d * q + m                                         uint5 in groups of 32, float16 minima       6       6
Q8_0      d * q                                             int8 in groups of 32, float16 scales        8.5     8.5
MXFP4     2^(e - 127) * e2m1                                float4 in groups of 32, scales 2^n          4.25    4.25
NVFP4     f * e4m3 * e2m1, in groups of 16                  float4, scales e4m3, f for each output      4.5     4.5
Q2_K      (d * s) * q - dmin * m, in groups of 16           uint2, scales and minima of two levels      3.125   2.625
Q3_K      (d * (s - 32)) * (q - 4), in groups of 16         int3, scales of two levels                  3.5625  3.4375
Q4_K      (d * s) * q - dmin * m, in groups of 32           uint4, scales and minima of two levels      4.625   4.5
Q5_K      (d * s) * q - dmin * m, in groups of 32           uint5, scales and minima of two levels      5.625   5.5
Q6_K      (d * s) * (q - 32), in groups of 16               int6, scales of two levels                  6.5625  6.5625
IQ4_NL    d * t[q]                                          iq4 in groups of 32, float16 scales         4.5     4.5
IQ4_XS    (d * (s - 32)) * t[q], in groups of 32            iq4, scales of two levels                   4.3125  4.25
========  ================================================  ==========================================  ======  ======

``bits`` of a weight are those in an artifact for a CPU, ``there`` those in the file; an artifact has a byte for a scale
of 4 or 6 bits. A scale of 255 in MXFP4 is NaN, as OCP defines; ggml reads 2^128. One of 127 in NVFP4 is NaN, too; ggml
reads 0. The float f of a matrix NAME.weight is in the tensor NAME.scale, with one for each expert, and 1 where the file
has none. The table t of the IQ4 formats has 16 whole numbers, at uneven distances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.frontend.gguf.file.reader import BLOCKS, GgufTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight, LazyArray
from moec.ir.weights.encode import Table
from moec.ir.weights.format import ELEMENTS, NV_GROUP, FormatName, WeightFormat
from moec.ir.weights.levels import LEVELS

Array = np.ndarray[Any, Any]
Tables = dict[Table, Callable[[], Array]]
"""Readers of the tables of blocks [n, bytes]: data [n, weights of a block], scales and minima [n, groups of a block],
factors [n, 1]. Tables are read one by one, and all except data are cheap."""
_SUPER = 256
_IQ4_NUMBERS = np.array(ELEMENTS["iq4"].numbers, np.int8)

FLOATS: dict[str, ir.DataType] = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}


@dataclasses.dataclass(frozen=True)
class Quantised:
    """A type of tensors: the format of its weights, the type of its scales, the type of their codes where they have two
    levels, and the function that reads its blocks."""

    form: WeightFormat
    scale: ir.DataType
    read: Callable[[Array], Tables]
    codes: ir.DataType | None = None

    @property
    def tables(self) -> list[Table]:
        if self.form.two_levels:
            return ["data", *LEVELS["scale"], *(LEVELS["minimum"] if self.form.minima else ())]
        return ["data", "scale", "minimum"] if self.form.minima else ["data", "scale"]

    def dtype(self, table: Table) -> ir.DataType:
        if table == "data":
            return self.form.data_type
        return self.codes if self.codes is not None and table.endswith("_code") else self.scale

    def inputs_of(self, table: Table) -> int:
        """Count the inputs that share one entry of a table."""
        if table == "data":
            return 1
        return self.form.super_group if table.endswith("_factor") else self.form.group


def weight_of(tensor: GgufTensor) -> CheckpointWeight:
    """Describe a matrix, or a stack of matrices, in its stored format. Its data is read on demand."""
    if tensor.kind in FLOATS:
        return CheckpointWeight(
            tensor.where, {"data": LazyArray(FLOATS[tensor.kind], tensor.shape, lambda: floats(tensor))}
        )
    kind = QUANTISED[tensor.kind]
    tables: dict[Table, LazyArray] = {table: _lazy(tensor, kind, table) for table in kind.tables}
    return CheckpointWeight(tensor.where, tables, kind.form)


def floats(tensor: GgufTensor) -> Array:
    """View a tensor that is stored as floats in the mapped file."""
    return tensor.blocks.reshape(-1).view(FLOATS[tensor.kind].numpy().newbyteorder("<")).reshape(tensor.shape)


def decoded(tensor: GgufTensor) -> Array:
    """Decode all numbers of a tensor to float32."""
    if tensor.kind in FLOATS:
        return floats(tensor).astype(np.float32)
    kind, blocks = QUANTISED[tensor.kind], tensor.blocks
    tables = kind.read(blocks.reshape(-1, blocks.shape[-1]))
    if kind.form.elements.has_factors:
        tables["scale_factor"] = lambda: np.repeat(_factors(tensor).reshape(-1, 1), blocks.shape[-2], axis=0)
    scales = _of_groups(tables, "scale")
    groups = tables["data"]().astype(np.float32).reshape(*scales.shape, -1) * scales[..., None]
    if kind.form.minima:
        groups = groups - _of_groups(tables, "minimum")[..., None]
    return groups.reshape(tensor.shape)


def _of_groups(tables: Tables, table: Literal["scale", "minimum"]) -> Array:
    """Compute scales or minima [n, groups of a block] in float32."""
    if table in tables:
        return tables[table]().astype(np.float32)
    codes, factors = (tables[level]().astype(np.float32) for level in LEVELS[table])
    return codes * factors


def stored_bits(kind: str) -> tuple[float, float]:
    """Count the bits per weight, with scales and minima: first in an artifact, then in the file."""
    _, weights, size = next(block for block in BLOCKS.values() if block[0] == kind)
    if kind in FLOATS:
        return FLOATS[kind].bitwidth, FLOATS[kind].bitwidth
    form = QUANTISED[kind].form
    each = form.scale_bits if form.two_levels else QUANTISED[kind].scale.bitwidth
    return form.elements.bits + each * (1 + form.minima) / form.group, 8 * size / weights


def _lazy(tensor: GgufTensor, kind: Quantised, table: Table) -> LazyArray:
    rows = tensor.blocks.shape[:-2]
    if kind.form.elements.has_factors and table == "scale_factor":
        return LazyArray(kind.scale, (*rows, 1), lambda: _factors(tensor))
    shape = (*rows, tensor.shape[-1] // kind.inputs_of(table))
    dtype = kind.dtype(table)

    def read(part: Array) -> Array:
        whole = kind.read(part.reshape(-1, part.shape[-1]))[table]()
        return whole.reshape(*part.shape[:-2], -1)

    return LazyArray(dtype, shape, lambda: read(tensor.blocks), lambda expert: read(tensor.blocks[expert]))


def _factors(tensor: GgufTensor) -> Array:
    """The float of each row of an NVFP4 tensor, [..., 1]."""
    rows = tensor.shape[:-1]
    factors = np.ones(1, np.float32) if tensor.factors is None else tensor.factors
    return np.ascontiguousarray(np.broadcast_to(factors.reshape(-1, *(1 for _ in rows)), (*rows, 1)))


# --- blocks of 32: the low halves of the bytes are the first 16 weights


def _half(blocks: Array, first: int) -> Array:
    """Read a float16 of each block, [n, 1]."""
    return np.ascontiguousarray(blocks[:, first : first + 2]).view("<f2")


def _nibbles(packed: Array) -> Array:
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _int4(numbers: Array) -> Array:
    """Subtract 8 and convert to int4."""
    return ((numbers - 8) & 15).astype(np.int8).view(ml_dtypes.int4)


def _q4_0(blocks: Array) -> Tables:
    return {"data": lambda: _int4(_nibbles(blocks[:, 2:])), "scale": lambda: _half(blocks, 0)}


def _q4_1(blocks: Array) -> Tables:
    return {"data": lambda: _nibbles(blocks[:, 4:]).view(ml_dtypes.uint4), **_scale_and_minimum(blocks)}


def _scale_and_minimum(blocks: Array) -> Tables:
    """Readers of the scales and minima of Q4_1 and Q5_1."""
    return {"scale": lambda: _half(blocks, 0), "minimum": lambda: -_half(blocks, 2)}


def _fifth_bits(blocks: Array, first: int) -> Array:
    """Unpack the 32 bits of four bytes and move each to the place of a fifth bit (0 or 16)."""
    return np.unpackbits(blocks[:, first : first + 4], axis=-1, bitorder="little") << 4


def _q5_0(blocks: Array) -> Tables:
    def numbers() -> Array:
        return (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).astype(np.int8) - np.int8(16)

    return {"data": numbers, "scale": lambda: _half(blocks, 0)}


def _q5_1(blocks: Array) -> Tables:
    return {"data": lambda: _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4), **_scale_and_minimum(blocks)}


def _q8_0(blocks: Array) -> Tables:
    return {"data": lambda: np.ascontiguousarray(blocks[:, 2:]).view(np.int8), "scale": lambda: _half(blocks, 0)}


def _mxfp4(blocks: Array) -> Tables:
    return {
        "data": lambda: _nibbles(blocks[:, 1:]).view(ml_dtypes.float4_e2m1fn),
        "scale": lambda: np.ascontiguousarray(blocks[:, :1]).view(ml_dtypes.float8_e8m0fnu),
    }


def _iq4_nl(blocks: Array) -> Tables:
    return {"data": lambda: _IQ4_NUMBERS[_nibbles(blocks[:, 2:])], "scale": lambda: _half(blocks, 0)}


def _nvfp4(blocks: Array) -> Tables:
    def numbers() -> Array:
        groups = _nibbles(blocks[:, 4:].reshape(-1, 8))
        return groups.reshape(len(blocks), -1).view(ml_dtypes.float4_e2m1fn)

    return {"data": numbers, "scale_code": lambda: (blocks[:, :4] & 127).view(ml_dtypes.float8_e4m3fn)}


# --- blocks of 256, whose groups have small whole numbers as scales and minima


def _shifted(packed: Array, width: int, bits: int, fields: int) -> Array:
    """Unpack fields of ``bits`` bits from bytes [n, bytes]: for every ``width`` bytes first all lowest fields, then the
    next ones."""
    parts = packed.reshape(len(packed), -1, 1, width) >> (bits * np.arange(fields, dtype=np.uint8))[:, None]
    return (parts & ((1 << bits) - 1)).reshape(len(packed), -1)


def _six_bits(packed: Array) -> tuple[Array, Array]:
    """Unpack 8 scales and 8 minima of six bits from 12 bytes: ``get_scale_min_k4`` of ggml."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1)
    minima = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=-1)
    return scales, minima


def _q2_k(blocks: Array) -> Tables:
    scales, packed = blocks[:, :16], blocks[:, 16:80]
    return {
        "data": lambda: _shifted(packed, 32, 2, 4).view(ml_dtypes.uint2),
        "scale_code": lambda: scales & 15,
        "scale_factor": lambda: _half(blocks, 80),
        "minimum_code": lambda: scales >> 4,
        "minimum_factor": lambda: _half(blocks, 82),
    }


def _q3_k(blocks: Array) -> Tables:
    def numbers() -> Array:
        third = _shifted(blocks[:, :32], 32, 1, 8) << 2
        low = _shifted(blocks[:, 32:96], 32, 2, 4) | third
        return ((low - 4) & 15).astype(np.int8).view(ml_dtypes.int4)

    def codes() -> Array:
        scales = _nibbles(blocks[:, 96:104]) | (_shifted(blocks[:, 104:108], 4, 2, 4) << 4)
        return scales.astype(np.int8) - np.int8(32)

    return {"data": numbers, "scale_code": codes, "scale_factor": lambda: _half(blocks, 108)}


def _scales_and_minima(blocks: Array) -> Tables:
    """Readers of the scales and minima of Q4_K and Q5_K."""
    return {
        "scale_code": lambda: _six_bits(blocks[:, 4:16])[0],
        "scale_factor": lambda: _half(blocks, 0),
        "minimum_code": lambda: _six_bits(blocks[:, 4:16])[1],
        "minimum_factor": lambda: _half(blocks, 2),
    }


def _q4_k(blocks: Array) -> Tables:
    return {"data": lambda: _shifted(blocks[:, 16:], 32, 4, 2).view(ml_dtypes.uint4), **_scales_and_minima(blocks)}


def _q5_k(blocks: Array) -> Tables:
    def numbers() -> Array:
        return _shifted(blocks[:, 48:], 32, 4, 2) | (_shifted(blocks[:, 16:48], 32, 1, 8) << 4)

    return {"data": numbers, **_scales_and_minima(blocks)}


def _q6_k(blocks: Array) -> Tables:
    def numbers() -> Array:
        low, high = _shifted(blocks[:, :128], 64, 4, 2), _shifted(blocks[:, 128:192], 32, 2, 4)
        return (low | (high << 4)).astype(np.int8) - np.int8(32)

    return {
        "data": numbers,
        "scale_code": lambda: np.ascontiguousarray(blocks[:, 192:208]).view(np.int8),
        "scale_factor": lambda: _half(blocks, 208),
    }


def _iq4_xs(blocks: Array) -> Tables:
    def codes() -> Array:
        scales = _shifted(blocks[:, 4:8], 1, 4, 2) | (_shifted(blocks[:, 2:4], 1, 2, 4) << 4)
        return scales.astype(np.int8) - np.int8(32)

    return {
        "data": lambda: _IQ4_NUMBERS[_shifted(blocks[:, 8:], 16, 4, 2)],
        "scale_code": codes,
        "scale_factor": lambda: _half(blocks, 0),
    }


def _row(
    name: FormatName,
    group: int,
    scale: ir.DataType,
    read: Callable[[Array], Tables],
    *,
    minima: bool = False,
) -> Quantised:
    return Quantised(WeightFormat(name, group, minima=minima), scale, read)


def _k_row(name: FormatName, group: int, read: Callable[[Array], Tables], *, minima: bool = False) -> Quantised:
    """Describe a K format, or IQ4_XS. Codes of scales are signed where there are no minima."""
    codes = ir.DataType.UINT8 if minima else ir.DataType.INT8
    form = WeightFormat(name, group, minima=minima, super_group=_SUPER)
    return Quantised(form, ir.DataType.FLOAT16, read, codes)


QUANTISED: dict[str, Quantised] = {
    "Q4_0": _row("int4", 32, ir.DataType.FLOAT16, _q4_0),
    "Q4_1": _row("int4", 32, ir.DataType.FLOAT16, _q4_1, minima=True),
    "Q5_0": _row("int5", 32, ir.DataType.FLOAT16, _q5_0),
    "Q5_1": _row("int5", 32, ir.DataType.FLOAT16, _q5_1, minima=True),
    "Q8_0": _row("int8", 32, ir.DataType.FLOAT16, _q8_0),
    "MXFP4": _row("mxfp4", 32, ir.DataType.FLOAT8E8M0, _mxfp4),
    "NVFP4": Quantised(WeightFormat("nvfp4", NV_GROUP), ir.DataType.FLOAT, _nvfp4, ir.DataType.FLOAT8E4M3FN),
    "Q2_K": _k_row("int2", 16, _q2_k, minima=True),
    "Q3_K": _k_row("int3", 16, _q3_k),
    "Q4_K": _k_row("int4", 32, _q4_k, minima=True),
    "Q5_K": _k_row("int5", 32, _q5_k, minima=True),
    "Q6_K": _k_row("int6", 16, _q6_k),
    "IQ4_NL": _row("iq4", 32, ir.DataType.FLOAT16, _iq4_nl),
    "IQ4_XS": _k_row("iq4", 32, _iq4_xs),
}
