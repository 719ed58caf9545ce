"""The matrices of experts in the layouts of the CUDA kernels: as floats, or quantised as in the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tvm import relax

from moec.common.dtypes import dtype_of
from moec.common.errors import UnsupportedError
from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.weights.encode import Encoded, StoredMatrix, Table
from moec.ir.weights.stored import StoredWeight
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, interleave
from moec.targets.gpu.kernels.packed_format import PackedFormat, pack, scale_rows
from moec.targets.tvm.lowering.node_lowering import NodeLowering

Parts = Callable[[int], Sequence[StoredMatrix]]
"""A function from an expert to the matrices [in, out] that form one operand: gate and up, or one alone. Floats are
``Encoded`` without scales."""


def parts_of(weights: ExpertWeights, parts: Sequence[Part], stored: PackedFormat | None) -> Parts:
    """These parts of each expert, with zeros for hidden units that the expert does not have."""
    if stored is not None:
        return lambda expert: [weights.own(part, expert) for part in parts]
    return lambda expert: [Encoded(weights.decoded(part, expert)) for part in parts]


def whole_parts(weight: StoredWeight, stored: PackedFormat | None, transposed: bool = True) -> Parts:
    """The whole matrix of each expert. ``transposed``: whether its first axis is the inputs."""
    if stored is not None:
        return lambda expert: [weight.encoded(expert, transposed)]
    return lambda expert: [Encoded(weight.decoded(expert, transposed))]


def as_stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers as a contiguous array of that type."""
    return np.ascontiguousarray(numbers).astype(dtype_of(dtype), copy=False)


def filled(numbers: np.ndarray, rows: int, columns: int, behind: np.ndarray | None = None) -> np.ndarray:
    """The numbers padded to ``rows`` x ``columns``. New rows are zero; new columns of an existing row are filled with
    its value in ``behind`` [rows, 1], or with zero."""
    if numbers.shape == (rows, columns):
        return numbers
    result = np.zeros((rows, columns), numbers.dtype)
    own_rows, own_columns = numbers.shape
    result[:own_rows, :own_columns] = numbers
    if behind is not None:
        result[:own_rows, own_columns:] = behind
    return result


def padded_name(name: str, *sizes: tuple[int, int]) -> str:
    """The name of a weight padded to other sizes; one weight may be packed for several. ``sizes``: for each axis its
    own and its padded size."""
    return "".join([name, *(f".to{padded}" for own, padded in sizes if own != padded)])


def add_matrix(node: NodeLowering, name: str, problem: GroupedProblem, parts: Parts) -> list[relax.Var]:
    """Add the matrix of a product to the program's weights, packed expert by expert, and return its operands: one
    tensor of floats, or data, scales and zero points. Parts with fewer inputs or outputs than the problem are padded
    with zeros."""
    experts, columns = problem.experts, problem.columns
    if problem.stored is None:
        dtype = problem.matrix_dtype

        def load() -> Iterator[np.ndarray]:
            for expert in range(experts):
                wide = [filled(part.data.T, problem.width, problem.inner) for part in parts(expert)]
                yield as_stored(_together(wide), dtype)

        return [node.lowering.add_weight(f"{name}.{dtype}", (experts, columns, problem.inner), dtype, load)]
    stored = problem.stored
    groups = stored.groups(problem.inner)
    row: dict[Table, int] = {
        "data": stored.row_bytes(problem.inner),
        "scale": stored.scale_row(problem.inner),
        "zero_point": groups if stored.zero_points else 0,
    }
    operands = [_table(node, f"{name}.{table}", problem, table, row[table], parts) for table in row if row[table]]
    if not stored.zero_points:
        none = np.zeros((1, 1, 1), np.uint8)
        operands.append(node.lowering.add_weight("no_zero_points", none.shape, "uint8", lambda: none))
    return operands


def _table(node: NodeLowering, name: str, problem: GroupedProblem, table: Table, row: int, parts: Parts) -> relax.Var:
    """One table of a quantised matrix, [experts, columns, row]; scales of a matrix that is multiplied in fp8 are
    [experts, row, columns], group by group."""
    assert problem.stored is not None
    stored: PackedFormat = problem.stored
    shape = (problem.experts, problem.columns, row)
    by_group = problem.in_fp8 and table == "scale"
    if by_group:
        name, shape = f"{name}.by_group", (problem.experts, row, problem.columns)

    def load() -> Iterator[np.ndarray]:
        for expert in range(problem.experts):
            packed = _together([pack(stored, table, _filled_table(problem, table, part)) for part in parts(expert)])
            yield np.ascontiguousarray(packed.T if by_group else packed)

    return node.lowering.add_weight(name, shape, stored.scale_storage if table == "scale" else "uint8", load)


def _filled_table(problem: GroupedProblem, table: Table, part: StoredMatrix) -> np.ndarray:
    """A table [outputs, inputs or groups] of a part, padded to the problem's sizes. Data is padded with the last
    group's zero point, which stands for the number zero."""
    array, stored = part.read(table), problem.stored
    if table == "scale" and stored is not None and stored.has_factors:
        codes, factors = part.read("scale_code"), part.read("scale_factor")
        assert codes is not None and factors is not None, "the format has these levels"
        if problem.scaling is not None and (codes.view(np.uint8) & 0x80).any():
            raise UnsupportedError(
                f"a matrix in {stored.name} has a negative scale; expected none where rows are in "
                f"{problem.scaling.arithmetic}; compile without --arithmetic"
            )
        rows = scale_rows(stored, codes.T, factors.T, problem.inner)
        return filled(rows, problem.width, rows.shape[1])
    assert array is not None and stored is not None, "the format has the table"
    if table != "data":
        return filled(array.T, problem.width, stored.groups(problem.inner))
    zeros = part.read("zero_point")
    return filled(array.T, problem.width, problem.inner, None if zeros is None else zeros.T[:, -1:])


def _together(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Gate and up interleaved in groups of rows, or the only matrix."""
    return matrices[0] if len(matrices) == 1 else interleave(*matrices)
