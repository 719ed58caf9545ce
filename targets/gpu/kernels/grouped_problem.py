"""Grouped matrix product: every block of rows times the weights of its own expert.

``out[r] = epilogue(rows[r] @ matrix[e].T + bias[e])`` for the rows r of every block of expert e. :mod:`.dispatch`
determines which pairs (token, slot) the rows of a block are. Rows are read from one of two places, and results are
written to one of two:

===========  =============================================  ==========================================================
             rows                                           results
===========  =============================================  ==========================================================
pairs        ``gathered``: the token's row, ``pair // k``   ``scattered``: the pair's own row, T * k of them
blocks       row r of the array is place r of the blocks    place r of the blocks
===========  =============================================  ==========================================================

Places that are padding are never written. If they are read, the values do not affect results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

from moec.common.dtypes import dtype_of
from moec.targets.gpu.kernels.block_scaled_rows import BlockScaling
from moec.targets.gpu.kernels.fp8_rows import FP8, row_bytes
from moec.targets.gpu.kernels.launch import ATTRIBUTES
from moec.targets.gpu.kernels.packed_format import FACTOR_BYTES, PackedFormat
from moec.targets.tvm.kernels.kernel import why_not_stored

GATE_GROUP = 8
"""Rows of gate and up alternate in groups of this size in a gated matrix: 8 rows of the gate, then the corresponding 8
of up. Both sums of a hidden unit are then in the registers of one thread, even with tensor cores."""


@dataclasses.dataclass(frozen=True)
class GroupedProblem:
    """Static facts of a grouped product.

    - ``experts``: number of matrices. ``first_expert``: the lowest id of these experts; None if there are no others,
      and ids start at 0. The pairs of other experts are left to other kernels.
    - ``inner``: inputs of a row. ``width``: outputs of a row, which are rows of the matrix, or hidden units if a gate
      row and an up row make one output (``gated``).
    - ``gathered``, ``scattered``: where rows and results are, see the module.
    - ``weighted``: whether a row is first multiplied by its pair's routing weight.
    - ``dtype``: of the rows; sums are float32. Rows in fp8 have scales (:mod:`.fp8_rows`) and are multiplied, without
      conversion to floats, with a matrix in fp8.
    - ``scaling``: how rows with block scales are stored, which tensor cores multiply with the matrix as it is stored;
      None for other rows. Their ``dtype`` is uint8.
    - ``stored``: format of a quantised matrix; None for a matrix with elements of ``matrix_dtype``.
    - ``shares_scales``: whether 128 neighbouring outputs have the same scales in a matrix in fp8 (blocks of 128 x 128).
      Tensor cores then need only one of them; the tables stay the same.
    - ``tf32``: whether rows are rounded to tf32 before they are multiplied; the matrix is rounded already.
    - ``biased``: whether there is a bias; otherwise the operand has one element, which no kernel reads.
    """

    experts: int
    inner: int
    width: int
    block_rows: int = 64
    gated: bool = False
    gathered: bool = False
    scattered: bool = False
    weighted: bool = False
    dtype: str = "float32"
    matrix_dtype: str = "float32"
    out_dtype: str = "float32"
    routing_dtype: str = "float32"
    stored: PackedFormat | None = None
    scaling: BlockScaling | None = None
    shares_scales: bool = False
    tf32: bool = False
    first_expert: int | None = None
    biased: bool = True

    @property
    def in_fp8(self) -> bool:
        """Whether rows and matrix are multiplied as 8-bit floats, and the sum of each group by its scales."""
        return self.dtype == FP8

    @property
    def decodes(self) -> bool:
        """Whether numbers of the matrix are decoded to floats before they are multiplied."""
        return self.stored is not None and not self.is_packed

    @property
    def is_packed(self) -> bool:
        """Whether rows are codes with scales."""
        return self.in_fp8 or self.scaling is not None

    @property
    def arithmetic(self) -> str:
        """The type of the factors that are multiplied."""
        if self.scaling is not None:
            return self.scaling.arithmetic
        return "tf32" if self.tf32 else self.dtype

    @property
    def row_type(self) -> tuple[int, str]:
        """The number of elements of a row in memory, and their type."""
        if self.scaling is not None:
            return self.scaling.row_bytes(self.inner), "uint8"
        return (row_bytes(self.inner), "uint8") if self.in_fp8 else (self.inner, self.dtype)

    @property
    def columns(self) -> int:
        """Columns of the product before the activation: rows of one expert's matrix, with gate and up in groups."""
        return 2 * -(-self.width // GATE_GROUP) * GATE_GROUP if self.gated else self.width

    @property
    def matrix_types(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and element type of the matrices, their scales and their zero points; a missing table has shape
        (1, 1, 1)."""
        rows, stored, none = (self.experts, self.columns), self.stored, (1, 1, 1)
        if stored is None:
            return [((*rows, self.inner), self.matrix_dtype), (none, "float32"), (none, "uint8")]
        groups = (*rows, stored.groups(self.inner))
        scales = (self.experts, groups[2], self.columns) if self.in_fp8 else (*rows, stored.scale_row(self.inner))
        tables = [(scales, stored.scale_storage), (groups if stored.zero_points else none, "uint8")]
        return [((*rows, stored.row_bytes(self.inner)), "uint8"), *tables]

    @property
    def columns_per_output(self) -> int:
        return 2 if self.gated else 1

    @property
    def bias_shape(self) -> tuple[int, int]:
        return (self.experts, self.columns) if self.biased else (1, 1)

    def facts(self) -> dict[str, Any]:
        """The attributes that the artifact records."""
        rows = dict.fromkeys((1, self.block_rows))
        text = ", ".join(f"{self.intensity(count):.1f} with {count} row{'s' if count > 1 else ''}" for count in rows)
        return {**dataclasses.asdict(self), "arithmetic_intensity": f"{text} (FLOP per byte of memory)"}

    def intensity(self, rows: int) -> float:
        """Operations per byte of memory for ``rows`` rows with one matrix, if rows, matrix and results move once."""
        elements, dtype = self.row_type
        bytes_of_row = elements * dtype_of(dtype).itemsize + self.width * dtype_of(self.out_dtype).itemsize
        return 2 * rows * self._weights / (rows * bytes_of_row + self.matrix_bytes)

    @property
    def matrix_bytes(self) -> float:
        """Bytes of one expert's matrix as it is stored."""
        stored = self.stored
        bits = 8 * dtype_of(self.matrix_dtype).itemsize if stored is None else stored.bits_per_weight(self.inner)
        return self._weights * bits / 8

    @property
    def _weights(self) -> int:
        return self.inner * self.width * (2 if self.gated else 1)

    def number(self, expert: Any) -> Any:
        """The index of an expert's matrix; outside [0, ``experts``) for an expert that has no matrix here."""
        return expert - self.first_expert if self.first_expert else expert

    def why_not_stored(self) -> str | None:
        """The reason why kernels cannot load or store one of these types, or None."""
        rows = () if self.is_packed else (self.dtype,)
        reason = why_not_stored(*rows, self.matrix_dtype, self.out_dtype, self.routing_dtype)
        return self.stored.why_not() if reason is None and self.stored is not None else reason


_TABLES = ("matrix", "scales", "zero_points")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The experts' matrices in a kernel. ``scales`` and ``zero_points`` [E, columns, groups]: the tables of a quantised
    one. ``by_group``: scales are [E, groups, columns] instead, for lanes that read neighbouring columns of a group."""

    stored: PackedFormat | None
    data: Any
    scales: Any = None
    zero_points: Any = None
    by_group: bool = False

    @property
    def word_shape(self) -> tuple[int, ...]:
        """Shape of the data in 32-bit words."""
        *rows, row_bytes = (int(size) for size in self.data.shape)
        return (*rows, row_bytes // 4)

    def group(self, expert: Any, column: Any, k: Any) -> list[Any]:
        """The indices of the zero point of input ``k``, and of its scale unless ``by_group``."""
        assert self.stored is not None
        return [T.cast(expert, "int64"), column, k // self.stored.group if self.stored.group else 0]

    def scale(self, expert: Any, column: Any, k: Any) -> Any:
        """The scale of input ``k``, float32."""
        assert self.stored is not None
        number, line, group = self.group(expert, column, k)
        if self.stored.has_factors:
            code = self.scales[number, line, FACTOR_BYTES + group]
            return self.stored.scale_value(code) * self.factors[number, line, 0]
        place = (number, group, line) if self.by_group else (number, line, group)
        return self.stored.scale_value(self.scales[place])

    @property
    def factors(self) -> Any:
        """The rows of scales as floats, of which the first is the factor of the column."""
        experts, columns, row = (int(size) for size in self.scales.shape)
        return T.decl_buffer((experts, columns, row // FACTOR_BYTES), "float32", data=self.scales.data)

    def zero(self, expert: Any, column: Any, k: Any) -> Any:
        """The zero point of input ``k``, int32."""
        assert self.stored is not None
        return self.stored.zero(self.zero_points, self.group(expert, column, k))

    def code(self, expert: Any, column: Any, k: Any) -> Any:
        """The stored bits of input ``k``, int32."""
        assert self.stored is not None
        return self.stored.code(lambda byte: self.data[T.cast(expert, "int64"), column, byte], k)


def match_matrix(problem: GroupedProblem, matrix: Any, scales: Any, zero_points: Any) -> Matrix:
    """Bind the matrices of a kernel to buffers, given the handles of its parameters."""
    handles = (matrix, scales, zero_points)
    matrix, scales, zero_points = map(_matched, _TABLES, handles, problem.matrix_types)
    return Matrix(problem.stored, matrix, scales, zero_points, problem.in_fp8)


def _matched(name: str, handle: Any, kind: tuple[tuple[int, ...], str]) -> Any:
    buffer = T.match_buffer(handle, *kind)
    IRBuilder.name(name, buffer)
    return buffer


@T.inline
def load_number(matrix, expert, column, k, target, position):
    """Load one number of the matrix, as float32, into ``target[position]``."""
    if matrix.stored is None:
        target[position] = T.cast(matrix.data[T.cast(expert, "int64"), column, k], "float32")
    else:
        code: T.let = matrix.code(expert, column, k)
        scale: T.let = matrix.scale(expert, column, k)
        target[position] = matrix.stored.number(code, matrix.zero(expert, column, k)) * scale


@dataclasses.dataclass(frozen=True)
class Operands:
    """The tensors of a grouped product; see :func:`grouped_kernel`."""

    problem: GroupedProblem
    rows: Any
    matrix: Matrix
    bias: Any
    weights: Any
    sorted_pairs: Any
    block_experts: Any
    block_count: Any
    out: Any
    slots: Any
    blocks: Any

    @property
    def used_blocks(self) -> Any:
        """The number of blocks of rows in use, known on the device."""
        return self.block_count[0]

    @property
    def rows_follow_blocks(self) -> bool:
        """Whether the rows of a block are consecutive in ``rows``, from :meth:`first_row` on."""
        return not self.problem.gathered

    def first_row(self, block: Any) -> Any:
        return block * self.problem.block_rows

    @property
    def divides_inputs(self) -> bool:
        """Whether a block multiplies only a part of the k-tiles (:mod:`.gemm_parts`)."""
        return False

    def is_used(self, block: Any) -> Any:
        """Whether the block of rows exists and its expert has a matrix here. The grid is sized by an upper bound."""
        exists = block < self.used_blocks
        if self.problem.first_expert is None:
            return exists
        return T.And(exists, T.And(self.expert(block) >= 0, self.expert(block) < self.problem.experts))

    def expert(self, block: Any) -> Any:
        """The index of the matrix that the rows of a block are multiplied with."""
        return self.problem.number(self.block_experts[block])

    def pair(self, block: Any, row: Any) -> Any:
        """The pair at a row of a block; negative for padding."""
        return self.sorted_pairs[block * self.problem.block_rows + row]

    def source(self, pair: Any, block: Any, row: Any) -> Any:
        """The row of ``rows`` for that pair, int32. Indices of elements need 64 bits, so callers cast it."""
        return T.truncdiv(pair, self.slots) if self.problem.gathered else block * self.problem.block_rows + row

    def destination(self, pair: Any, block: Any, row: Any) -> Any:
        """The row of ``out`` for that pair, int64."""
        place = pair if self.problem.scattered else block * self.problem.block_rows + row
        return T.cast(place, "int64")

    def factor(self, pair: Any) -> Any:
        """The factor of a pair's sums: its routing weight if rows are weighted, since that factor is linear; else 1."""
        if not self.problem.weighted:
            return T.float32(1)
        return T.cast(self.weights[T.truncdiv(pair, self.slots), T.truncmod(pair, self.slots)], "float32")

    def finished(self, total: Any, factor: Any, expert: Any, column: Any) -> Any:
        """A sum with factor and bias, the argument of the epilogue."""
        product = total * factor if self.problem.weighted else total
        return product + self.bias[expert, column] if self.problem.biased else product


KernelForm = Callable[[GroupedProblem, Any], tirx.PrimFunc]
"""A function like :func:`grouped_kernel`, from a problem and a macro for its code to a kernel; the kernel may have
other parameters."""


def grouped_kernel(problem: GroupedProblem, body: Any) -> tirx.PrimFunc:
    """The kernel ``(rows[R, inner], matrix[E, columns, inner], bias[E, columns], weights[T, k], sorted_pairs[P],
    block_experts[B], block_count[1], out[Q, width])``. The macro ``body(operands)`` emits its code, from
    ``T.device_entry()`` on.

    R is T if rows are gathered, else P. Q is T * k if results are scattered, else P. Bias is float32. Weights are read
    only if the problem is weighted. All sizes except E, columns, inner and width are dynamic. A quantised matrix takes
    the three parameters ``matrix[E, columns, row bytes], scales[E, columns, row], zero_points[E, columns, groups]``,
    the last being [1, 1, 1] if there is no such table; see :mod:`.packed_format`.
    """
    width, (row_width, row_dtype) = problem.width, problem.row_type

    @T.prim_func
    def kernel(
        rows_handle: T.handle,
        matrix_handle: T.handle,
        scales_handle: T.handle,
        zero_points_handle: T.handle,
        bias_handle: T.handle,
        weights_handle: T.handle,
        pairs_handle: T.handle,
        blocks_handle: T.handle,
        count_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        R = T.int32()
        tokens = T.int32()
        slots = T.int32()
        P = T.int32()
        B = T.int32()
        Q = T.int32()
        rows = T.match_buffer(rows_handle, (R, row_width), row_dtype)
        matrix = T.meta_var(match_matrix(problem, matrix_handle, scales_handle, zero_points_handle))
        bias = T.match_buffer(bias_handle, problem.bias_shape, "float32")
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.routing_dtype)
        pairs = T.match_buffer(pairs_handle, (P,), "int32")
        blocks = T.match_buffer(blocks_handle, (B,), "int32")
        count = T.match_buffer(count_handle, (1,), "int32")
        out = T.match_buffer(out_handle, (Q, width), problem.out_dtype)
        body(Operands(problem, rows, matrix, bias, weights, pairs, blocks, count, out, slots, B))

    return with_tables_needed(kernel, problem)


def with_tables_needed(kernel: tirx.PrimFunc, problem: GroupedProblem) -> tirx.PrimFunc:
    """The kernel without its parameters 2 and 3, scales and zero points, if the matrix is not quantised."""
    if problem.stored is not None:
        return kernel
    kept = [*kernel.params[:2], *kernel.params[4:]]
    return tirx.PrimFunc(kept, kernel.body, kernel.ret_type, kernel.attrs)


def interleave(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Gate and up rows [..., width, inner] (or biases [..., width, 1]) in the order of a gated matrix, with trailing
    zeros: [..., columns, inner]."""
    *batch, width, inner = gate.shape
    groups = -(-width // GATE_GROUP)
    both = np.zeros((*batch, 2, groups * GATE_GROUP, inner), gate.dtype)
    both[..., 0, :width, :], both[..., 1, :width, :] = gate, up
    grouped = both.reshape(*batch, 2, groups, GATE_GROUP, inner)
    return np.ascontiguousarray(np.moveaxis(grouped, -4, -3)).reshape(*batch, 2 * groups * GATE_GROUP, inner)
