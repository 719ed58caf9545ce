"""Expert loops unrolled by an exporter: NonZero, gather, compute, scatter."""

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, spec_of
from moec.passes.framework.base import Report


def test_anonymous_weights_are_stacked(build, texts, raise_and_compare):
    model = build(texts["loop"])
    _, experts = raise_and_compare(model)
    assert spec_of(experts, ExpertsSpec) == ExpertsSpec("gelu", "none")
    assert [tuple(v.shape) for v in experts.inputs[3:] if v is not None] == [(4, 5, 6), (4, 6, 5), (4, 5), (4, 6)]


def test_order_of_the_loop_does_not_matter(build, texts, raise_and_compare):
    _, experts = raise_and_compare(build(texts["shuffled loop"]))
    up = experts.inputs[3].const_value.numpy()
    _, in_order = raise_and_compare(build(texts["loop"]))
    np.testing.assert_array_equal(up, in_order.inputs[3].const_value.numpy())


def test_sibling_with_a_missing_expert_is_raised_with_a_warning(build, texts, raise_and_compare):
    report = Report()
    raised = raise_and_compare(build(texts["loop without expert 3"]), report)
    assert [node.op_type for node in raised] == ["Route", "Dispatch", "GroupedMatMul", "GroupedMatMul", "Combine"]
    (remark,) = report.remarks
    assert remark.severity == "warning"
    assert "of 4 experts expert 3 adds nothing to y; an export by tracing leaves out experts" in remark.message


def test_sibling_that_scatters_without_a_sum_is_refused(build, texts, raise_and_compare):
    report = Report()
    text = texts["loop"].replace('<reduction = "add"> ', "")
    assert raise_and_compare(build(text), report) == []
    assert report.remarks[0].severity == "warning"


@pytest.mark.parametrize("expert", [0, 3])
def test_sibling_with_one_deviating_expert_is_refused(build, texts, raise_and_compare, expert):
    report = Report()
    text = texts["loop"].replace(f"a_{expert} = Gelu", f"a_{expert} = Relu")
    assert raise_and_compare(build(text), report) == []
    assert "differs" in report.remarks[0].message
