"""The matrix of one expert, picked and decoded while the model runs, in ONNX operators that onnxruntime's CPU has.

Weights of all experts of a run are stored inputs first, in the bits that they had: onnxruntime picks (Gather) no
elements of fewer than 8 bits, so that these lie in bytes, two to a byte: the first half of an expert's numbers in the
lower bits, the second in the upper ones, so that each half is copied as a whole. Integers of fewer than 4 bits take 4.
Small floats are entries of a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.ir.weights.encode import Table
from moec.ir.weights.lazy import LazyMatrix
from moec.ir.weights.stacks import ExpertStack
from moec.ir.weights.stored import WeightRun
from moec.passes.export.stored_table import Change, StoredTable
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]
Read = Callable[[int], LazyMatrix]
_CODES: dict[ir.DataType, Any] = {
    ir.DataType.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
    ir.DataType.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
}
"""Types of elements that become entries of a table."""


class StoredExperts:
    """The matrices [K,N], inputs first, of ``count`` experts of a run, as constants of the main graph.

    ``read`` returns the tables of an expert, counted from 0. ``dtype``: the type to decode to.
    """

    def __init__(
        self, write: Writer, label: str, run: WeightRun, shape: tuple[int, int], read: Read, count: int,
        dtype: ir.DataType,
    ) -> None:  # fmt: skip
        form = run.format
        self._form, self._shape, self._read, self._count, self._dtype = form, shape, read, count, dtype
        self._write, self._label = write, label
        self._data = self._bytes("data", shape) if form.quantized else self._floats()
        groups = (-(-shape[0] // (form.group or shape[0])), shape[1])
        self._scale = self._table(run, "scale", groups) if form.quantized else None
        self._zeros = self._bytes("zero_point", groups) if form.quantized and self._has_zeros else None
        self._minimum = self._table(run, "minimum", groups) if form.minima else None
        self._groups = groups

    @property
    def _codes(self) -> Any:
        return _CODES.get(self._form.data_type)

    @property
    def _packed(self) -> bool:
        return self._form.data_type.bitwidth < 8

    @property
    def _has_zeros(self) -> bool:
        """Whether numbers are less something: a zero point, or the middle of the range where signed numbers of fewer
        than 8 bits lie in bytes."""
        return self._form.zero_points or (self._packed and not self._codes and not self._form.minima)

    def _stack(self, label: str, dtype: ir.DataType, shape: tuple[int, ...], load: Callable[[int], Array]) -> ir.Value:
        stack = ExpertStack(None, dtype, (self._count, *shape), load)
        return self._write.weight(stack, f"{self._label}.{label}")

    def _floats(self) -> ir.Value:
        return self._stack("data", self._form.data_type, self._shape, lambda expert: self._read(expert).data)

    def _table(self, run: WeightRun, name: Literal["scale", "minimum"], shape: tuple[int, int]) -> StoredTable:
        levels = run.levels(name)

        def store(table: Table, dtype: ir.DataType, change: Change) -> ir.Value:
            is_factor = levels is not None and table.endswith("_factor")
            own = (-(-shape[0] // levels.span), shape[1]) if levels is not None and is_factor else shape

            def load(expert: int) -> Array:
                numbers = self._read(expert).read(table)
                assert numbers is not None
                return np.broadcast_to(change(numbers), own).astype(dtype.numpy())

            return self._stack(table, dtype, own, load)

        return StoredTable(self._write, run, name, store, shape[0], 0)

    def _bytes(self, table: Literal["data", "zero_point"], shape: tuple[int, int]) -> ir.Value:
        """Elements as bytes: signed ones of 8 bits as they are, all others unsigned."""
        form, size = self._form, math.prod(shape)
        if not self._packed and not self._codes:
            return self._stack(table, form.data_type, shape, lambda expert: self._numbers(expert, table, shape))
        length = -(-size // 2) if self._packed else size

        def load(expert: int) -> Array:
            numbers = self._unsigned(expert, table, shape)
            return _pairs(numbers, length) if self._packed else numbers.reshape(-1)

        return self._stack(table, ir.DataType.UINT8, (length,), load)

    def _numbers(self, expert: int, table: Table, shape: tuple[int, int]) -> Array:
        numbers = self._read(expert).read(table)
        assert numbers is not None
        return np.broadcast_to(numbers, shape)

    def _unsigned(self, expert: int, table: Literal["data", "zero_point"], shape: tuple[int, int]) -> Array:
        middle = 0 if self._form.zero_points or self._form.minima else 8
        if table == "zero_point" and middle:
            return np.full(shape, middle, np.uint8)
        numbers = self._numbers(expert, table, shape)
        if not self._codes:
            return (numbers.astype(np.int16) + middle).astype(np.uint8)
        return np.ascontiguousarray(numbers.astype(self._codes)).view(np.uint8)

    def matrix(self, body: Writer, expert: ir.Value) -> ir.Value:
        """The matrix [K,N] of the expert with this number, counted from the first of the run."""

        def pick(stored: ir.Value) -> ir.Value:
            return body.add("Gather", stored, expert, axis=0, label="picked")

        picked = pick(self._data)
        if not self._form.quantized:
            same = self._form.data_type == self._dtype
            return picked if same else body.add("Cast", picked, to=self._dtype, label="weight")
        assert self._scale is not None
        numbers = self._unpacked(body, picked, self._shape)
        scale = self._scale.decoded(body, pick)
        block = min(self._form.group or self._shape[0], self._shape[0])
        if self._codes:
            table = np.arange(16 if self._packed else 256, dtype=np.uint8).view(self._codes).astype(np.float32)
            entries = body.add("Cast", numbers, to=ir.DataType.INT32)
            numbers = body.add("Gather", self._write.constant(table, "codes"), entries, label="numbers")
            weight = body.add("Mul", numbers, self._spread(body, scale, block), label="weight")
        else:
            operands = [numbers, scale]
            if self._zeros is not None:
                operands.append(self._unpacked(body, pick(self._zeros), self._groups))
            attributes = {"axis": 0, "block_size": block, "output_dtype": ir.DataType.FLOAT}
            weight = body.add("DequantizeLinear", *operands, label="weight", **attributes)
        if self._minimum is not None:
            minimum = self._spread(body, self._minimum.decoded(body, pick), block)
            weight = body.add("Sub", weight, minimum, label="weight")
        return weight if self._dtype == ir.DataType.FLOAT else body.add("Cast", weight, to=self._dtype, label="weight")

    def _spread(self, body: Writer, table: ir.Value, block: int) -> ir.Value:
        """A number of each group for each of its inputs."""
        groups = self._write.constant(np.arange(self._shape[0], dtype=np.int64) // block, "groups")
        return body.add("Gather", table, groups, axis=0)

    def _unpacked(self, body: Writer, stored: ir.Value, shape: tuple[int, int]) -> ir.Value:
        """Numbers, one to a byte, from what is picked."""
        if self._packed:
            low = body.add("BitwiseAnd", stored, self._write.constant(np.array(15, np.uint8), "low"))
            high = body.add("BitShift", stored, self._write.constant(np.array(4, np.uint8), "high"), direction="RIGHT")
            stored = body.add("Concat", low, high, axis=0, label="unpacked")
            if math.prod(shape) % 2:
                ends = (self._write.numbers(0), self._write.numbers(math.prod(shape)))
                stored = body.add("Slice", stored, *ends, label="unpacked")
        elif not self._codes:
            return stored
        return body.add("Reshape", stored, self._write.numbers(*shape), label="numbers")


def _pairs(numbers: Array, length: int) -> Array:
    """Numbers of 4 bits, two to a byte."""
    flat = np.zeros(2 * length, np.uint8)
    flat[: numbers.size] = numbers.reshape(-1)
    return flat[:length] | flat[length:] << 4
