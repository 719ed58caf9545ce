from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.common.jobs import JobRunner
from moec.ir.dialect import ExpertsSpec, ProductSpec, spec_of
from moec.ir.interpreter import run
from moec.ir.text import parse_model, print_model
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stored import weight_runs
from moec.passes.framework.base import Report
from moec.passes.pipeline import parse, print_pipeline
from moec.passes.pipeline import run as run_pipeline
from moec.passes.weights.choice import quantize_activations
from moec.passes.weights.store import set_arithmetic

from ..executors import Pickling
from .before_after import check, model_of
from .profiles import write_experts
from .stored_weights import (
    D,
    E,
    apply,
    expert_arrays,
    experts_model,
    formats_of,
    last_moec_node,
    relative_error,
)

GATED, PLAIN = ExpertsSpec(), ExpertsSpec("relu", "none", up_transposed=True)
SEPARATE = ExpertsSpec("gelu", "separate", down_transposed=True)
BOUNDS = {"int8": 0.03, "int4": 0.25, "int4,group=0": 0.3, "int4,zero_points=true": 0.25, "mxfp4": 0.3, "nvfp4": 0.25}
"""Largest relative error of the output that Gaussian weights may have."""


@pytest.mark.parametrize("spec", [GATED, PLAIN, SEPARATE], ids=["gated", "plain", "separate"])
@pytest.mark.parametrize("form", BOUNDS)
def test_the_layer_stays_within_the_bound_of_the_format(form: str, spec: ExpertsSpec) -> None:
    model, before = experts_model(spec), experts_model(spec)
    report = apply(model, f"quantize-experts{{format={form}}}")
    assert 0 < relative_error(model, before) < BOUNDS[form]
    assert relative_error(model, before, T=0) == 0
    (loss,) = report.losses
    assert 0 < loss.weight_error < BOUNDS[form] and 0 < loss.output_error < BOUNDS[form]
    assert (loss.layer, loss.arithmetic) == ("layer", "int8") and not report.remarks
    assert spec_of(last_moec_node(model), ExpertsSpec).activation_group == {"mxfp4": 32, "nvfp4": 16}.get(form, 64)
    assert not {"up", "down", "gate"} & set(model.graph.initializers), "the float weights are gone"


def test_runs_of_experts_with_different_formats_are_joined() -> None:
    signature = "(float[T,64] x, float[T,4] logits) => (float[T,64] y)"
    check(
        "quantize-experts{format=int8,down=keep,experts=0-1}",
        f"{signature} <float[4,128,64] up, float[4,64,64] down> {{ y = moec.MoE <k = 2> (x, logits, , up, down) }}",
        f"""{signature} <int8[2,128,64] up_int8, float[2,128,1] up_int8_scale, float[2,128,64] up_float32,
            float[4,64,64] down> {{
            up_decoded = DequantizeLinear <axis = 2, block_size = 64, output_dtype = 1> (up_int8, up_int8_scale)
            up_stored = Concat <axis = 0> (up_decoded, up_float32)
            y = moec.MoE <k = 2> (x, logits, , up_stored, down) }}""",
    )


def test_what_is_calibrated_is_stored_like_what_is_not(tmp_path) -> None:
    before = """(float[T,64] x, float[T,4] logits) => (float[T,64] y) <float[4,128,64] up, float[4,64,64] down> {
        y = moec.MoE <k = 2> (x, logits, , up, down) }"""
    profile = write_experts(tmp_path / "p", model_of(before), [500] * 4)
    check(
        f"quantize-experts{{format=int4,group=32,zero_points=true,down=keep,method=gptq,profile={profile}}}",
        before,
        """(float[T,64] x, float[T,4] logits) => (float[T,64] y) <uint4[4,128,64] up_int4,
            float16[4,128,2] up_int4_scale, uint4[4,128,2] up_int4_zero_point, float[4,64,64] down> {
            up_decoded = DequantizeLinear <axis = 2, block_size = 32, output_dtype = 1>
                (up_int4, up_int4_scale, up_int4_zero_point)
            y = moec.MoE <k = 2> (x, logits, , up_decoded, down) }""",
    )


