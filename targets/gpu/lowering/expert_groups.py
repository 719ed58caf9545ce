"""Experts grouped by the formats of their matrices: one launch computes a product for all experts of a group.

Kernels number experts group by group, so that the experts of a group are consecutive. If the graph's order differs, the
ids are renumbered. Dispatch and combine work on all experts together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from moec.ir.weights.stored import StoredWeight, WeightRun
from moec.targets.gpu.kernels.packed_format import PackedFormat
from moec.targets.tvm.lowering.node_lowering import NodeLowering


@dataclasses.dataclass(frozen=True)
class MatrixFormat:
    """The format in which a kernel reads the matrix of an expert: quantised as ``stored``, or floats of ``dtype``."""

    dtype: str
    stored: PackedFormat | None = None


@dataclasses.dataclass(frozen=True)
class ExpertGroup:
    """Experts whose matrices have the same formats. ``experts``: their ids in the graph; ``first``: the number of the
    first one in kernels; ``formats``: of the matrix in each product."""

    experts: tuple[int, ...]
    first: int
    formats: tuple[MatrixFormat, ...]


def groups_by_format(products: Sequence[Sequence[StoredWeight]], dtype: str) -> list[ExpertGroup]:
    """All experts, grouped by their formats. ``products``: for each product the weights that its matrix is made of;
    ``dtype``: of the tokens."""
    members: dict[tuple[MatrixFormat, ...], list[int]] = {}
    for expert in range(products[0][0].experts):
        formats = tuple(_format_of([weight.run_of(expert) for weight in weights], dtype) for weights in products)
        members.setdefault(formats, []).append(expert)
    groups, first = [], 0
    for formats, experts in members.items():
        groups.append(ExpertGroup(tuple(experts), first, formats))
        first += len(experts)
    return groups


def quantized_format(runs: Sequence[WeightRun]) -> PackedFormat | None:
    """The quantised format that all runs share and kernels can read. None if they differ, are floats, or have minima:
    kernels take zero points, which are integers."""
    formats = {PackedFormat.of(run) for run in runs}
    stored = next(iter(formats))
    return stored if len(formats) == 1 and not stored.is_float and not stored.minima else None


def _format_of(runs: Sequence[WeightRun], dtype: str) -> MatrixFormat:
    """The format for one expert's matrix, which is made of these runs.

    Tensor cores take 16-bit tokens and floats of the same type. With float32 tokens, floats that are stored in 16 bits
    stay so. Matrices that form one operand but are quantised in different formats become floats.
    """
    stored = quantized_format(runs)
    if stored is not None:
        return MatrixFormat(dtype, stored)
    floats = {run.format.name for run in runs}
    if dtype == "float32" and len(floats) == 1 and floats <= {"float16", "bfloat16"}:
        return MatrixFormat(floats.pop())
    return MatrixFormat(dtype)


def renumbered(node: NodeLowering, groups: Sequence[ExpertGroup], ids: relax.Expr) -> relax.Expr:
    """The ids [T, k], renumbered as kernels number the experts. An id that is not an expert's stays as it is."""
    order = [expert for group in groups for expert in group.experts]
    if order == sorted(order):
        return ids
    numbers = np.empty(len(order), np.int32)
    numbers[order] = np.arange(len(order), dtype=np.int32)
    table = node.lowering.add_weight(f"{node.name}.numbers", numbers.shape, "int32", lambda: numbers)
    return node.lowering.compute(_look_up, [ids, table], "renumbered_experts")[0]


def _look_up(ids: te.Tensor, table: te.Tensor) -> te.Tensor:
    def number(*at: Any) -> Any:
        expert = ids(*at)
        is_expert = tirx.all(expert >= 0, expert < table.shape[0])
        return tirx.if_then_else(is_expert, table[expert], expert)

    return te.compute(ids.shape, number, name="numbers")


def of_group(parts: Callable[[int], Any], group: ExpertGroup) -> Callable[[int], Any]:
    """``parts``, indexed by the number of an expert within the group instead of its id in the graph."""
    return lambda number: parts(group.experts[number])


def fields_of(group: ExpertGroup, groups: Sequence[ExpertGroup]) -> dict[str, Any]:
    """The fields of a group's :class:`GroupedProblem` that say which experts it is for."""
    return {"experts": len(group.experts), "first_expert": None if len(groups) == 1 else group.first}
