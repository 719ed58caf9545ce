"""CausalConvWithState against onnxruntime."""

from __future__ import annotations

import onnx
import pytest

from moec.frontend.onnx.importer import import_model
from moec.passes import pipeline
from moec.passes.framework.base import Report

from .conftest import HEADER

OPERATOR = "com.microsoft.CausalConvWithState"


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("bias", ["", "bias"])
def test_behind_a_state(decompose, normal, length, activation, bias):
    text = f"(float[B,4,L] x, float[B,4,2] past) => (float[B,4,L] y, float[B,4,2] state) {{ y, state = {OPERATOR}"
    inputs = {"x": normal(2, 4, length), "past": normal(2, 4, 2)}
    constants = {"w": normal(4, 1, 3)} | ({"bias": normal(4)} if bias else {})
    bias = bias or '""'
    decompose(f'{text} <activation = "{activation}"> (x, w, {bias}, past) }}', inputs, constants)


def test_without_a_state(decompose, normal):
    text = f"(float[B,4,L] x) => (float[B,4,L] y, float[B,4,2] state) {{ y, state = {OPERATOR} (x, w) }}"
    decompose(text, {"x": normal(2, 4, 5)}, {"w": normal(4, 1, 3)})


@pytest.mark.parametrize("past", ["", ", past"])
def test_channels_last(decompose, normal, past):
    text = "(float[B,L,4] x, float[B,2,4] past) => (float[B,L,4] y, float[B,2,4] state)"
    node = f'y, state = {OPERATOR} <channels_last = 1, activation = "silu"> (x, w, bias{past})'
    inputs, constants = {"x": normal(2, 5, 4), "past": normal(2, 2, 4)}, {"w": normal(4, 1, 3), "bias": normal(4)}
    decompose(f"{text} {{ {node} }}", inputs, constants)


@pytest.mark.parametrize("weight", ["float[4,1,K] w", "float[4,3] w"])
def test_a_weight_of_unknown_or_other_shape_is_left_alone(weight):
    text = f"(float[B,4,L] x, {weight}) => (float[B,4,L] y, float[B,4,S] state) {{ y, state = {OPERATOR} (x, w) }}"
    model, report = import_model(onnx.parser.parse_model(HEADER + text)), Report()
    pipeline.run(model, pipeline.parse("decompose-contrib"), report)
    assert [node.op_type for node in model.graph] == ["CausalConvWithState"]
    assert "the shape of weight is not known; expected [channels, 1, taps]" in report.remarks[0].message


def test_one_tap_has_no_state(decompose, normal):
    text = f"(float[B,4,L] x) => (float[B,4,L] y, float[B,4,0] state) {{ y, state = {OPERATOR} (x, w) }}"
    decompose(text, {"x": normal(2, 4, 5)}, {"w": normal(4, 1, 1)})