@pytest.mark.parametrize(
    "options",
    ["format=int4,experts=1-3", "format=int4,group=32,super_group=64,minima=true", "method=gptq", "method=awq"],
)
def test_experts_that_jobs_encode_are_the_same(options: str, tmp_path) -> None:
    if "method" in options:
        options += f",format=int4,profile={write_experts(tmp_path / 'p', experts_model(GATED), [500] * E)}"
    here, elsewhere, asked = experts_model(GATED), experts_model(GATED), parse(f"quantize-experts{{{options}}}")
    run_pipeline(here, asked, Report())
    with Pickling() as executor:
        run_pipeline(elsewhere, asked, Report(jobs=JobRunner(executor, 2)))
    assert executor.submitted == 2 * (3 if "experts=" in options else E)
    assert print_model(here) == print_model(elsewhere)


def test_an_expert_that_a_job_cannot_encode_is_named() -> None:
    arrays = expert_arrays(GATED)
    arrays["down"][3, 0, 0] = np.inf
    with (
        Pickling() as executor,
        pytest.raises(MoecError, match=r"^node layer: weight down of expert 3: it holds an infinity or a NaN"),
    ):
        passes = parse("quantize-experts{format=int4}")
        passes[0].apply(experts_model(GATED, arrays), Report(jobs=JobRunner(executor, 2)))


def test_a_node_without_experts_stays() -> None:
    check("quantize-experts{format=int4}", "(float[T,6] x) => (float[T,4] y) <float[6,4] w> { y = MatMul (x, w) }")


def test_what_the_report_says_is_what_the_weights_lost() -> None:
    model, arrays = experts_model(GATED), expert_arrays(GATED)
    (loss,) = apply(model, "quantize-experts{format=int4}").losses
    runs = {name: weight_runs(value) for name, value in weight_inputs(last_moec_node(model)).items()}
    stored = {name: np.stack([run.decoded(e) for run in runs[name] for e in range(E)]) for name in ("up", "down")}
    difference = sum(np.square(stored[name] - arrays[name]).sum() for name in stored)
    assert loss.weight_error == pytest.approx((difference / sum(np.square(arrays[n]).sum() for n in stored)) ** 0.5)
    assert loss.formats == {"up": ["int4/64"], "down": ["int4"]}


def test_projections_and_experts_may_differ() -> None:
    model, before = experts_model(SEPARATE), experts_model(SEPARATE)
    apply(model, "quantize-experts{format=int4,group=32,down=int8,gate=keep,experts=0-1+4}")
    some = ["int4/32", "float32", "int4/32", "float32"]
    assert formats_of(model) == {"up": some, "down": ["int8/32", *some[1:2], "int8/32", "float32"], "gate": ["float32"]}
    assert spec_of(last_moec_node(model), ExpertsSpec).arithmetic == "float32", "some weights are not quantised yet"
    assert 0 < relative_error(model, before) < BOUNDS["int4"]
    apply(model, "quantize-experts{format=mxfp4,group=32}")
    assert formats_of(model)["up"] == ["int4/32", "mxfp4", "int4/32", "mxfp4"]
    spec = spec_of(last_moec_node(model), ExpertsSpec)
    assert (spec.arithmetic, spec.activation_group) == ("int8", 32)


def test_activations_have_groups_that_all_groups_of_weights_divide() -> None:
    model = experts_model(GATED)
    apply(model, "quantize-experts{format=int4,group=64,down=keep},quantize-experts{format=mxfp4}")
    assert formats_of(model) == {"up": ["int4/64"], "down": ["mxfp4"]}
    spec = spec_of(last_moec_node(model), ExpertsSpec)
    assert (spec.arithmetic, spec.activation_group) == ("int8", 64)


