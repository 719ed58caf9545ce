"""Experts whose ids and weights have any source are raised, and their sources stay."""

import numpy as np
import pytest

from moec.ir.dialect import RouteSpec, spec_of
from moec.passes.framework.base import Report

SHARED = """biased = Add (scores, bias)
    top, chosen = TopK <axis = -1> (biased, k)
    own = GatherElements <axis = -1> (logits, chosen)
    part = Sigmoid (own)
    other = MatMul (x, column)
    share = Sigmoid (other)
    both = Add (part, share)
    w = Div (part, both)"""
TABLE = """best = ArgMax <axis = -1, keepdims = 0> (logits)
    chosen = Gather <axis = 0> (table, best)
    w = GatherElements <axis = -1> (scores, chosen)"""


def with_router(texts, router: str, formulation: str = "batched") -> str:
    """Experts after logits and scores, from which ``router`` computes ``chosen`` and ``w``."""
    before, _, behind = texts[formulation].partition("top, chosen")
    return f"{before}{router}\n{behind.partition('w = Div (top, total)')[2]}"


@pytest.mark.parametrize("router", [SHARED, TABLE], ids=["weights that others share", "a table"])
def test_experts_are_raised_and_what_chooses_them_stays(build, texts, normal, raise_and_compare, router):
    text = with_router(texts, router)
    feeds = {"column": normal(6, 1), "table": np.array([[0, 1], [1, 1], [3, 2], [0, 3]])}
    report = Report()
    route, experts = raise_and_compare(build(text, up=normal(4, 10, 6), down=normal(4, 6, 5), **feeds), report)
    assert spec_of(route, RouteSpec) == RouteSpec(2, "relu", threshold=0.0)
    assert [value.name for value in experts.inputs[3:5]] == ["up", "down"]
    (remark,) = report.remarks
    assert remark.severity == "note" and remark.message.startswith("its router stays as ordinary operators: ")


def test_experts_in_a_loop_compare_ids_with_their_own(build, texts, normal, raise_and_compare):
    report = Report()
    route, experts = raise_and_compare(
        build(with_router(texts, SHARED, "loop"), column=normal(6, 1)), report, (1, 7, 40)
    )
    assert spec_of(route, RouteSpec) == RouteSpec(2, "relu", threshold=0.0)
    assert experts.op_type == "Experts" and report.remarks[-1].message.startswith("its router stays")


def test_sibling_whose_weights_may_be_negative_stays(build, texts, normal, raise_and_compare):
    text = with_router(texts, SHARED.replace("Div (part, both)", "Sub (part, share)"))
    model = build(text, up=normal(4, 10, 6), down=normal(4, 6, 5), column=normal(6, 1))
    before = [node.op_type for node in model.graph]
    report = Report()
    assert raise_and_compare(model, report) == []
    assert [node.op_type for node in model.graph] == before and report.remarks[0].severity == "warning"
