"""The pass that spells experts as a loop that adds up their results, which onnxruntime runs."""

from __future__ import annotations

import numpy as np
import pytest

from moec.passes import pipeline
from moec.passes.framework.base import Report

from ..before_after import model_of
from .test_use_moe import GATED, D, E, F, cases, layer, operators

NONE = 'gate_layout = "none"'
BY = "accumulate-experts,expand-route"


@pytest.mark.parametrize(
    ("experts", "declared", "weights"),
    [
        (f'{NONE}, activation = "relu2", output_limit = 0.2', GATED["none"], "up, down"),
        (f'{NONE}, activation = "tanh", hidden_sizes = [6, 2, 1, 4, 3]', f"{GATED['none']}, float[{E},{D}] c",
         "up, down, , , c"),
        ('gate_layout = "separate", activation = "sigmoid", limit = 0.5, up_offset = 1.0', GATED["separate"],
         "up, down, gate"),
        ('gate_layout = "interleaved", activation = "gelu_tanh", identity_experts = 1',
         f"{GATED['gate_up']}, float[{E},{2 * F}] b", "up, down, , b"),
        ('gate_layout = "up_gate", weight_on_input = 1, identity_experts = 1', "", "up, down"),
        ("up_transposed = 1, down_transposed = 1", f"float[{E},{D},{2 * F}] up, float[{E},{F},{D}] down", "up, down"),
    ],
)  # fmt: skip
def test_experts(exported, normal, experts, declared, weights):
    """Also with pairs that are dropped, and tokens of no expert."""
    text = layer("k = 3, threshold = 0.15", experts, weights, declared)
    model, report = exported(text, *cases(normal, E + ("identity_experts" in experts)), by=BY)
    assert operators(model) == [] and not report.remarks


@pytest.mark.parametrize(
    "arithmetic",
    ['"bfloat16"', '"int8"', '"int8", activation_group = 3', '"int8", activation_group = 64',
     '"fp8", activation_group = 4'],
)  # fmt: skip
def test_rows_are_rounded_as_the_arithmetic_asks(exported, normal, arithmetic):
    feeds = cases(normal)
    feeds[0]["x"][3] = 0
    broken = {name: array.copy() for name, array in feeds[1].items()}
    broken["x"][0, 1] = np.inf
    model, _ = exported(layer(experts=f"arithmetic = {arithmetic}"), *feeds, broken, by=BY)
    assert operators(model) == []


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("double", 1e-12)])
def test_other_types_of_numbers(exported, normal, dtype, tolerance):
    text = layer("k = 2", "output_limit = 0.5").replace("float[", f"{dtype}[")
    feeds = [{name: array.astype(dtype) for name, array in case.items()} for case in cases(normal)]
    exported(text, *feeds, tolerance=tolerance, by=BY)


def test_a_table_may_name_an_expert_twice(exported, normal):
    text = layer("k = 3").replace("(x, w, e,", "(x, w, s,").replace("y = moec", "s = Gather (table, e) y = moec")
    table = f"{GATED['gate_up']}, int32[{E}] table = {{0, 1, 1, -1, 4}}"
    exported(text.replace(GATED["gate_up"], table), *cases(normal), by=BY)


def test_an_arithmetic_that_onnx_cannot_spell_stays():
    model, report = model_of(layer(experts='arithmetic = "tf32"')), Report()
    pipeline.run(model, pipeline.parse("infer-shapes,accumulate-experts"), report)
    assert operators(model) == ["Route", "Experts"]
    assert [remark.message for remark in report.remarks] == ["stays as it is: ONNX does not round to tf32"]
