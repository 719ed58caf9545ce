"""Tensors with a dynamic size that no other has get memory of their own; others are left to the planner."""

from __future__ import annotations

import pytest
import tvm
from tvm import relax, tirx

from moec.common.budgets import PLANNED_SIZES
from moec.targets.tvm.phases.own_memory import OwnMemory


def allocating(shapes) -> tvm.IRModule:
    """``main`` allocates tensors of these shapes, functions of a size."""
    builder, size = relax.BlockBuilder(), tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType([size], "float32"))
    with builder.function("main", [x]):
        for shape in shapes:
            builder.emit(relax.op.builtin.alloc_tensor(relax.ShapeExpr(shape(size)), "float32", 0))
        builder.emit_func_output(x)
    return builder.get()


def left_to_the_planner(shapes, beyond: int = 0) -> int:
    unplanned: list[str] = []
    text = OwnMemory(unplanned)(allocating(shapes))["main"].script()
    assert len(unplanned) == beyond
    planned, own = text.count("R.builtin.alloc_tensor"), text.count("R.memory.alloc_tensor")
    assert planned + own == len(shapes) and own == text.count("R.memory.alloc_storage")
    return planned


@pytest.mark.parametrize(
    ("shapes", "planned"),
    [
        ([lambda n: [n, 3], lambda n: [n, 4], lambda n: [n, 3]], 2),
        ([lambda n: [n, 6], lambda n: [n * 2, 3], lambda n: [n + 1, 6]], 2),
        ([lambda n: [5], lambda n: [7], lambda n: [n]], 2),
    ],
    ids=["equal", "equal when simplified", "static"],
)
def test_sizes_that_are_planned(shapes, planned):
    assert left_to_the_planner(shapes) == planned


def test_the_most_frequent_sizes_are_planned():
    def of(number: int):
        return lambda n: [n + number]

    pairs = [of(number) for number in range(PLANNED_SIZES.limit + 8) for _ in range(2)]
    often = [of(PLANNED_SIZES.limit + 7)] * 3
    assert left_to_the_planner(pairs + often, beyond=8) == 2 * PLANNED_SIZES.limit + 3
