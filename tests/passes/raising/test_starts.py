"""Blocks whose y starts from something: the result of a shared expert, or the residual."""

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, spec_of
from moec.passes.framework.base import Report

SHARED = """
    shared_h = MatMul (x, shared_up)
    shared_a = Relu (shared_h)
    {result} = MatMul (shared_a, shared_down)
"""
ZEROS = "x_shape = Shape (x)\n    y_0 = ConstantOfShape (x_shape)"
ONE_OF_FIVE = """
    h_{e} = Gemm <transB = 1> (x, up_{e}, up_bias_{e})
    a_{e} = Gelu (h_{e})
    o_{e} = Gemm <transB = 1> (a_{e}, down_{e}, down_bias_{e})
"""


@pytest.fixture
def shared(normal):
    return {"shared_up": normal(6, 7), "shared_down": normal(7, 6)}


def started(texts, start):
    assert ZEROS in texts["loop"]
    return texts["loop"].replace(ZEROS, start)


def assert_raised(nodes, report):
    assert [node.op_type for node in nodes] == ["Route", "Experts"], [remark.message for remark in report.remarks]
    assert spec_of(nodes[1], ExpertsSpec) == ExpertsSpec("gelu", "none")


@pytest.mark.parametrize("shape", ["T,6", "20,6"])
def test_loops_add_to_the_result_of_a_shared_expert(build, texts, raise_and_compare, shared, shape):
    report, text = Report(), started(texts, SHARED.replace("{result}", "y_0"))
    tokens = (20,) if shape == "20,6" else (0, 1, 7, 40)
    assert_raised(raise_and_compare(build(text, shape, **shared), report, tokens), report)


def test_loops_add_to_the_residual(build, texts, raise_and_compare):
    """The experts read rows that are computed from the start of y."""
    report, text = Report(), started(texts, "y_0 = Identity (x)")
    text = text.replace("MatMul (x, router)", "MatMul (n, router)").replace("(x, token_", "(n, token_")
    model = build("n = LayerNormalization (x, norm)\n" + text, norm=np.ones(6, np.float32))
    assert_raised(raise_and_compare(model, report), report)
    assert [node.op_type for node in model.graph][-1] == "Add"


def test_a_shared_expert_is_one_more_expert_that_all_tokens_get(build, texts, raise_and_compare, shared):
    text = texts["router"] + "shape = Shape (scores)\nzeros = ConstantOfShape (shape)\n"
    text += "routed = ScatterElements <axis = -1> (zeros, chosen, w)\nalways = Slice (scores, zero, one, one)\n"
    text += "nothing = Sub (always, always)\nones = Exp (nothing)\nmixture = Concat <axis = 1> (routed, ones)\n"
    text += "".join(ONE_OF_FIVE.replace("{e}", str(e)) for e in range(4)) + SHARED.replace("{result}", "o_4")
    text += "".join(f"column_{e} = Unsqueeze (o_{e}, one)\n" for e in range(5))
    text += "o = Concat <axis = 1> (column_0, column_1, column_2, column_3, column_4)\n"
    text += 'y = Einsum <equation = "ted,te->td"> (o, mixture)\n'
    report = Report()
    assert_raised(raise_and_compare(build(text, **shared), report), report)


@pytest.mark.parametrize("spoiled", ["y_2 = Clip (sum_2, low, high)", "y_2 = Mul (sum_2, nearly_one)"])
def test_sibling_whose_sum_is_changed_on_the_way_is_refused(build, texts, raise_and_compare, shared, spoiled):
    text = started(texts, SHARED.replace("{result}", "y_0"))
    text = text.replace('y_2 = ScatterND <reduction = "add"> ', 'sum_2 = ScatterND <reduction = "add"> ')
    text = text.replace("hit_2 = ", f"{spoiled}\nhit_2 = ", 1)
    numbers = {"low": np.float32(-100), "high": np.float32(100), "nearly_one": np.float32(1 + 1e-6)}
    report = Report()
    assert raise_and_compare(build(text, **shared, **numbers), report) == []
    assert report.remarks[0].severity == "warning"
