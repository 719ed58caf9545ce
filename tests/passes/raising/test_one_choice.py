"""Experts of which a token is given to one, without a weight, are raised, whatever chooses."""

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec, spec_of
from moec.passes.framework.base import Report

IDS = """logits = MatMul (x, router)
    best = ArgMax <axis = -1, keepdims = 0> (logits)
    picked = Gather <axis = 0> (table, best)
"""
GATHERED = """ups = Gather <axis = 0> (up, picked)
    downs = Gather <axis = 0> (down, picked)
    h = Einsum <equation = "td,tdf->tf"> (x, ups)
    a = Relu (h)
    y = Einsum <equation = "tf,tfd->td"> (a, downs)
"""
FLAGS = """logits = MatMul (x, router)
    best = ArgMax <axis = -1, keepdims = 0> (logits)
    hot = OneHot (best, depth, off_on)
    counted = CumSum (hot, scalar_zero)
    fits = LessOrEqual (counted, places)
    fitting = Cast <to = 7> (fits)
    kept = Mul (hot, fitting)
    flags = Cast <to = 9> (kept)
"""
KEPT = """flag_{e} = Gather <axis = 1> (flags, expert_{e})
    column_{e} = Unsqueeze (flag_{e}, minus_one)
    h_{e} = Gemm <transB = 1> (x, up_{e}, up_bias_{e})
    a_{e} = Relu (h_{e})
    o_{e} = Gemm <transB = 1> (a_{e}, down_{e}, down_bias_{e})
    y_{n} = Where (column_{e}, o_{e}, y_{e})
"""
LIMITS = {"depth": np.array(4), "off_on": np.array([0, 1]), "places": np.array(3)}
ONE = RouteSpec(1, "softmax_topk")


def test_experts_of_a_table_are_raised(build, normal, raise_and_compare):
    report = Report()
    model = build(IDS + GATHERED, up=normal(4, 6, 5), down=normal(4, 5, 6), table=np.array([3, 1, 1, 0]))
    route, experts = raise_and_compare(model, report)
    assert spec_of(route, RouteSpec) == ONE and spec_of(experts, ExpertsSpec).activation == "relu"
    assert "it gives a token to one expert, whose result has no weight" in report.remarks[0].message


@pytest.mark.parametrize("keepdims", [0, 1])
def test_experts_of_the_largest_logit_are_raised(build, raise_and_compare, keepdims):
    """Each computes every token, and the result of the chosen one is taken as it is."""
    best = FLAGS.partition("hot =")[0].replace("keepdims = 0", f"keepdims = {keepdims}")
    column = "Identity (flag_{e})" if keepdims else "Unsqueeze (flag_{e}, minus_one)"
    _, _, behind = KEPT.partition("minus_one)")
    expert = f"flag_{{e}} = Equal (best, expert_{{e}})\n column_{{e}} = {column}{behind}"
    body = "".join(expert.replace("{e}", str(e)).replace("{n}", str(e + 1)) for e in range(4))
    text = f"{best} shape = Shape (x)\n y_0 = ConstantOfShape (shape)\n{body} y = Identity (y_4)"
    route, _ = raise_and_compare(build(text))
    assert spec_of(route, RouteSpec) == ONE


def test_sibling_whose_ids_may_be_beyond_the_experts_stays(build, normal, raise_and_compare):
    """ONNX leaves the result for such ids open."""
    text = IDS.replace("picked = Gather", "more = Gather") + "picked = Add (more, best)\n" + GATHERED
    model = build(text, up=normal(7, 6, 5), down=normal(7, 5, 6), table=np.array([3, 1, 1, -1]))
    assert raise_and_compare(model) == []


@pytest.mark.parametrize("first", ["x", "zeros"])
def test_tokens_without_a_place_go_on_as_they_are_or_as_zeros(build, raise_and_compare, first):
    start = "y_0 = Identity (x)" if first == "x" else "shape = Shape (x)\n y_0 = ConstantOfShape (shape)"
    body = "".join(KEPT.replace("{e}", str(e)).replace("{n}", str(e + 1)) for e in range(4))
    nodes = raise_and_compare(build(f"{FLAGS}{start}\n{body} y = Identity (y_4)", **LIMITS))
    assert spec_of(nodes[0], RouteSpec) == ONE and len(nodes) > 1


def test_sibling_of_several_experts_per_token_stays(build, raise_and_compare):
    """The last of them would be the one that counts."""
    text = FLAGS.replace("Mul (hot, fitting)", "Max (hot, fitting)") + "y_0 = Identity (x)\n"
    body = "".join(KEPT.replace("{e}", str(e)).replace("{n}", str(e + 1)) for e in range(4))
    assert raise_and_compare(build(f"{text}{body} y = Identity (y_4)", **LIMITS)) == []
