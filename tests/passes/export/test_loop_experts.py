"""The pass that spells experts as a loop, which onnxruntime runs."""

from __future__ import annotations

import pytest

from moec.passes import pipeline
from moec.passes.framework.base import Report

from ...products import sampled, thinned
from ..before_after import model_of
from .test_use_moe import GATED, D, E, F, cases, layer, operators

NONE = 'gate_layout = "none"'


@thinned(
    ("experts", "declared", "weights"),
    [
        ('activation = "gelu"', "", "up, down"),
        (f'{NONE}, activation = "relu2", output_limit = 0.2', GATED["none"], "up, down"),
        (f'{NONE}, activation = "tanh", hidden_sizes = [6, 2, 1, 4, 3]', f"{GATED['none']}, float[{E},{D}] c",
         "up, down, , , c"),
        ('gate_layout = "separate", activation = "sigmoid", limit = 0.5, up_offset = 1.0', GATED["separate"],
         "up, down, gate"),
        ('gate_layout = "interleaved", activation = "gelu_tanh", identity_experts = 1',
         f"{GATED['gate_up']}, float[{E},{2 * F}] b", "up, down, , b"),
        ("weight_on_input = 1", "", "up, down"),
        ("weight_on_input = 1, identity_experts = 1", "", "up, down"),
    ],
    2,
)  # fmt: skip
@thinned("route", ["k = 3, threshold = 0.15", 'k = 2, score = "identity"'], 2)
def test_experts(exported, normal, experts, declared, weights, route):
    """Also with pairs that are dropped, and negative weights."""
    text = layer(route, experts, weights, declared)
    model, report = exported(text, *cases(normal, E + ("identity_experts" in experts)))
    assert operators(model) == [] and [node.op_type for node in model.graph].count("Loop") == 1
    assert [remark.pass_name for remark in report.remarks] == ["use-moe"]


FORMATS = ["int8", "int8/4z", "int6/32", "int5/32z", "int4/4", "int4/3z", "int4", "int3/32", "int2/32z", "mxfp4",
           "nvfp4", "fp4/16", "fp8"]  # fmt: skip


@pytest.mark.parametrize(("form", "size"), sampled(FORMATS, [F, 5], 8))
def test_formats_are_decoded_for_one_expert_at_a_time(exported, normal, form, size):
    """Also with an odd number of weights, whose last one has a byte of its own."""
    name, _, rest = form.partition("/")
    options = f"format={name}" + (f",group={rest.rstrip('z')}" if rest else "")
    options += ",zero_points=true" if "z" in rest else ""
    declared = f"float[{E},{size},{D}] up, float[{E},{D},{size}] down".replace(f",{D}", ",7" if size == 5 else f",{D}")
    text = layer("k = 2", f'{NONE}, activation = "gelu"', declared=declared)
    feeds = cases(normal)
    if size == 5:
        text, feeds = text.replace(f"[T,{D}]", "[T,7]"), [{**case, "x": case["x"][:, :7]} for case in feeds]
    model, report = exported(text, *feeds, passes=f"quantize-experts{{{options}}},keep-rows")
    notes = [remark.message for remark in report.remarks if remark.pass_name == "loop-experts"]
    bits = int(name[3:]) if name.startswith("int") else 8
    assert notes == [f"its weights of {bits} bits are stored in {4 if bits < 4 else 8}"] * (bits not in (4, 8))
    floats = [value.const_value.size for value in model.graph.initializers.values() if value.dtype.name == "FLOAT"]
    assert operators(model) == [] and max(floats) <= max(256, E * size * D // 3)


def test_experts_in_different_formats_have_loops_of_their_own(exported, normal):
    text = layer("k = 2", f'{NONE}, activation = "gelu"', declared=GATED["none"])
    passes = "quantize-experts{format=int8,experts=0-1},keep-rows"
    model, _ = exported(text, *cases(normal), passes=passes)
    assert [node.op_type for node in model.graph].count("Loop") == 2


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("double", 1e-12)])
def test_other_types_of_numbers(exported, normal, dtype, tolerance):
    text = layer("k = 2", "output_limit = 0.5").replace("float[", f"{dtype}[")
    feeds = [{name: array.astype(dtype) for name, array in case.items()} for case in cases(normal)]
    exported(text, *feeds, tolerance=tolerance)


def test_weights_that_are_computed_stay():
    """Weights may be the result of another operator."""
    text = layer().replace("y = moec", "computed = Exp (down) y = moec").replace("up, down)", "up, computed)")
    model, report = model_of(text), Report()
    pipeline.run(model, pipeline.parse("infer-shapes,loop-experts"), report)
    assert [node.op_type for node in model.graph if node.domain] == ["Route", "Experts"]
    (remark,) = report.remarks
    assert remark.severity == "warning" and "is computed by Exp" in remark.message
