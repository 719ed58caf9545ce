"""The share of an error that GPTQ leaves on rows of few directions, and cases without a gain."""

from __future__ import annotations

import pytest

from moec.ir.dialect import ExpertsSpec
from moec.ir.weights.format import WeightFormat
from moec.passes.weights.method_gain import share_left
from moec.profiles import Profile

from ..profiles import write_experts
from ..stored_weights import E, apply, experts_model, last_moec_node

FORMS = [WeightFormat("int8"), WeightFormat("int3", 32)]


@pytest.fixture(scope="module")
def model():
    return experts_model(ExpertsSpec())


def test_gptq_leaves_less_than_rounding_to_nearest(model, tmp_path):
    profile = Profile.read(write_experts(tmp_path / "p", model, [512] * E, counted=True))
    node = last_moec_node(model)
    for operands in (("up",), ("down",)):
        assert 0.05 < share_left(node, profile, operands, FORMS, "gptq") < 0.9
        assert share_left(node, profile, operands, FORMS, "rtn") == 1


def test_without_rows_or_floats_nothing_is_gained(model, tmp_path):
    profile = Profile.read(write_experts(tmp_path / "p", model, [0] * E, counted=True))
    assert share_left(last_moec_node(model), profile, ("up",), FORMS, "gptq") == 1
    quantized = experts_model(ExpertsSpec())
    seen = Profile.read(write_experts(tmp_path / "seen", quantized, [512] * E, counted=True))
    apply(quantized, f"quantize-experts{{format=int8,profile={tmp_path / 'seen'}}}")
    assert share_left(last_moec_node(quantized), seen, ("up",), FORMS, "gptq") == 1