def test_int4_takes_the_groups_that_other_weights_have() -> None:
    model = experts_model(GATED)
    apply(model, "quantize-experts{format=int4,down=mxfp4,experts=0-2},quantize-experts{format=int4}")
    assert formats_of(model) == {"up": ["int4/32", "int4/32"], "down": ["mxfp4", "int4/32"]}
    assert spec_of(last_moec_node(model), ExpertsSpec).activation_group == 32


def test_products_of_what_was_quantised_before_are_computed_in_int8_too() -> None:
    model = experts_model(GATED)
    apply(model, "quantize-experts{format=int4}")
    set_arithmetic(last_moec_node(model), ProductSpec())
    report = apply(model, "quantize-experts{format=int8}")
    assert all(form.startswith("int4") for forms in formats_of(model).values() for form in forms)
    assert spec_of(last_moec_node(model), ExpertsSpec).arithmetic == "int8"
    (loss,) = report.losses
    assert loss.weight_error == 0 and loss.output_error > 0


def test_quantised_weights_stay_as_they_are() -> None:
    model = experts_model(GATED)
    apply(model, "quantize-experts{format=int8}")
    again = apply(model, "quantize-experts{format=int4}")
    assert formats_of(model) == {"up": ["int8"], "down": ["int8"]}
    assert "nothing to quantise: its weights are up int8, down int8" in again.remarks[0].message
    assert not again.losses


@pytest.mark.parametrize("form, expected", [("int4", "int4/16"), ("int3", "int3/64"), ("mxfp4", "mxfp4")])
def test_weights_take_the_group_of_the_others_if_they_may(form: str, expected: str) -> None:
    model = experts_model(GATED)
    apply(model, f"quantize-experts{{format=int8,group=16,down=keep}},quantize-experts{{format={form}}}")
    assert formats_of(model) == {"up": ["int8/16"], "down": [expected]}


