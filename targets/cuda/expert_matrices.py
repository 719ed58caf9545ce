"""The matrices of experts as kernels for CUDA take them: in floats, or as they are quantised in the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tvm import relax

from moec.common.dtypes import dtype_of
from moec.ir.weights.encode import Encoded, StoredMatrix, Table
from moec.ir.weights.experts import ExpertWeights, Part
from moec.ir.weights.stored import StoredWeight
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem, interleave
from moec.targets.cuda.kernels.packed_format import PackedFormat, pack
from moec.targets.tvm.node_lowering import NodeLowering

Parts = Callable[[int], Sequence[StoredMatrix]]
"""The matrices [in, out] of an expert that lie together, gate and up, or one alone; floats are ``Encoded`` without
scales."""


def parts_of(weights: ExpertWeights, parts: Sequence[Part], stored: PackedFormat | None) -> Parts:
    """These parts of each expert, with zeros for hidden units that it does not have."""
    if stored is not None:
        return lambda expert: [weights.own(part, expert) for part in parts]
    return lambda expert: [Encoded(weights.decoded(part, expert)) for part in parts]


def whole_parts(weight: StoredWeight, stored: PackedFormat | None, transposed: bool = True) -> Parts:
    """The matrix of each expert as it is; ``transposed``: it has the inputs first."""
    if stored is not None:
        return lambda expert: [weight.encoded(expert, transposed)]
    return lambda expert: [Encoded(weight.decoded(expert, transposed))]


def as_stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Contiguous numbers of that type."""
    return np.ascontiguousarray(numbers).astype(dtype_of(dtype), copy=False)


def add_matrix(node: NodeLowering, name: str, problem: GroupedProblem, parts: Parts) -> list[relax.Var]:
    """The operands that stand for the matrix in a product, packed expert by expert: one tensor of floats, or data,
    scales and zero points."""
    experts, columns = problem.experts, problem.columns
    if problem.stored is None:
        dtype = problem.matrix_dtype

        def load() -> Iterator[np.ndarray]:
            for expert in range(experts):
                yield as_stored(_together([part.data.T for part in parts(expert)]), dtype)

        return [node.lowering.add_weight(f"{name}.{dtype}", (experts, columns, problem.inner), dtype, load)]
    stored = problem.stored
    groups = stored.groups(problem.inner)
    row: dict[Table, int] = {
        "data": stored.row_bytes(problem.inner),
        "scale": groups,
        "zero_point": groups if stored.zero_points else 0,
    }
    operands = [_table(node, f"{name}.{table}", problem, table, row[table], parts) for table in row if row[table]]
    if not stored.zero_points:
        none = np.zeros((1, 1, 1), np.uint8)
        operands.append(node.lowering.add_weight("no_zero_points", none.shape, "uint8", lambda: none))
    return operands


def _table(node: NodeLowering, name: str, problem: GroupedProblem, table: Table, row: int, parts: Parts) -> relax.Var:
    """One table of a quantised matrix, ``row`` elements for each of its columns; scales of one that is multiplied as it
    is come group by group."""
    assert problem.stored is not None
    stored: PackedFormat = problem.stored
    shape = (problem.experts, problem.columns, row)
    by_group = problem.in_fp8 and table == "scale"
    if by_group:
        name, shape = f"{name}.by_group", (problem.experts, row, problem.columns)

    def load() -> Iterator[np.ndarray]:
        for expert in range(problem.experts):
            arrays = [getattr(part, table).T for part in parts(expert)]
            packed = _together([pack(stored, table, array) for array in arrays])
            yield np.ascontiguousarray(packed.T if by_group else packed)

    return node.lowering.add_weight(name, shape, stored.scale_storage if table == "scale" else "uint8", load)


def _together(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Gate and up rows in groups, or the one matrix."""
    return matrices[0] if len(matrices) == 1 else interleave(*matrices)
