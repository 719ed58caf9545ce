"""Rules by which what counts of an operator's results goes back to its operands."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from moec.ir.live_rules import is_pointwise, keeps_places


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
    assert keeps_places(node(operator)) is places and is_pointwise(node(operator)) is pointwise
    assert not keeps_places(node(operator, "other")) and not is_pointwise(node(operator, "other"))
