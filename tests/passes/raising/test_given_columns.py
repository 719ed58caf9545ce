"""Experts that are each weighed by a column of their own are raised, and the sources of the columns stay."""

import numpy as np
import pytest

from moec.ir.dialect import RouteSpec, spec_of
from moec.passes.framework.base import Report

FIRST = """logits = MatMul (x, router)
    scores = Sigmoid (logits)
    squares = Mul (scores, scores)
    y_0 = Mul (x, nothing)
"""
EXPERT = """part_{e} = Gather <axis = 1> (squares, expert_{e})
    w_{e} = Unsqueeze (part_{e}, minus_one)
    h_{e} = Gemm <transB = 1> (x, up_{e}, up_bias_{e})
    a_{e} = Relu (h_{e})
    o_{e} = Gemm <transB = 1> (a_{e}, down_{e}, down_bias_{e})
    weighted_{e} = Mul (o_{e}, w_{e})
    y_{n} = Add (y_{e}, weighted_{e})
"""
NOTHING = np.zeros(1, np.float32)


def text_of(expert: str = EXPERT) -> str:
    body = "".join(expert.replace("{e}", str(e)).replace("{n}", str(e + 1)) for e in range(4))
    return f"{FIRST}{body} y = Identity (y_4)"


def test_columns_are_put_side_by_side(build, raise_and_compare):
    report = Report()
    route, *experts = raise_and_compare(build(text_of(), nothing=NOTHING), report)
    assert spec_of(route, RouteSpec) == RouteSpec(4, "relu", "all", threshold=0.0)
    assert [node.op_type for node in experts] == ["Experts"]
    (remark,) = report.remarks
    assert remark.severity == "note" and "each of its experts is weighed by a value of its own" in remark.message


SIBLINGS = {
    "experts see other tokens": ("Relu (h_{e})", "CumSum (h_{e}, scalar_zero)"),
    "a column is made of what another expert makes": (
        "Unsqueeze (part_{e}, minus_one)",
        "ReduceMax (y_{e}, minus_one)",
    ),
}


@pytest.mark.parametrize("change", SIBLINGS.values(), ids=SIBLINGS)
def test_sibling_stays(build, raise_and_compare, change):
    model = build(text_of(EXPERT.replace(*change)), nothing=NOTHING)
    before = sorted(node.op_type for node in model.graph)
    assert raise_and_compare(model) == []
    assert sorted(node.op_type for node in model.graph) == before
