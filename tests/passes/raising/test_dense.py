"""Dense experts: every expert on every token, and mostly-zero weights."""

import re

import numpy as np

from moec.ir.dialect import ExpertsSpec, RouteSpec, spec_of
from moec.passes.framework.base import Report


def test_stacked_einsum(build, texts, normal, raise_and_compare):
    route, experts = raise_and_compare(build(texts["dense"], up=normal(4, 6, 5), down=normal(4, 5, 6)))
    assert spec_of(route, RouteSpec) == RouteSpec(k=2, normalize=True)
    assert spec_of(experts, ExpertsSpec) == ExpertsSpec("relu", "none", up_transposed=True, down_transposed=True)


def test_weights_with_their_experts_along_another_axis_of_equal_size(build, texts, normal, raise_and_compare):
    """down is [f,E,d] with f = E: stored, it has the shape of [E,f,d] and not its meaning."""
    text = texts["dense"].replace("tef,efd->ted", "tef,fed->ted")
    _, experts = raise_and_compare(build(text, up=normal(4, 6, 4), down=normal(4, 4, 6)))
    assert spec_of(experts, ExpertsSpec) == ExpertsSpec("relu", "none", up_transposed=True, down_transposed=True)


def flat(texts, product="all = Gemm <transB = 1> (x, up)"):
    """One product with the rows of all experts, whose result is split into experts."""
    return re.sub(r"h = Einsum .* \(x, up\)", f"{product}\nh = Reshape (all, by_expert)", texts["dense"])


def test_rows_of_all_experts_in_one_matrix(build, texts, normal, raise_and_compare):
    model = build(flat(texts), up=normal(20, 6), down=normal(4, 5, 6), by_expert=np.array([-1, 4, 5]))
    _, experts = raise_and_compare(model)
    assert spec_of(experts, ExpertsSpec) == ExpertsSpec("relu", "none", down_transposed=True)


def test_hidden_units_times_weights_are_no_weights_of_places(build, texts, normal, raise_and_compare):
    """Two products with the matrices of all experts; between them, hidden units [T,E,f] of which none is negative."""
    biased = "biased = Add (logits, bias)\n scores = Softmax <axis = -1> (biased)"
    text = texts["dense"].partition("h = Einsum")[0].replace("scores = Softmax <axis = -1> (logits)", biased)
    text += """all = Gemm <transB = 1> (x, up, up_biases)
        positive = Relu (all)
        a = Reshape (positive, by_expert)
        column = Unsqueeze (mixture, minus_one)
        weighed = Mul (a, column)
        units = Reshape (weighed, by_unit)
        y = MatMul (units, down)"""
    sizes = {"by_expert": np.array([-1, 4, 5]), "by_unit": np.array([-1, 20])}
    route, _ = raise_and_compare(build(text, up=normal(20, 6), up_biases=normal(20), down=normal(20, 6), **sizes))
    assert spec_of(route, RouteSpec) == RouteSpec(k=2, normalize=True)


def test_a_row_that_no_expert_has_is_left_out(build, texts, normal, raise_and_compare):
    text = flat(texts, "more = Gemm <transB = 1> (x, up)\nall = Slice (more, zero, end, one)")
    arrays = {"up": normal(21, 6), "down": normal(4, 5, 6), "by_expert": np.array([-1, 4, 5]), "end": np.array([20])}
    _, experts = raise_and_compare(build(text, **arrays))
    np.testing.assert_array_equal(experts.inputs[3].const_value.numpy(), arrays["up"][:20].reshape(4, 5, 6))


def test_sibling_without_a_row_for_every_expert_stays(build, texts, normal, raise_and_compare):
    """Two experts have a hidden unit in common."""
    text = flat(texts, "fewer = Gemm <transB = 1> (x, up)\nall = Gather <axis = 1> (fewer, rows_of_units)")
    rows = np.array([*range(19), 0])
    arrays = {"up": normal(19, 6), "down": normal(4, 5, 6), "by_expert": np.array([-1, 4, 5]), "rows_of_units": rows}
    report = Report()
    assert raise_and_compare(build(text, **arrays), report) == []
    assert "its 19 hidden units cannot be divided equally among 4 experts" in report.remarks[0].message


def test_block_of_rank_three(build, texts, normal, raise_and_compare):
    text = texts["dense"].replace("td,edf->tef", "btd,edf->btef").replace("tef,efd->ted", "btef,efd->bted")
    text = text.replace("ted,te->td", "bted,bte->btd")
    model = build(text, "B,T,6", up=normal(4, 6, 5), down=normal(4, 5, 6))
    assert [node.op_type for node in raise_and_compare(model)] == ["Route", "Experts"]


def test_residual_sum_stays_outside(build, texts, normal, raise_and_compare):
    text = texts["dense"].replace("y = Einsum", "block = Einsum") + "y = Add (x, block)\n"
    model = build(text, up=normal(4, 6, 5), down=normal(4, 5, 6))
    assert len(raise_and_compare(model)) == 2
    assert model.graph.outputs[0].producer().op_type == "Add"


def test_sibling_that_samples_has_no_block(build, raise_and_compare):
    text = "values, found = TopK <axis = -1> (x, k)\n p = Softmax (values)\n shape = Shape (x)\n"
    text += "zeros = ConstantOfShape (shape)\n y = ScatterElements <axis = -1> (zeros, found, p)\n"
    report = Report()
    assert raise_and_compare(build(text), report, tokens=(1, 7)) == []
    assert report.remarks == [], "a selection that has nothing to do with experts is not worth a remark"


def test_a_result_of_another_rank_than_the_tokens_has_its_own_shape(build, texts, normal, raise_and_compare):
    """Weights of a token are a row that multiplies its experts' results: y is [T,1,d], and is reshaped after that."""
    text = texts["dense"].replace("y = Einsum", "unused = Einsum")
    text += "row = Unsqueeze (mixture, one)\n product = MatMul (row, o)\n y = Squeeze (product, one)"
    route, _ = raise_and_compare(build(text, up=normal(4, 6, 5), down=normal(4, 5, 6)))
    assert spec_of(route, RouteSpec) == RouteSpec(k=2, normalize=True)
    text = text.replace("td,edf->tef", "btd,edf->btef").replace("tef,efd->ted", "btef,efd->bted")
    text = text.replace("unused", "none").replace("ted,te->td", "bted,bte->btd").replace(", one)", ", two)")
    raise_and_compare(build(text, "B,T,6", up=normal(4, 6, 5), down=normal(4, 5, 6)))
