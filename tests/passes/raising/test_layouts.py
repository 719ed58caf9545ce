"""Rows in several sequences, in rows of pictures, and with inputs of other lengths, on which a token may depend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir import dialect
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE
from moec.passes.raising.symbols import sizes_for

EXPERTS = """
    flat = Reshape (x, rows)
    logits = MatMul (flat, router)
    scores = Softmax <axis = -1> (logits)
    top, chosen = TopK <axis = -1> (scores, two)
    s = Shape (scores)
    zeros = ConstantOfShape (s)
    {mixture} = ScatterElements <axis = -1> (zeros, chosen, top)
    xs = Shape (x)
    h = Einsum <equation = "td,edf->tef"> (flat, up)
    a = Relu (h)
    o = Einsum <equation = "tef,efd->ted"> (a, down)
    {condition}
    y0 = Einsum <equation = "ted,te->td"> ({result}, mixture)
    y = Reshape (y0, xs)
"""
CONSTANTS = {
    "columns": np.array([4]),
    "three": np.array([3]),
    "unit": np.float32(1),
    "limit": np.int64(2),
    "thousand": np.int64(1000),
    "rows_and_columns": np.array([1, 2]),
}
ALONG = """lead = Slice (xs, zero, three, zero)
    grid = Concat <axis = 0> (lead, columns)
    m1 = Reshape (m0, grid)
    m2 = ReduceMean <keepdims = 1> (m1, {axis})
    m3 = Expand (m2, grid)
    mixture = Reshape (m3, s)"""
BY_PLACE = """B = Gather (xs, scalar_zero)
    S = Gather (xs, scalar_one)
    b = Range (scalar_zero, B, scalar_one)
    p = Range (scalar_zero, S, scalar_one)
    late_b = GreaterOrEqual (b, limit)
    late_p = GreaterOrEqual (p, limit)
    column = Unsqueeze (late_b, one)
    late = And (column, late_p)
    marked = Cast <to = 1> (late)
    kept = Sub (unit, marked)
    line = Reshape (kept, minus_one)
    f = Unsqueeze (line, rows_and_columns)
    scaled = Mul (o, f)"""
OF_OTHER = """zs = Shape (z)
    M = Gather (zs, scalar_one)
    late = GreaterOrEqual (M, {limit})
    marked = Cast <to = 1> (late)
    kept = Sub (unit, marked)
    scaled = Mul (o, kept)"""


@pytest.fixture
def raises(build, normal) -> Callable[..., bool]:
    def run(condition: str, shape: str, more: str = "", **names: str) -> bool:
        text = EXPERTS.format(condition=condition, **({"mixture": "mixture", "result": "o"} | names))
        model = build(text, shape, more, up=normal(4, 6, 5), down=normal(4, 5, 6), **CONSTANTS)
        RaiseMoE().apply(model, Report())
        pipeline.run(model, pipeline.parse("remove-dead-nodes"))
        return any(dialect.is_moec(node, "Experts") for node in model.graph) and not _has_own_router(model)

    return run


def _has_own_router(model: ir.Model) -> bool:
    return any(node.op_type == "TopK" for node in model.graph)


@pytest.mark.parametrize("shape", ["T,6", "B,S,6", "N,H,W,6", "N,D,H,W,6"])
def test_rows_of_any_shape_are_raised(raises, shape: str) -> None:
    assert raises("", shape)


@pytest.mark.parametrize("axis", ["zero", "one", "two"])
def test_what_is_shared_along_any_axis_stays(raises, axis: str) -> None:
    assert not raises(ALONG.format(axis=axis), "N,H,W,6", mixture="m0")


def test_what_is_third_of_two_things_stays(raises) -> None:
    assert not raises(BY_PLACE, "B,S,6", result="scaled")


@pytest.mark.parametrize("limit", ["limit", "thousand"])
def test_what_depends_on_the_length_of_another_input_stays(raises, limit: str) -> None:
    assert not raises(OF_OTHER.format(limit=limit), "B,S,6", "float[B,M,6] z", result="scaled")


def test_the_length_of_another_input_alone_is_no_obstacle(raises) -> None:
    nothing = """zs = Shape (z)
    M = Gather (zs, scalar_one)
    none = Mul (M, scalar_zero)
    n = Cast <to = 1> (none)
    scaled = Add (o, n)"""
    assert raises(nothing, "B,S,6", "float[B,M,6] z", result="scaled")


def test_numbers_of_rows_are_spread_over_two_symbols() -> None:
    assert sizes_for(7, ["B", "S"], []) == {"B": 1, "S": 7}
    assert sizes_for(6, ["B", "S"], []) == {"B": 2, "S": 3}
    assert sizes_for(8, ["B", "S"], ["M"]) == {"M": 4, "B": 4, "S": 2}
