"""Batched experts: weights gathered per token."""

import numpy as np

from moec.ir.dialect import ExpertsSpec, RouteSpec, spec_of
from moec.passes.framework.base import Report


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


def test_a_router_that_selects_twice_is_reported_once(build, texts, normal, raise_and_compare):
    text = texts["batched"].replace(
        "w = Div (top, total)",
        "best, first = TopK <axis = -1> (scores, one)\ncubed = Pow (best, three)\n w = Div (top, cubed)",
    )
    report = Report()
    model = build(text, up=normal(4, 10, 6), down=normal(4, 6, 5), three=np.array(3, np.float32))
    assert raise_and_compare(model, report) == []
    (remark,) = report.remarks
    assert remark.severity == "warning" and "left as ordinary operators" in remark.message


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


def test_router_in_another_type_is_cast(build, texts, normal, raise_and_compare):
    router = """
        narrow = MatMul (x, router)
        wide = Cast <to = 11> (narrow)
        square = Mul (wide, wide)
        scores = Softmax <axis = -1> (square)
        top, chosen = TopK <axis = -1> (scores, k)
        w = Cast <to = 1> (top)
    """
    text = router + texts["batched"].removeprefix(texts["router"])
    route, experts = raise_and_compare(build(text, up=normal(4, 10, 6), down=normal(4, 6, 5)))
    assert route.inputs[0].name == "square"
    assert experts.inputs[1].producer().op_type == "Cast"


def test_factor_per_expert_goes_into_the_down_projection(build, texts, normal, raise_and_compare):
    text = texts["batched"].replace("w = Div (top, total)", "share = Div (top, total)")
    scaled = "factors = Gather (factor, chosen)\n w = Mul (share, factors)\n"
    text = text.replace("x3 = Unsqueeze", f"{scaled} x3 = Unsqueeze")
    down, factor = normal(4, 6, 5), normal(4)
    _, experts = raise_and_compare(build(text, up=normal(4, 10, 6), down=down, factor=factor))
    np.testing.assert_allclose(experts.inputs[4].const_value.numpy(), down * factor[:, None, None])
