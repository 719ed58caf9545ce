"""Weights of a layer of experts as ``com.microsoft.QMoE`` takes them: unsigned numbers of 2, 4 or 8 bits in bytes.

Rows of fc1 [E,2f,d] and fc2 [E,d,f] are packed along their inputs, the first number in the lowest bits. A scale, and
optionally a zero point, is that of a row, [E,out], or of a block of it, [E,out,blocks]. Without zero points zero is the
middle of the range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.weights.encode import Table
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stacks import ExpertStack
from moec.passes.export.moe_operator import Layer, in_turns, parts_of
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]
LEAST_BLOCK = 16
"""The smallest block of the kernel; all of them are powers of two."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """The one way in which all weights of a layer are packed. ``block``: inputs that share a scale; 0 for all of a
    row. ``hidden``: hidden units that are stored."""

    bits: int
    block: int
    zero_points: bool
    scale_type: ir.DataType
    hidden: int


def packing_of(weights: ExpertWeights) -> Packing | str:
    """Find the packing of a layer, in which no number changes; or the reason why there is none."""
    runs = [run for part in weights.parts for run in weights.operand(part).runs]
    forms = {run.format for run in runs}
    if unfit := [form for form in forms if not form.elements.whole or form.minima]:
        return f"its weights are stored as {', '.join(sorted(map(str, unfit)))}, which QMoE does not have"
    widths = {bits_of(form) for form in forms}
    if 8 in widths and len(widths) > 1:
        return f"its weights are stored as {', '.join(sorted(map(str, forms)))}, and QMoE has one number of bits"
    bits = max(widths)
    block = _block(weights)
    if block is None:
        return f"its groups are no multiples of {LEAST_BLOCK} inputs, or do not divide {weights.inner} inputs and " + (
            f"{weights.hidden} hidden units"
        )
    hidden = max(weights.sizes)
    hidden = hidden if hidden % (block or 8 // bits) == 0 else weights.hidden
    if weights.inner * bits % 8 or hidden * bits % 8:
        return f"its rows of {weights.inner} inputs and {hidden} hidden units of {bits} bits do not fill bytes"
    narrow = all(run.scale is not None and run.scale.dtype == ir.DataType.FLOAT16 for run in runs)
    scale_type = ir.DataType.FLOAT16 if narrow else ir.DataType.FLOAT
    return Packing(bits, block, any(form.zero_points for form in forms), scale_type, hidden)


def bits_of(form: WeightFormat) -> int:
    """The bits in which the numbers of a format are packed."""
    width = form.elements.signed.bitwidth
    return width if width in (2, 4) else 8


def width_note(form: WeightFormat, bits: int) -> str | None:
    """Say that numbers of a format are stored in more ``bits`` than they have; None where they are not."""
    width = form.elements.width or form.elements.signed.bitwidth
    return f"its weights of {width} bits are stored in {bits}" if width < bits else None


def _block(weights: ExpertWeights) -> int | None:
    """The largest block by which every group of every weight can be told; 0 where all rows have one scale; None where
    the kernel has no such block."""
    groups, lengths = set[int](), set[int]()
    for part in weights.parts:
        length = weights.hidden if part == "down" else weights.inner
        lengths.add(length)
        groups |= {form.group for form in weights.operand(part).formats if form.group and form.group < length}
    if not groups:
        return 0
    block = math.gcd(*groups, *lengths)
    block &= -block  # the largest power of two in it
    return block if block >= LEAST_BLOCK else None


def packed_layer(write: Writer, weights: ExpertWeights, packing: Packing, layer: Layer) -> dict[str, ir.Value | None]:
    """Write the constants of a layer: ``data``, ``scales`` and ``zeros``, which is None without zero points. One expert
    at a time is packed, when the file is written."""
    rows = _PackedRows(weights, packing, layer)
    count, blocks = weights.experts, rows.blocks
    by_row = packing.block == 0

    def stack(label: str, dtype: ir.DataType, shape: tuple[int, ...], load: Callable[[int], Array]) -> ir.Value:
        return write.weight(ExpertStack(None, dtype, (count, *shape), load), f"{layer}.{label}")

    length = rows.length * packing.bits // 8
    data = stack("data", ir.DataType.UINT8, (rows.out, length), lambda expert: pack(rows.data(expert), packing.bits))
    shape = (rows.out,) if by_row else (rows.out, blocks)
    scales = stack("scales", packing.scale_type, shape, lambda expert: rows.scales(expert).reshape(shape))
    zeros = None
    if packing.zero_points:
        size = -(-shape[-1] * packing.bits // 8)
        zeros = stack(
            "zeros", ir.DataType.UINT8, (*shape[:-1], size),
            lambda expert: pack(rows.zeros(expert).reshape(shape), packing.bits),
        )  # fmt: skip
    return {"data": data, "scales": scales, "zeros": zeros}


def pack(numbers: Array, bits: int) -> Array:
    """Numbers in bytes along the last axis, filled up with zeros. The opposite of
    :func:`moec.ir.contrib_quantized.unpack`."""
    each = 8 // bits
    padding = [(0, 0)] * (numbers.ndim - 1) + [(0, -numbers.shape[-1] % each)]
    parts = np.pad(numbers.astype(np.uint8), padding).reshape(*numbers.shape[:-1], -1, each)
    shifts = np.arange(each, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(parts << shifts, axis=-1).astype(np.uint8)


class _PackedRows:
    """Rows [out,...] of a layer, unsigned and unpacked."""

    def __init__(self, weights: ExpertWeights, packing: Packing, layer: Layer) -> None:
        self._weights, self._packing, self._parts = weights, packing, parts_of(weights, layer)
        self._is_down = layer == "fc2"
        self.length = packing.hidden if self._is_down else weights.inner
        self.out = weights.width if self._is_down else packing.hidden * len(self._parts)
        self.blocks = self.length // packing.block if packing.block else 1

    def data(self, expert: int) -> Array:
        return self._table(expert, "data")

    def scales(self, expert: int) -> Array:
        return self._table(expert, "scale").astype(self._packing.scale_type.numpy())

    def zeros(self, expert: int) -> Array:
        return self._table(expert, "zero_point")

    def _table(self, expert: int, table: Table) -> Array:
        return np.ascontiguousarray(in_turns([self._of_part(part, expert, table) for part in self._parts]))

    def _of_part(self, part: Part, expert: int, table: Table) -> Array:
        """A table [out,in] or [out,blocks] of one part."""
        form, matrix = self._weights.operand(part).run_of(expert).format, self._weights.own(part, expert)
        middle = 2 ** (self._packing.bits - 1)
        outputs = slice(None) if self._is_down else slice(self._packing.hidden)
        if table == "data":
            numbers = matrix.data.astype(np.int16) + (0 if form.zero_points else middle)
            return numbers[: self.length, outputs].T
        numbers = matrix.read(table)
        if numbers is None:
            numbers = np.full((1, self._weights.width if self._is_down else self._weights.hidden), middle, np.uint8)
        times = form.group // self._packing.block if len(numbers) > 1 else self.blocks
        repeated = np.repeat(numbers.astype(np.float32), times, axis=0)
        return repeated[: self.blocks, outputs].T
