"""Packed weights: the formats that kernels read for those of the graph (:mod:`moec.ir.weights.stored`), and arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from tvm import relax

from moec.common.dtypes import dtype_of
from moec.common.errors import UnsupportedError
from moec.common.mapped_files import release_pages
from moec.ir.weights.encode import StoredMatrix, Table
from moec.ir.weights.levels import LEVELS
from moec.ir.weights.stored import StoredWeight
from moec.targets.cpu.kernels.grouped_gemm import PackedProduct, weight_parameters
from moec.targets.cpu.kernels.multiplication import crossover_rows
from moec.targets.cpu.kernels.pack_experts import pack_data, pack_table
from moec.targets.cpu.kernels.tiled_format import TiledFormat
from moec.targets.tvm.kernels.crossover import Crossover
from moec.targets.tvm.lowering.context import LoweringContext

_TABLES: dict[str, Table] = {
    "weights": "data",
    "scales": "scale",
    "zeros": "zero_point",
    "minima": "minimum",
    "scale_factors": "scale_factor",
    "minimum_factors": "minimum_factor",
}
"""Part of a stored matrix in the parameters of each kind, where scales have one level."""
Parts = Callable[[int], Sequence[StoredMatrix]]
"""Function from an expert to its stored matrices [in, out]: those that share a tile (gate and up), or a single one."""


def formats_by_expert(weight: StoredWeight) -> list[TiledFormat]:
    """The format of each expert. Raises UnsupportedError for element types that no kernel loads."""
    return [stored for run in weight.runs for stored in [TiledFormat.of(run)] * run.count]


def formats_of(weight: StoredWeight, *others: StoredWeight) -> tuple[tuple[TiledFormat, ...], tuple[int, ...]]:
    """The distinct formats, and the index of each expert's format (empty if all have the same). Scales become float16
    where that holds all scales of a format exactly.

    Raises UnsupportedError where ``others``, which share tiles with ``weight``, are stored in another way.
    """
    formats = formats_by_expert(weight)
    for other in others:
        if formats_by_expert(other) != formats:
            raise UnsupportedError(f"{other.name} and {weight.name} are stored in different formats; expected the same")
    narrowed = {}
    for stored in dict.fromkeys(formats):
        experts = [expert for expert, form in enumerate(formats) if form == stored]
        matrices = (part.encoded(expert, transposed=True) for expert in experts for part in (weight, *others))
        narrowed[stored] = _narrowed(stored, matrices)
    formats = [narrowed[stored] for stored in formats]
    distinct = tuple(dict.fromkeys(formats))
    return distinct, tuple(map(distinct.index, formats)) if len(distinct) > 1 else ()


def _narrowed(stored: TiledFormat, matrices: Iterable[StoredMatrix]) -> TiledFormat:
    """The format with scales and minima in float16, if that holds those of all matrices exactly; else ``stored``.

    It does so for weights that were quantised from 16 bits. A weight of 4 bits in groups of 32 then takes 4.5 bits
    instead of 5."""
    if stored.scale != "float32" or not stored.group or stored.super_group:
        return stored
    for matrix in matrices:
        fits = all(_fit_float16(table) for table in (matrix.scale, matrix.minimum) if table is not None)
        release_pages()
        if not fits:
            return stored
    return dataclasses.replace(stored, scale="float16")


def _fit_float16(numbers: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(numbers, numbers.astype(np.float16))


def crossover_of(problem: PackedProduct) -> Crossover | None:
    """Rows of an expert from which on products of this shape use matrix tiles; None if they never do."""
    if not any(product.tiles_used for product in problem.multiplications):
        return None
    formats = "+".join(stored.name for stored in problem.formats)
    sizes = f"{problem.experts}x{problem.inner}x{problem.width}{'x2' if problem.gated else ''}"
    name = f"crossover.{problem.arithmetic}.{formats}.{sizes}"
    estimate = max(crossover_rows(problem.arithmetic, stored) for stored in problem.formats)
    return Crossover(name, "rows", estimate)


def expert_starts(problem: PackedProduct, variables: Sequence[relax.Var]) -> dict[relax.Var, list[int]]:
    """Byte offsets of the experts, for each parameter of :func:`add_weights` that stores expert by expert.

    The offsets are the start of each expert and the end of the last one."""
    starts: dict[relax.Var, list[int]] = {}
    for parameter, variable in zip(weight_parameters(problem), variables, strict=True):
        kind = parameter.name.rstrip("0123456789")
        if kind not in _TABLES:
            continue
        stored, part = int(parameter.name[len(kind) :]), int(kind != "weights")
        elements = [
            problem.tiles_for(problem.sizes(expert)[2]) * problem.tile_sizes(expert)[part] if has else 0
            for expert, has in enumerate(problem.sizes(expert)[0] == stored for expert in range(problem.experts))
        ]
        if kind.endswith("_factors"):
            elements = [count // problem.formats[stored].span for count in elements]
        size = dtype_of(parameter.dtype).itemsize
        starts[variable] = [0, *(size * int(end) for end in np.cumsum(elements))]
    return starts


def _table_of(kind: str, stored: TiledFormat) -> Table:
    """Part of a stored matrix in the parameters of a kind; with two levels of scales, their codes."""
    table = _TABLES[kind]
    return LEVELS[table][0] if stored.super_group and table in LEVELS else table


def add_weights(lowering: LoweringContext, name: str, problem: PackedProduct, parts: Parts) -> list[relax.Var]:
    """Add the packed arrays as parameters of the program, in the order in which the kernel takes them."""
    crossover = crossover_of(problem)

    def loader(role: str) -> Callable[[], np.ndarray | Iterator[np.ndarray]]:
        kind = role.rstrip("0123456789")
        if kind == "table":
            return problem.table
        if crossover is not None and kind == "crossover":
            estimate = crossover.estimate
            return lambda: np.array([estimate], np.int32)
        index = int(role[len(kind) :])
        experts = problem.experts_in(index)
        if kind == "weights":
            return lambda: (pack_data(problem, expert, parts(expert)) for expert in experts)
        table = _table_of(kind, problem.formats[index])
        return lambda: (pack_table(problem, expert, parts(expert), table) for expert in experts)

    names = {} if crossover is None else {"crossover": crossover.name}
    return [
        lowering.add_weight(
            names.get(parameter.name) or f"{name}.{parameter.name}",
            [int(size) for size in parameter.shape],
            parameter.dtype,
            loader(parameter.name),
        )
        for parameter in weight_parameters(problem)
    ]
