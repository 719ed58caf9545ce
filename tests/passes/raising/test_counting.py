"""Operators that make numbers of how many tokens there are, and others that do not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.passes.raising.counting import counts, reduces_tokens
from moec.passes.raising.dataflow import DataFlow

from ...text_models import model_of

CONSTANTS = {
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "last": np.array([-1], np.int64),
    "both": np.array([1, -1], np.int64),
    "two": np.array([2], np.int64),
}


def node_of(text: str) -> tuple[DataFlow, ir.Node]:
    """The node that makes y."""
    model = ir.from_proto(model_of(text, CONSTANTS, "float[T,4,5] x, int64[T] i, int64[1] axes"))
    return DataFlow(model.graph), model.graph[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = CumSum (x, one)", True),
        ("y = Size (x)", True),
        ("y = Trilu (x)", True),
        ("y = Range (zero, one, one)", True),
        ("y = Cast <to = 1> (i)", True),
        ("y = Cast <to = 10> (i)", True),
        ("y = Cast <to = 6> (i)", False),
        ("y = Cast <to = 10> (x)", False),
        ("y = Shape (x)", False),
        ("y = Neg (i)", False),
    ],
)
def test_what_counts(text: str, expected: bool) -> None:
    assert counts(node_of(text)[1]) is expected


def test_a_cast_of_a_value_of_no_known_type_counts_nothing() -> None:
    _, node = node_of("y = Cast <to = 1> (i)")
    node.inputs[0].type = None
    assert not counts(node)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = ReduceSum (x, last)", False),
        ("y = ReduceMax (x, two)", False),
        ("y = ReduceSum (x, one)", True),
        ("y = ReduceMean (x, both)", True),
        ("y = ReduceSum (x)", True),
        ("y = ReduceSum (x, axes)", True),
        ("n = Neg (x)\n y = ReduceSum (n, last)", True),
        ("y = ArgMax <axis = 0> (x)", False),
    ],
)
def test_reductions_over_tokens(text: str, expected: bool) -> None:
    """Unknown axes, or an unknown number of axes, may be those of tokens."""
    assert reduces_tokens(*node_of(text)) is expected
