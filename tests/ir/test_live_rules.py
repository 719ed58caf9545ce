"""Rules that lead from live elements of an operator's results back to its operands."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.live_rules import Found, NodeRun, is_pointwise, keeps_positions, reached


def node(operator: str, domain: str = "") -> ir.Node:
    return ir.node(operator, [None, None], domain=domain)


@pytest.mark.parametrize(
    ("operator", "places", "pointwise"),
    [
        ("Add", False, True),
        ("Where", False, True),
        ("Reshape", False, True),
        ("Transpose", False, True),
        ("Gather", True, True),
        ("ReduceSum", True, False),
        ("Softmax", True, False),
        ("ScatterElements", True, False),
        ("MatMul", False, False),
        ("Hardmax", False, False),
    ],
)
def test_what_rules_read_and_keep(operator: str, places: bool, pointwise: bool) -> None:
    assert keeps_positions(node(operator)) is places and is_pointwise(node(operator)) is pointwise
    assert not keeps_positions(node(operator, "other")) and not is_pointwise(node(operator, "other"))


@pytest.mark.parametrize(
    ("constants", "expected"),
    [([np.zeros((2, 3), bool)], False), ([np.eye(2, 3) > 0], True), ([None, np.ones(4, bool)], True), ([None], False)],
)
def test_an_operator_without_a_rule_reads_everything_for_whatever_counts(constants: Found, expected: bool) -> None:
    run = NodeRun(node("Hardmax"), lambda *_: [], [(2, 3)], [(2, 3)] * len(constants), [None], {})
    np.testing.assert_array_equal(reached(run, 0, constants), np.full((2, 3), expected))
