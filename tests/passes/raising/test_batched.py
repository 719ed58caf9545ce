"""Batched experts: weights gathered per token."""

import numpy as np

from moec.ir.dialect import ExpertsSpec, RouteSpec, spec_of
from moec.passes.base import Report


def test_swiglu_with_renormalised_router(build, texts, normal, raise_and_compare):
    model = build(texts["batched"], up=normal(4, 10, 6), down=normal(4, 6, 5))
    route, experts = raise_and_compare(model)
    assert spec_of(route, RouteSpec) == RouteSpec(k=2, normalize=True)
    assert spec_of(experts, ExpertsSpec) == ExpertsSpec("silu", "gate_up")
    assert [value.name for value in experts.inputs[3:5]] == ["up", "down"], "stacked weights are used where they are"
    assert experts.metadata_props["moec.block"]


def test_sibling_whose_activation_is_unknown_stays(build, texts, normal, raise_and_compare):
    text = texts["batched"].replace("Sigmoid (g)", "Sin (g)")
    report = Report()
    assert raise_and_compare(build(text, up=normal(4, 10, 6), down=normal(4, 6, 5)), report) == []
    (remark,) = report.remarks
    assert remark.severity == "warning" and "not recognised" in remark.message


def test_sibling_whose_router_is_unknown_stays(build, texts, normal, raise_and_compare):
    text = texts["batched"].replace("w = Div (top, total)", "squared = Mul (top, top)\n w = Div (squared, total)")
    report = Report()
    assert raise_and_compare(build(text, up=normal(4, 10, 6), down=normal(4, 6, 5)), report) == []
    assert "nearest candidate (router softmax" in report.remarks[0].message


def test_sibling_that_keeps_only_the_first_choice_stays(build, texts, normal, raise_and_compare):
    text = texts["batched"].replace(
        "ReduceSum <keepdims = 0> (weighted3, one)", "ReduceMax <keepdims = 0> (weighted3, one)"
    )
    report = Report()
    assert raise_and_compare(build(text, up=normal(4, 10, 6), down=normal(4, 6, 5)), report) == []
    assert "differs" in report.remarks[0].message


def test_temperature_before_the_softmax_stays_outside(build, texts, normal, raise_and_compare):
    text = texts["batched"].replace("Softmax <axis = -1> (logits)", "Softmax <axis = -1> (cooled)")
    text = text.replace("scores =", "cooled = Mul (logits, half)\n scores =")
    half = np.array(0.5, np.float32)
    route, _ = raise_and_compare(build(text, up=normal(4, 10, 6), down=normal(4, 6, 5), half=half))
    assert route.inputs[0].name == "cooled"
