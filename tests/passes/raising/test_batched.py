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


def test_experts_whose_activation_is_unknown_are_a_graph_over_rows(build, texts, normal, raise_and_compare):
    up, down = normal(4, 10, 6), normal(4, 6, 5)
    text = texts["batched"].replace("Sigmoid (g)", "Sin (g)")
    raised = raise_and_compare(build(text, up=up, down=down))
    assert [node.op_type for node in raised] == ["Route", "Dispatch", "GroupedMatMul", "GroupedMatMul", "Combine"]
    np.testing.assert_array_equal(raised[2].inputs[1].const_value.numpy(), up.swapaxes(1, 2))


def test_sibling_whose_pairs_depend_on_each_other_stays(build, texts, normal, raise_and_compare):
    text = texts["batched"].replace("Sigmoid (g)", "CumSum (g, scalar_zero)")
    report = Report()
    assert raise_and_compare(build(text, up=normal(4, 10, 6), down=normal(4, 6, 5)), report) == []
    (remark,) = report.remarks
    assert remark.severity == "warning" and "depends on other tokens" in remark.message


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


def with_simple(text: str, returned: str) -> str:
    """Experts of which only the first three are stored; ``returned``: the term that the fourth adds to ``stored_y``."""
    chosen = """is_simple = Equal (chosen, last)
        kept = Where (is_simple, first, chosen)
        w_kept = Where (is_simple, none, w)
        x3 = Unsqueeze"""
    text = text.replace("x3 = Unsqueeze", chosen).replace("Reshape (chosen,", "Reshape (kept,")
    text = text.replace("Reshape (w,", "Reshape (w_kept,").replace("y = ReduceSum", "stored_y = ReduceSum")
    return f"{text}\n{returned}\n"


NUMBERS = {"last": np.array(3), "first": np.array(0), "none": np.array(0, np.float32)}
PASSED = """w_passed = Where (is_simple, w, none)
    share = ReduceSum <keepdims = 1> (w_passed, one)
    passed = Mul (x, share)
    """


def test_an_expert_that_returns_its_token_is_an_identity_expert(build, texts, normal, raise_and_compare):
    text = with_simple(texts["batched"], PASSED + "y = Add (stored_y, passed)")
    report = Report()
    model = build(text, up=normal(3, 10, 6), down=normal(3, 6, 5), **NUMBERS)
    _, experts = raise_and_compare(model, report)
    assert spec_of(experts, ExpertsSpec) == ExpertsSpec("silu", "gate_up", identity_experts=1)
    assert [value.name for value in experts.inputs[3:5]] == ["up", "down"] and not report.remarks


def test_an_expert_that_adds_nothing_is_not_dispatched(build, texts, normal, raise_and_compare):
    report = Report()
    text = with_simple(texts["batched"], "y = Identity (stored_y)")
    _, experts = raise_and_compare(build(text, up=normal(3, 10, 6), down=normal(3, 6, 5), **NUMBERS), report)
    table = experts.inputs[2].producer().inputs[0]
    assert table.const_value.numpy().tolist() == [0, 1, 2, -1, -1]
    (remark,) = report.remarks
    assert (remark.severity, remark.message) == ("note", "of 4 experts expert 3 adds nothing to y")


def test_sibling_whose_expert_returns_half_of_its_token_stays(build, texts, normal, raise_and_compare):
    text = with_simple(texts["batched"], PASSED + "halved = Mul (passed, half)\n y = Add (stored_y, halved)")
    report = Report()
    model = build(text, up=normal(3, 10, 6), down=normal(3, 6, 5), half=np.array(0.5, np.float32), **NUMBERS)
    assert raise_and_compare(model, report) == []
    assert "expert 3 is not an MLP, and returns neither zeros nor its token" in report.remarks[0].message
