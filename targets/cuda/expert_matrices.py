"""The matrices of experts as kernels for CUDA take them: in floats, or as they are quantised in the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.ir.dialect import ExpertsSpec
from moec.ir.encodings import Encoded
from moec.runtime.dtypes import dtype_of
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem, interleave
from moec.targets.cuda.kernels.stored_matrix import Packed, StoredFormat, pack
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.stored_weights import StoredWeight, split, split_encoded

_SCALES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT8E8M0: "float8_e8m0fnu",
}

Parts = Callable[[int], Sequence[Encoded]]
"""The matrices [in, out] of an expert that lie together, gate and up, or one alone; floats are ``Encoded`` without
scales."""


def common_format(*weights: StoredWeight | None) -> StoredFormat | None:
    """The quantised format that all experts of all weights have; None where they are floats or differ."""
    runs = [run for weight in weights if weight is not None for run in weight.runs]
    scales = {run.scale.dtype for run in runs if run.scale is not None and run.scale.dtype is not None}
    formats = {run.format for run in runs}
    if len(formats) != 1 or len(scales) != 1:
        return None
    (form,), (scale,) = formats, scales
    if form.name not in ("int8", "int4", "mxfp4") or scale not in _SCALES:
        return None
    return StoredFormat(form.name, form.group, _SCALES[scale], form.zero_points)


def up_parts(spec: ExpertsSpec, up: StoredWeight, gate: StoredWeight | None, problem: GroupedProblem) -> Parts:
    """What comes before the activation, with zeros for hidden units that an expert does not have."""

    def parts(expert: int) -> Sequence[Encoded]:
        matrix = _read(up, expert, spec.up_transposed, problem)
        if not spec.gated:
            both: Sequence[Encoded] = [matrix]
        elif gate is not None:
            both = [_read(gate, expert, spec.up_transposed, problem), matrix]
        elif problem.stored is not None:
            both = split_encoded(spec, matrix)
        else:
            both = [Encoded(half) for half in split(spec, matrix.data)]
        return [Encoded(_own_units(spec, one.data.T, expert).T, *one[1:]) for one in both]

    return parts


def down_parts(spec: ExpertsSpec, down: StoredWeight, problem: GroupedProblem) -> Parts:
    def parts(expert: int) -> Sequence[Encoded]:
        matrix = _read(down, expert, spec.down_transposed, problem)
        return [Encoded(_own_units(spec, matrix.data, expert), *matrix[1:])]

    return parts


def _read(weight: StoredWeight, expert: int, transposed: bool, problem: GroupedProblem) -> Encoded:
    if problem.stored is not None:
        return weight.encoded(expert, transposed)
    return Encoded(weight.decoded(expert, transposed))


def _own_units(spec: ExpertsSpec, by_unit: np.ndarray, expert: int) -> np.ndarray:
    """Rows of hidden units, with zeros for those that the expert does not have."""
    if not spec.hidden_sizes:
        return by_unit
    own = np.array(by_unit)
    own[spec.hidden_sizes[expert] :] = 0
    return own


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
    tables = {
        "data": ((columns, stored.row_bytes(problem.inner)), "uint8"),
        "scales": ((columns, groups), stored.scale_storage),
    }
    if stored.zero_points:
        tables["zero_points"] = ((columns, groups), "uint8")

    def load_table(table: str) -> Callable[[], Iterator[np.ndarray]]:
        return lambda: (_packed(stored, table, parts(expert)) for expert in range(experts))

    operands = [
        node.lowering.add_weight(f"{name}.{table}", (experts, *shape), dtype, load_table(table))
        for table, (shape, dtype) in tables.items()
    ]
    if not stored.zero_points:
        none = np.zeros((1, 1, 1), np.uint8)
        operands.append(node.lowering.add_weight("no_zero_points", none.shape, "uint8", lambda: none))
    return operands


def _packed(stored: StoredFormat, table: str, parts: Sequence[Encoded]) -> np.ndarray:
    packed: list[Packed] = []
    for part in parts:
        transposed = (None if array is None else array.T for array in part)
        packed.append(pack(stored, Encoded(*transposed)))  # type: ignore[arg-type]
    return np.ascontiguousarray(_together([getattr(one, table) for one in packed]))


def _together(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Gate and up rows in groups, or the one matrix."""
    return matrices[0] if len(matrices) == 1 else interleave(*matrices)
