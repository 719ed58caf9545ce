"""The weight of a dense product as onnxruntime's MatMulNBits takes it: numbers in bytes, in blocks of a row.

The operator's kernel on CPUs multiplies rows in float32 with numbers of 4 bits fast. For 8 bits it has a fast kernel
only where it may round rows to 8 bits; else it decodes the whole matrix in every run. A number of 8 bits is therefore
written as two halves of 4, each a product of its own: u = 16 h + l.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import LinearSpec
from moec.ir.weights.encode import Table
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stored import StoredWeight
from moec.passes.export.packed_experts import LEAST_BLOCK, bits_of, pack
from moec.passes.export.stored_table import Change, StoredTable
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]
_LARGEST_BLOCK = 256
_ROUNDED_PAIRS = (32, 128)
"""The least and the largest block for which the kernel has a fast product of numbers of 2 bits and rounded rows."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """``bits`` bits of each number, from bit ``shift`` on; they count ``2 ** shift`` times."""

    bits: int
    shift: int = 0

    def of(self, numbers: Any) -> Any:
        return numbers >> self.shift & 2**self.bits - 1


@dataclasses.dataclass(frozen=True)
class PackedMatrix:
    """A weight [N,K] of unsigned numbers of ``bits`` bits, in blocks of ``block`` inputs. ``rounds``: the kernel may
    round rows to 8 bits in these blocks."""

    stored: StoredWeight
    transposed: bool
    bits: int
    block: int
    rounds: bool

    @property
    def form(self) -> WeightFormat:
        return self.stored.runs[0].format

    @property
    def size(self) -> tuple[int, int]:
        """N and K."""
        return self.stored.out_in(self.transposed)

    @property
    def blocks(self) -> int:
        return -(-self.size[1] // self.block)

    @property
    def digits(self) -> list[Digits]:
        """The parts of the numbers that products are made of."""
        return [Digits(4, 4), Digits(4)] if self.bits == 8 and not self.rounds else [Digits(self.bits)]

    def scales(self, write: Writer) -> ir.Value:
        """The scales [N,blocks] in float32."""
        scales = self._table(write, "scale")
        if self._groups == self.blocks:
            return scales
        return write.add("Gather", scales, write.constant(self._group_of_blocks, "groups"), axis=1, label="scales")

    def operands(self, write: Writer, digits: Digits, scales: ir.Value) -> list[ir.Value]:
        """Constants of one product: bytes [N,blocks,bytes], scales [N,blocks] and, where they are not the middle of the
        range, zero points."""
        N, blocks = self.size[0], self.blocks
        shape = (N, blocks, self.block * digits.bits // 8)
        data = _lazy(write, "data", ir.DataType.UINT8, shape, lambda: self._data(digits).reshape(shape))
        if digits.shift:
            scales = write.add(
                "Mul", scales, write.constant(np.array(2**digits.shift, np.float32), "base"), label="scales"
            )
        row = -(-blocks * digits.bits // 8)
        if self.form.zero_points:
            zeros = _lazy(write, "zeros", ir.DataType.UINT8, (N, row), lambda: self._zeros(digits))
            return [data, scales, zeros]
        zero = digits.of(self._zero)
        if zero == 2 ** (digits.bits - 1):
            return [data, scales]
        assert zero == 0
        value = ir.tensor(np.zeros(1, np.uint8))
        return [data, scales, write.add("ConstantOfShape", write.numbers(N, row), label="zeros", value=value)]

    def minima(self, write: Writer) -> ir.Value:
        """The numbers [groups,N] in float32 that are subtracted for each input of a group."""
        return write.add("Transpose", self._table(write, "minimum"), perm=[1, 0], label="minimum")

    @property
    def _groups(self) -> int:
        return -(-self.size[1] // (self.form.group or self.size[1]))

    @property
    def _group_of_blocks(self) -> Array:
        return np.minimum(np.arange(self.blocks) * self.block // (self.form.group or self.size[1]), self._groups - 1)

    @property
    def _zero(self) -> int:
        """The number that means 0 in a format without zero points, if minima are left aside."""
        return 0 if self.form.minima else 2 ** (self.bits - 1)

    @property
    def offset(self) -> int:
        """The number that is added to stored ones, so that none is negative."""
        return 0 if self.form.zero_points or self.form.minima else self._zero

    def _data(self, digits: Digits) -> Array:
        N, K = self.size
        numbers = np.zeros((N, self.blocks * self.block), np.uint8)
        numbers[:, :K] = self._read("data").T.astype(np.int16) + self.offset
        if not self.form.zero_points:
            numbers[:, K:] = self._zero
        return pack(digits.of(numbers), digits.bits)

    def _zeros(self, digits: Digits) -> Array:
        zeros = self._read("zero_point").T[:, self._group_of_blocks]
        return pack(digits.of(zeros.astype(np.uint8)), digits.bits)

    def _table(self, write: Writer, name: Literal["scale", "minimum"]) -> ir.Value:
        """A table [N,groups] in float32. In the file it has the bits that it is stored in; onnxruntime widens it once,
        when it loads the model."""
        N, run, groups = self.size[0], self.stored.runs[0], self._groups
        levels = run.levels(name)

        def store(table: Table, kind: ir.DataType, change: Change) -> ir.Value:
            count = -(-groups // levels.span) if levels is not None and table.endswith("_factor") else groups
            return _lazy(
                write, table, kind, (N, count), lambda: np.broadcast_to(change(self._read(table)), (count, N)).T
            )

        return StoredTable(write, run, name, store, groups, 1).decoded(write)

    def _read(self, name: Table) -> Array:
        """A table, inputs first."""
        array = self.stored.encoded(0, self.transposed).read(name)
        assert array is not None
        return array


def packed_matrix(stored: StoredWeight, spec: LinearSpec) -> PackedMatrix | str | None:
    """The weight of a node; a reason where the operator does not have it, None for one of plain floats."""
    form, (_, K) = stored.runs[0].format, stored.out_in(spec.transposed)
    if not form.quantized:
        return None
    if not form.elements.whole:
        return f"its weight is stored as {form}, which MatMulNBits does not have"
    if form.minima and K % form.group:
        return f"its {K} inputs are no multiple of the {form.group} that share a minimum"
    width = bits_of(form)
    block = _block(form, K, width, spec.activation_group) if spec.arithmetic == "int8" else None
    rounds = block is not None
    if block is None:
        block = _block(form, K, width)
    if block is None:
        return f"its weight is in groups of {form.group} inputs; MatMulNBits has blocks of {LEAST_BLOCK} and more"
    is_fast = width > 2 or (rounds and _ROUNDED_PAIRS[0] <= block <= _ROUNDED_PAIRS[1])
    return PackedMatrix(stored, spec.transposed, width if is_fast else 4, block, rounds)


def _block(form: WeightFormat, length: int, bits: int, rounded: int = 0) -> int | None:
    """The size of blocks in which weights, and groups of ``rounded`` inputs, can be told: of those that fit the one
    with the fewest bytes for a row. None where all are too small."""
    groups = [
        group for group in (form.group if form.group < length else 0, rounded if rounded < length else 0) if group
    ]
    sizes = [1 << power for power in range(4, 9)]
    assert sizes[0] == LEAST_BLOCK and sizes[-1] == _LARGEST_BLOCK
    fitting = [size for size in sizes if math.gcd(*groups) % size == 0]
    return min(fitting, key=lambda block: -(-length // block) * (block * bits // 8 + 4), default=None)


def _lazy(write: Writer, label: str, dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], Array]) -> ir.Value:
    def load() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(make().astype(dtype.numpy())), dtype=dtype)

    return write.weight(ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape)), label)
