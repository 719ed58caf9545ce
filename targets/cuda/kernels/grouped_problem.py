"""Grouped matrix product: every block of rows times the weights of its own expert.

``out[r] = epilogue(rows[r] @ matrix[e].T + bias[e])`` for the rows r of every block of expert e. :mod:`.dispatch` says
which pairs (token, slot) the rows of a block are. Rows come from one of two places and results go to one of two:

===========  =============================================  ==========================================================
             rows                                           results
===========  =============================================  ==========================================================
pairs        ``gathered``: the token's row, ``pair // k``   ``scattered``: the pair's own row, T * k of them
blocks       row r of the array is place r of the blocks    place r of the blocks
===========  =============================================  ==========================================================

Places of blocks that are padding are not written; where they are read, nothing comes of it.
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
from moec.targets.cuda.kernels.fp8_rows import FP8, row_bytes
from moec.targets.cuda.kernels.launch import ATTRIBUTES
from moec.targets.cuda.kernels.packed_format import PackedFormat
from moec.targets.tvm.kernel import why_not_stored

GATE_GROUP = 8
"""Rows of a gated matrix are 8 of the gate, then the 8 of up that belong to them, and so on: both sums of a hidden unit
are then in the registers of one thread, also where tensor cores compute them."""


@dataclasses.dataclass(frozen=True)
class GroupedProblem:
    """Static facts of a grouped product.

    ``inner`` counts the inputs of a row, ``width`` its outputs: rows of the matrix, or hidden units where a gate row
    and an up row make one output (``gated``). ``weighted``: a row is multiplied by its pair's routing weight first.
    ``dtype`` is how rows are stored, sums are float32; rows in fp8 have scales (:mod:`.fp8_rows`), and are multiplied
    with a matrix of such numbers as they are. ``stored`` is the format of a quantised matrix; without one it has
    elements of ``matrix_dtype``. ``experts`` counts the matrices. Theirs are the ids from 0 on, or, where there are
    other experts too, those from ``first_expert`` on: what belongs to the others is left to other kernels.
    ``tf32``: rows are rounded to it before they are multiplied; the matrix has been. Where it is not
    ``biased``, there is a bias of one element that no kernel reads.
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
    tf32: bool = False
    first_expert: int | None = None
    biased: bool = True

    @property
    def in_fp8(self) -> bool:
        """Whether rows and matrix are multiplied as numbers of 8 bits, and sums of a group by the scales."""
        return self.dtype == FP8

    @property
    def decodes(self) -> bool:
        """Whether numbers of the matrix become floats before they are multiplied."""
        return self.stored is not None and not self.in_fp8

    @property
    def row_type(self) -> tuple[int, str]:
        """Elements of a row in memory, and their type."""
        return (row_bytes(self.inner), "uint8") if self.in_fp8 else (self.inner, self.dtype)

    @property
    def columns(self) -> int:
        """Rows of the matrix of one expert: columns of the product, gate and up side by side in groups."""
        return 2 * -(-self.width // GATE_GROUP) * GATE_GROUP if self.gated else self.width

    @property
    def matrix_types(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and element type of the matrices, their scales and their zero points; of one where there is none."""
        rows, stored, none = (self.experts, self.columns), self.stored, (1, 1, 1)
        if stored is None:
            return [((*rows, self.inner), self.matrix_dtype), (none, "float32"), (none, "uint8")]
        groups = (*rows, stored.groups(self.inner))
        scales = (self.experts, groups[2], self.columns) if self.in_fp8 else groups
        tables = [(scales, stored.scale_storage), (groups if stored.zero_points else none, "uint8")]
        return [((*rows, stored.row_bytes(self.inner)), "uint8"), *tables]

    @property
    def bias_shape(self) -> tuple[int, int]:
        return (self.experts, self.columns) if self.biased else (1, 1)

    def facts(self) -> dict[str, Any]:
        """What the artifact says about it."""
        rows = dict.fromkeys((1, self.block_rows))
        said = ", ".join(f"{self.intensity(count):.1f} with {count} row{'s' if count > 1 else ''}" for count in rows)
        return {**dataclasses.asdict(self), "arithmetic_intensity": f"{said} (FLOP per byte of memory)"}

    def intensity(self, rows: int) -> float:
        """Operations per byte of memory of so many rows with one matrix, where each of rows, matrix and results moves
        once."""
        row_bytes = self.inner * dtype_of(self.dtype).itemsize + self.width * dtype_of(self.out_dtype).itemsize
        return 2 * rows * self._weights / (rows * row_bytes + self.matrix_bytes)

    @property
    def matrix_bytes(self) -> float:
        """Bytes of the matrix of one expert, as it is stored."""
        stored = self.stored
        bits = 8 * dtype_of(self.matrix_dtype).itemsize if stored is None else stored.bits_per_weight(self.inner)
        return self._weights * bits / 8

    @property
    def _weights(self) -> int:
        return self.inner * self.width * (2 if self.gated else 1)

    def number(self, expert: Any) -> Any:
        """Which matrix is that of an expert; an id without one gives a number outside [0, ``experts``)."""
        return expert - self.first_expert if self.first_expert else expert

    def why_not_stored(self) -> str | None:
        """The reason why kernels cannot load or store this, or None."""
        rows = () if self.in_fp8 else (self.dtype,)
        reason = why_not_stored(*rows, self.matrix_dtype, self.out_dtype, self.routing_dtype)
        return self.stored.why_not() if reason is None and self.stored is not None else reason


_TABLES = ("matrix", "scales", "zero_points")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The experts' matrices. ``scales`` and ``zero_points`` [E, columns, groups] belong to a quantised one;
    ``by_group``: scales are [E, groups, columns], for lanes that have neighbouring columns of a group."""

    stored: PackedFormat | None
    data: Any
    scales: Any = None
    zero_points: Any = None
    by_group: bool = False

    @property
    def word_shape(self) -> tuple[int, ...]:
        """Shape of the data in words of 32 bits."""
        *rows, row_bytes = (int(size) for size in self.data.shape)
        return (*rows, row_bytes // 4)

    def group(self, expert: Any, column: Any, k: Any) -> list[Any]:
        """Where scale and zero point of input ``k`` are."""
        assert self.stored is not None
        return [T.cast(expert, "int64"), column, k // self.stored.group if self.stored.group else 0]

    def scale(self, expert: Any, column: Any, k: Any) -> Any:
        """The scale of input ``k``, float32."""
        assert self.stored is not None
        number, line, group = self.group(expert, column, k)
        place = (number, group, line) if self.by_group else (number, line, group)
        return self.stored.scale_value(self.scales[place])

    def zero(self, expert: Any, column: Any, k: Any) -> Any:
        """The zero point of input ``k``, int32."""
        assert self.stored is not None
        return self.stored.zero(self.zero_points, self.group(expert, column, k))

    def code(self, expert: Any, column: Any, k: Any) -> Any:
        """The stored bits of input ``k``, int32."""
        assert self.stored is not None
        return self.stored.code(lambda byte: self.data[T.cast(expert, "int64"), column, byte], k)


def match_matrix(problem: GroupedProblem, matrix: Any, scales: Any, zero_points: Any) -> Matrix:
    """The matrices of a kernel with these parameters (handles), whose buffers are made here."""
    handles = (matrix, scales, zero_points)
    matrix, scales, zero_points = map(_matched, _TABLES, handles, problem.matrix_types)
    return Matrix(problem.stored, matrix, scales, zero_points, problem.in_fp8)


def _matched(name: str, handle: Any, kind: tuple[tuple[int, ...], str]) -> Any:
    buffer = T.match_buffer(handle, *kind)
    IRBuilder.name(name, buffer)
    return buffer


@T.inline
def load_number(matrix, expert, column, k, target, position):
    """``target[position]`` becomes one number of the matrix, float32."""
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
        """How many blocks of rows there are."""
        return self.block_count[0]

    @property
    def rows_follow_blocks(self) -> bool:
        """Whether the rows of a block lie one behind the other in ``rows``, from :meth:`first_row` on."""
        return not self.problem.gathered

    def first_row(self, block: Any) -> Any:
        return block * self.problem.block_rows

    @property
    def divides_inputs(self) -> bool:
        """Whether a block multiplies a part of the k-tiles of inputs (:mod:`.gemm_parts`)."""
        return False

    def is_used(self, block: Any) -> Any:
        """Whether there is such a block of rows, and its matrix; the grid comes from an upper bound."""
        exists = block < self.used_blocks
        if self.problem.first_expert is None:
            return exists
        return T.And(exists, T.And(self.expert(block) >= 0, self.expert(block) < self.problem.experts))

    def expert(self, block: Any) -> Any:
        """Which matrix the rows of a block are multiplied with."""
        return self.problem.number(self.block_experts[block])

    def pair(self, block: Any, row: Any) -> Any:
        """The pair at a row of a block; negative for padding."""
        return self.sorted_pairs[block * self.problem.block_rows + row]

    def source(self, pair: Any, block: Any, row: Any) -> Any:
        """The row of ``rows`` for that pair; an index of an element needs 64 bits."""
        return T.truncdiv(pair, self.slots) if self.problem.gathered else block * self.problem.block_rows + row

    def destination(self, pair: Any, block: Any, row: Any) -> Any:
        """The row of ``out`` for that pair, int64."""
        place = pair if self.problem.scattered else block * self.problem.block_rows + row
        return T.cast(place, "int64")

    def factor(self, pair: Any) -> Any:
        """What the sums of a pair are multiplied by: a row times its weight has sums times that weight."""
        if not self.problem.weighted:
            return T.float32(1)
        return T.cast(self.weights[T.truncdiv(pair, self.slots), T.truncmod(pair, self.slots)], "float32")

    def finished(self, total: Any, factor: Any, expert: Any, column: Any) -> Any:
        """A sum with factor and bias, as it goes into the epilogue."""
        product = total * factor if self.problem.weighted else total
        return product + self.bias[expert, column] if self.problem.biased else product


KernelForm = Callable[[GroupedProblem, Any], tirx.PrimFunc]
"""A function like :func:`grouped_kernel`, which may have other parameters: it makes a kernel of a problem and a macro
for its code."""


def grouped_kernel(problem: GroupedProblem, body: Any) -> tirx.PrimFunc:
    """``(rows[R, inner], matrix[E, columns, inner], bias[E, columns], weights[T, k], sorted_pairs[P],
    block_experts[B], block_count[1], out[Q, width])``, whose code, from ``T.device_entry()`` on, the macro
    ``body(operands)`` emits.

    R is T where rows are gathered and P where not, Q is T * k where results are scattered and P where not. Bias is
    float32; the weights are read only where the problem is weighted. All sizes but E, inner and width are dynamic.
    A quantised matrix is ``matrix[E, columns, row bytes], scales[E, columns, groups], zero_points[E, columns, groups]``
    in this place, or ``zero_points[1, 1, 1]`` where there is no table; see :mod:`.packed_format`.
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
    """A kernel whose matrix, scales and zero points are its parameters 1, 2 and 3: without the last two where the
    matrix is not quantised."""
    if problem.stored is not None:
        return kernel
    kept = [*kernel.params[:2], *kernel.params[4:]]
    return tirx.PrimFunc(kept, kernel.body, kernel.ret_type, kernel.attrs)


def interleave(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Gate and up rows [..., width, inner] (or biases [..., width, 1]) in the order of a gated matrix, zeros behind the
    last unit: [..., columns, inner]."""
    *batch, width, inner = gate.shape
    groups = -(-width // GATE_GROUP)
    both = np.zeros((*batch, 2, groups * GATE_GROUP, inner), gate.dtype)
    both[..., 0, :width, :], both[..., 1, :width, :] = gate, up
    grouped = both.reshape(*batch, 2, groups, GATE_GROUP, inner)
    return np.ascontiguousarray(np.moveaxis(grouped, -4, -3)).reshape(*batch, 2 * groups * GATE_GROUP, inner)