def test_grouped_matmul_is_quantised_too() -> None:
    text = """<ir_version: 11, opset_import: ["" : 24, "moec" : 1]>
        g (float[R,128] x, int32[7] o) => (float[R,8] y)
        <float[6,128,8] w = ["location": "sha256:0000000000000000"]> { y = moec.GroupedMatMul (x, w, o) }"""
    model = parse_model(text)
    weight = np.random.default_rng(0).normal(size=(E, D, 8)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    x, offsets = np.ones((6, D), np.float32), np.array([0, 1, 2, 4, 4, 4, 5], np.int32)
    expected = run(model, {"x": x, "o": offsets})["y"]
    apply(model, "quantize-experts{format=int4}")
    assert formats_of(model) == {"weights": ["int4"]}, "128 inputs are one group of 128"
    actual = run(model, {"x": x, "o": offsets})["y"]
    assert 0 < np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 0.25


def test_float16_layers_keep_their_type() -> None:
    model = experts_model(GATED)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = ir.DataType.FLOAT16
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        half = value.const_value.numpy().astype(np.float16)
        value.const_value, value.dtype = ir.tensor(half, name=name), ir.DataType.FLOAT16
    (loss,) = apply(model, "quantize-experts{format=int8}").losses
    assert loss.output_error < BOUNDS["int8"]
    assert weight_inputs(last_moec_node(model))["up"].dtype == ir.DataType.FLOAT16


def test_weights_from_outside_are_reported() -> None:
    model = experts_model(GATED)
    model.graph.inputs.append(model.graph.initializers.pop("up"))
    report = apply(model, "quantize-experts{format=int8}")
    assert report.remarks[0].severity == "warning"
    assert "not quantised: weight up: is an input of the model" in report.remarks[0].message


def test_a_model_without_experts_is_reported() -> None:
    text = '<ir_version: 11, opset_import: ["" : 24]> g (float[T,8] x) => (float[T,8] y) { y = Relu (x) }'
    assert "no MoE block was raised" in apply(parse_model(text), "quantize-experts{format=int8}").remarks[0].message


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(wrong: float) -> None:
    arrays = expert_arrays(GATED)
    arrays["down"][3, 0, 0] = wrong
    with pytest.raises(MoecError, match="node layer: weight down of expert 3: it holds an infinity or a NaN"):
        apply(experts_model(GATED, arrays), "quantize-experts{format=int4}")


@pytest.mark.parametrize(
    "options, message",
    [
        ("format=int7", "expected one of int8, int6, int5, int4, int3, int2, iq4, mxfp4, nvfp4, fp4, fp8"),
        ("format=int3,group=128", "int3 has groups of 64 or 32, found group=128"),
        ("format=fp8,zero_points=true", "fp8 has no zero points"),
        ("format=nvfp4,method=awq", "scales of two levels are rounded to nearest; expected method=rtn"),
        ("format=nvfp4,group=16,super_group=64", "nvfp4 .* has no scales of two levels"),
        ("format=mxfp4,group=64", "mxfp4 has groups of 32, found group=64"),
        ("format=int4,down=mxfp4,group=128", "mxfp4 has groups of 32"),
        ("format=mxfp4,zero_points=true", "mxfp4 has no zero points"),
        ("format=int8,group=-1", "group is -1"),
        ("format=int8,experts=a-b", "experts='a-b' cannot be read; expected ids and ranges, e.g. 0-3\\+8"),
        ("format=int8,experts=2-6", "names expert 6; there are 6, from 0"),
    ],
)
def test_wrong_options(options: str, message: str) -> None:
    with pytest.raises(MoecError, match=message):
        apply(experts_model(GATED), f"quantize-experts{{{options}}}")


def test_options_are_pipeline_text() -> None:
    text = "quantize-experts{format=int4,group=32,down=int8,experts=0-3+8}"
    assert print_pipeline(parse(text)) == text


@pytest.mark.parametrize(
    ("sizes", "groups", "expected"),
    [
        ([2048, 1024], [0], 128),
        ([2048, 1024], [32], 32),
        ([2880, 2880], [64], 64),
        ([2880, 2880], [0], 192),
        ([2048, 1024], [16], 16),
        ([2048, 1024], [4], 16),
        ([2048, 1024], [12], 12),
        ([120, 96], [6], 6),
        ([120, 100], [10], 20),
        ([2880, 2880], [128], 128),
        ([96, 160], [32], 32),
        ([96, 160], [0], 32),
        ([100, 64], [0], 0),
        ([120, 120], [20], 20),
        ([2048, 1024], [64, 128], 128),
        ([2048, 1024], [0, 64, 128], 0),
        ([128, 96], [64, 32], 0),
    ],
)
def test_activations_share_scales_in_the_best_group_that_fits(sizes, groups, expected) -> None:
    model = experts_model(GATED)
    node = last_moec_node(model)
    quantize_activations(node, {WeightFormat("int4", group) for group in groups}, sizes)
    assert spec_of(node, ExpertsSpec).activation_group == expected


@pytest.mark.parametrize(("asked", "groups"), [(0, [0]), (0, [32]), (64, [0]), (64, [32])])
def test_the_group_of_activations_can_be_asked_for(asked, groups) -> None:
    node = last_moec_node(experts_model(GATED))
    quantize_activations(node, {WeightFormat("int4", group) for group in groups}, [128, 64], asked)
    assert spec_of(node, ExpertsSpec).activation_group == asked


@pytest.mark.parametrize(("asked", "groups"), [(-1, [0]), (48, [0]), (16, [32]), (128, [64])])
def test_a_group_of_activations_that_does_not_fit_is_refused(asked, groups) -> None:
    node = last_moec_node(experts_model(GATED))
    message = f"activation_group is {asked}; expected 0 for one scale per token, or one that divides"
    with pytest.raises(MoecError, match=message):
        quantize_activations(node, {WeightFormat("int4", group) for group in groups}, [128, 64], asked)
