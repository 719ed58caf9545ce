"""The operator com.microsoft.MoE."""

import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec, spec_of
from moec.passes.base import Report

TEXT = """
    logits = MatMul (x, router)
    y = com.microsoft.MoE <k = 2, ATTRIBUTES> (x, logits, fc1, , fc2)
"""


@pytest.mark.parametrize(
    ("attributes", "width", "spec"),
    [
        ('activation_type = "relu"', 5, ExpertsSpec("relu", "none")),
        ('activation_type = "gelu"', 5, ExpertsSpec("gelu_tanh", "none")),
        ('activation_type = "swiglu", swiglu_fusion = 1', 10, ExpertsSpec("silu", "interleaved")),
        ('activation_type = "swiglu", swiglu_fusion = 2', 10, ExpertsSpec("silu", "gate_up")),
    ],
)
def test_activations(build, normal, raise_and_compare, attributes, width, spec):
    model = build(TEXT.replace("ATTRIBUTES", attributes), fc1=normal(4, width, 6), fc2=normal(4, 6, 5))
    route, experts = raise_and_compare(model)
    assert spec_of(route, RouteSpec) == RouteSpec(k=2)
    assert spec_of(experts, ExpertsSpec) == spec


def test_router_renormalises_on_request(build, normal, raise_and_compare):
    text = TEXT.replace("ATTRIBUTES", 'activation_type = "relu", normalize_routing_weights = 1')
    route, _ = raise_and_compare(build(text, fc1=normal(4, 5, 6), fc2=normal(4, 6, 5)))
    assert spec_of(route, RouteSpec).normalize


def test_sibling_with_unknown_activation_stays(build, normal):
    from moec.passes.raise_moe import RaiseMoE

    report = Report()
    model = build(TEXT.replace("ATTRIBUTES", 'activation_type = "mish"'), fc1=normal(4, 5, 6), fc2=normal(4, 6, 5))
    assert not RaiseMoE().apply(model, report)
    assert "'mish'" in report.remarks[0].message


def test_sibling_whose_swiglu_fusion_wants_another_input_stays(build, normal):
    from moec.passes.raise_moe import RaiseMoE

    report = Report()
    text = TEXT.replace("ATTRIBUTES", 'activation_type = "swiglu", swiglu_fusion = 0')
    model = build(text, fc1=normal(4, 5, 6), fc2=normal(4, 6, 5))
    assert not RaiseMoE().apply(model, report)
    assert "swiglu_fusion=0 does not fit fc3 being absent" in report.remarks[0].message
