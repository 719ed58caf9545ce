from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import MoecError
from moec.ir.dialect import ExpertsSpec, spec_of
from moec.ir.interpreter import run
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stored import StoredWeight
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.weights.bits import WeightBudget, items_of, least_error
from moec.passes.weights.sensitivities import sensitivities_text
from moec.placing.plan import ExpertPlan, LayerPlan
from moec.profiles import Profile
from moec.profiles.keys import key_of
from moec.profiles.measures import PRIOR_SHARE

from ..products import sampled, thinned
from .before_after import model_of
from .profiles import rows_of, write_measured
from .stored_weights import D, E, F, apply, experts_model, last_moec_node, relative_error

FORMATS = "int8+int4/32+int3/32+int2/32"
SPECS = [ExpertsSpec(), ExpertsSpec("relu", "none", up_transposed=True), ExpertsSpec("gelu", "separate")]
NAMES = ["gated", "plain", "separate"]
compiled_spec = thinned("spec", SPECS, 3, indirect=True, ids=NAMES)
"""Compiling takes most of a test's time: one form of experts always, the others nightly."""


@pytest.fixture(scope="module", params=SPECS, ids=NAMES)
def spec(request: pytest.FixtureRequest) -> ExpertsSpec:
    return request.param


@pytest.fixture(scope="module")
def profile(spec: ExpertsSpec, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_measured(tmp_path_factory.mktemp("profile") / "p", experts_model(spec), FORMATS)


def all_formats(model: ir.Model) -> dict[str, list[str]]:
    """The format of every expert."""
    weights = weight_inputs(last_moec_node(model))
    return {name: [str(form) for form in StoredWeight.of(value).formats] for name, value in weights.items()}


def average_bits(model: ir.Model) -> float:
    """Average bits of an element over all weights."""
    weights = [StoredWeight.of(value) for value in weight_inputs(last_moec_node(model)).values()]
    bits = [(form.elements.bits, np.prod(weight.shape)) for weight in weights for form in weight.formats]
    return float(sum(each * size for each, size in bits) / sum(size for _, size in bits))


@pytest.mark.parametrize("average", [2, 2.5, 3.5, 5, 8])
def test_bits_stay_within_the_average_and_more_lose_less(average, spec, profile):
    model, before = experts_model(spec), experts_model(spec)
    report = apply(model, f"assign-bits{{avg={average},profile={profile},method=rtn}}")
    assert average - 0.75 < average_bits(model) <= average
    assert 0 < relative_error(model, before) < {2: 0.8, 2.5: 0.8, 3.5: 0.5, 5: 0.3, 8: 0.03}[average]
    (loss,) = report.losses
    assert loss.layer == "layer"


def test_gate_and_up_of_an_expert_share_a_format(spec, profile):
    model = experts_model(spec)
    apply(model, f"assign-bits{{avg=3,profile={profile},method=rtn}}")
    formats = all_formats(model)
    assert len(set(formats["up"])) > 1
    assert formats.get("gate", formats["up"]) == formats["up"]


def test_experts_of_a_layer_share_formats_on_request(profile: pathlib.Path, spec: ExpertsSpec) -> None:
    model = experts_model(spec)
    apply(model, f"assign-bits{{avg=4,profile={profile},per_layer=true,method=rtn}}")
    formats = all_formats(model)
    assert all(len(set(of_experts)) == 1 for of_experts in formats.values())
    assert average_bits(model) <= 4 and formats.get("gate", formats["up"]) == formats["up"]


def stored_bytes(model: ir.Model) -> int:
    """Bytes of all weights of the last node with their scales, each in as many bits as its format has."""
    total = 0
    for value in weight_inputs(last_moec_node(model)).values():
        for run_ in StoredWeight.of(value).runs:
            total += run_.count * int(np.prod(run_.shape)) * run_.format.elements.bits
            total += 0 if run_.scale is None else run_.scale.const_value.size * run_.scale.dtype.bitwidth
            zeros = run_.zero_point
            total += 0 if zeros is None else zeros.const_value.size * run_.format.elements.bits
    return total // 8


@pytest.mark.parametrize("megabytes", [0.05, 0.06, 0.08])
def test_bytes_stay_within_the_budget_scales_and_all(megabytes, spec, profile):
    model = experts_model(spec)
    apply(model, f"assign-bits{{megabytes={megabytes},profile={profile},method=rtn}}")
    most = min(megabytes * 1e6, stored_bytes(eight_bits(spec)))
    assert 0.9 * most < stored_bytes(model) <= most


def eight_bits(spec: ExpertsSpec) -> ir.Model:
    model = experts_model(spec)
    apply(model, "quantize-experts{format=int8}")
    return model


def expected_microseconds(model: ir.Model, layer, gigabytes_per_second: float) -> float:
    """The bytes of each expert, scales and all, times its calls per token, over the bandwidth."""
    bits = 0.0
    for value in weight_inputs(last_moec_node(model)).values():
        weight = StoredWeight.of(value)
        elements = int(np.prod(weight.shape)) if len(weight.shape) == 2 else int(np.prod(weight.shape[-2:]))
        for form, calls in zip(weight.formats, layer.count / layer.tokens, strict=True):
            group = form.group or (F if value.name.startswith("down") else D)
            scales = elements // group * {8: 32, 4: 16, 3: 16, 2: 16}[form.elements.bits]
            bits += calls * (elements * form.elements.bits + scales)
    return bits / 8 / gigabytes_per_second / 1e3


@pytest.mark.parametrize("microseconds", [1.6, 2.0, 3.0])
def test_the_predicted_time_stays_within_the_budget(microseconds, spec, profile):
    model, layer = experts_model(spec), next(Profile.read(profile).all_experts())
    reported = f"microseconds={microseconds},gigabytes_per_second=10"
    apply(model, f"assign-bits{{{reported},profile={profile},method=rtn}}")
    most = min(microseconds, expected_microseconds(eight_bits(spec), layer, 10))
    assert 0.85 * most < expected_microseconds(model, layer, 10) <= most


def test_a_faster_memory_leaves_time_for_more_bits(spec, profile):
    actual = []
    for speed in (10, 20):
        model = experts_model(spec)
        apply(model, f"assign-bits{{microseconds=1.6,gigabytes_per_second={speed},profile={profile},method=rtn}}")
        actual.append(average_bits(model))
    assert actual[0] < actual[1]


def test_by_time_an_expert_that_is_never_called_keeps_the_most_bits(spec, profile):
    """Its bits cost no time; by size or on average it gets the fewest."""
    model = experts_model(spec)
    apply(model, f"assign-bits{{microseconds=2,gigabytes_per_second=10,profile={profile},method=rtn}}")
    for formats in all_formats(model).values():
        assert formats[-1] == "int8" and set(formats[:-1]) != {"int8"}


def test_an_infeasible_time_names_the_nearest_that_is_feasible(spec, profile):
    def planned(microseconds: str) -> None:
        reported = f"microseconds={microseconds},gigabytes_per_second=10,profile={profile},method=rtn"
        apply(experts_model(spec), f"assign-bits{{{reported}}}")

    with pytest.raises(
        MoecError, match=r"^microseconds=0.1 cannot be met with .*, as predicted with 10 GB/s"
    ) as refused:
        planned("0.1")
    least = str(refused.value).split("the least is ")[1].split(",")[0]
    planned(least)
    with pytest.raises(MoecError, match="cannot be met"):
        planned(f"{float(least) * 0.998}")


TWO_LAYERS = """(float[T,64] x, float[T,4] logits) => (float[T,64] y)
    <float[4,64,64] up, float[4,64,64] down, float[4,64,64] up2, float[4,64,64] down2> {
        h = moec.MoE <k = 2, activation = "relu", gate_layout = "none"> (x, logits, , up, down)
        y = moec.MoE <k = 2, activation = "relu", gate_layout = "none"> (h, logits, , up2, down2) }"""


def with_sensitivities(folder: pathlib.Path, weights: Sequence[float], layers: int = 2) -> ir.Model:
    """The formats of a model's two layers for errors with these sensitivities."""
    model, path = model_of(TWO_LAYERS), folder / "sensitivities"
    keys = [(key_of(node), str(at)) for at, node in enumerate(model.graph)]
    path.write_text(sensitivities_text(dict(zip(keys[:layers], weights, strict=False))))
    profile = write_measured(folder / "p", model, "int8+int2/32")
    reported = f"avg=5,profile={profile},sensitivities={path},method=rtn"
    apply(model, f"assign-bits{{{reported}}}")
    return model


@pytest.mark.parametrize("first", [True, False])
def test_the_layer_whose_errors_count_more_gets_the_bits(first, tmp_path):
    model = with_sensitivities(tmp_path, (1e6, 1) if first else (1, 1e6))
    bits = [
        np.mean(
            [form.elements.bits for value in weight_inputs(node).values() for form in StoredWeight.of(value).formats]
        )
        for node in model.graph
        if node.op_type == "MoE"
    ]
    assert (bits[0] > 7 and bits[1] < 3) if first else (bits[0] < 3 and bits[1] > 7)


def test_sensitivities_of_another_model_or_without_a_layer_are_refused(spec, profile, tmp_path):
    with pytest.raises(
        MoecError, match=r"sensitivities: node .*: has no weight of this layer \([0-9a-f]{16}\); expected"
    ):
        with_sensitivities(tmp_path, [1], layers=1)
    with pytest.raises(MoecError, match=r"sensitivities: node layer: has no weight of this layer"):
        reported = f"avg=3,profile={profile},sensitivities={tmp_path / 'sensitivities'}"
        apply(experts_model(spec), f"assign-bits{{{reported}}}")


def test_a_negative_sensitivity_is_refused(tmp_path):
    with pytest.raises(MoecError, match=r"layers\[1\].weight is -1; expected a finite number from 0 up"):
        with_sensitivities(tmp_path, (1, -1))


ZERO_POINTS = "int8/32z+int4/32z+int3/32z+int2/32z"


BUDGETS = ["avg=3", "megabytes=0.06", "microseconds=2,gigabytes_per_second=10"]


@pytest.mark.parametrize("budget, method", sampled(BUDGETS, ["rtn", "gptq", "awq"], 5))
@pytest.mark.nightly
def test_formats_with_zero_points(budget, method, tmp_path):
    spec = SPECS[0]
    path = write_measured(tmp_path / "p", experts_model(spec), ZERO_POINTS)
    model = experts_model(spec)
    apply(model, f"assign-bits{{{budget},profile={path},method={method}}}")
    formats = {one for formats in all_formats(model).values() for one in formats}
    assert len(formats) > 1 and formats <= set(ZERO_POINTS.split("+"))
    assert budget != "megabytes=0.06" or 0.9 * 60_000 < stored_bytes(model) <= 60_000
    compiled = moec.compile(experts_model(spec), passes=f"assign-bits{{{budget},profile={path},method={method}}}")
    inputs = {"x": rows_of(D, 33), "logits": np.random.default_rng(0).normal(size=(33, E)).astype(np.float32)}
    np.testing.assert_allclose(compiled.run(inputs)["y"], run(model, inputs)["y"], rtol=1e-3, atol=1e-4)


def test_of_formats_that_cost_the_same_that_with_the_smaller_error_is_taken(tmp_path):
    listed = ["int8", "int4/32z", "int4/32", "int2/32z", "int2/32"]
    path = write_measured(tmp_path / "p", experts_model(SPECS[1]), "+".join(listed))
    model = experts_model(SPECS[1])
    apply(model, f"assign-bits{{avg=4,profile={path},method=rtn}}")
    layer, compared = next(Profile.read(path).all_experts()), 0
    for name, formats in all_formats(model).items():
        for expert, form in enumerate(formats):
            twin = form.removesuffix("z") if form.endswith("z") else f"{form}z"
            if twin in listed:
                taken, other = (layer.total_error(one)[expert, layer.parts.index(name)] for one in (form, twin))
                assert taken <= other
                compared += 1
    assert compared > 4


GROUPS = "int8+int4/32+int4/64+int4/32z+int3/64+int2/32+int2/64+int2/64z"


@pytest.mark.parametrize("megabytes", [0.045, pytest.param(0.06, marks=pytest.mark.nightly)])
def test_groups_and_zero_points_are_chosen_beside_bits(megabytes, tmp_path):
    spec, most = SPECS[1], megabytes * 1e6
    path = write_measured(tmp_path / "p", experts_model(spec), GROUPS)
    passes = f"assign-bits{{megabytes={megabytes},profile={path},formats={GROUPS},method=rtn}}"
    model = experts_model(spec)
    apply(model, passes)
    formats = {WeightFormat.parse(one) for formats in all_formats(model).values() for one in formats}
    assert len({form.group for form in formats} - {0}) == 1 and len({form.elements.bits for form in formats}) > 1
    assert 0.9 * most < stored_bytes(model) <= most
    compiled = moec.compile(experts_model(spec), passes=passes)
    inputs = {"x": rows_of(D, 33), "logits": np.random.default_rng(0).normal(size=(33, E)).astype(np.float32)}
    np.testing.assert_allclose(compiled.run(inputs)["y"], run(model, inputs)["y"], rtol=1e-3, atol=1e-4)


def test_an_average_of_bits_counts_no_groups_which_is_said(tmp_path):
    path = write_measured(tmp_path / "p", experts_model(SPECS[1]), GROUPS)
    notes = []
    for options in (
        f"avg=3,formats={GROUPS}",
        f"avg=3,formats={FORMATS.replace('int3/32', 'int3/64')}",
        f"megabytes=1,formats={GROUPS}",
    ):
        report = Report()
        pipeline.run(
            experts_model(SPECS[1]), pipeline.parse(f"assign-bits{{{options},profile={path},method=rtn}}"), report
        )
        notes.append(any("avg counts no scales" in remark.message for remark in report.remarks))
    assert notes == [True, False, False]


def test_mixed_bits_lose_less_than_even_ones(spec, profile):
    measured = Profile.read(profile)
    layer = next(measured.all_experts())
    forms = [StoredWeight.of(value) for value in weight_inputs(last_moec_node(experts_model(spec))).values()]
    assert len(forms) == len(weight_inputs(last_moec_node(experts_model(spec))))
    model, even = experts_model(spec), experts_model(spec)
    apply(model, f"assign-bits{{avg=3,profile={profile},method=rtn}}")
    apply(even, "quantize-experts{format=int3,group=32}")
    assert error_of(model, layer) < error_of(even, layer)


def error_of(model: ir.Model, layer) -> float:
    """The minimised sum of errors for the formats of a model's experts."""
    total = 0.0
    for name, formats in ((n, StoredWeight.of(v).formats) for n, v in weight_inputs(last_moec_node(model)).items()):
        parts = [part for part in layer.parts if part == name or (name == "up" and "gate" not in weight_inputs(
            last_moec_node(model)) and part == "gate")]  # fmt: skip
        for expert, form in enumerate(formats[:-1]):  # the last sees no token
            error = layer.total_error(str(form))[expert]
            total += sum(error[layer.parts.index(part)] for part in parts)
    return total


def test_an_expert_that_saw_nothing_gets_the_fewest_bits(spec, profile):
    model = experts_model(spec)
    apply(model, f"assign-bits{{avg=3.5,profile={profile},method=rtn}}")
    formats = [StoredWeight.of(value).formats for value in weight_inputs(last_moec_node(model)).values()]
    assert all(one[-1].elements.bits == min(form.elements.bits for form in one) for one in formats)


def test_an_expert_that_saw_nothing_counts_as_if_it_had_seen_a_few_of_the_tokens(profile):
    measured = Profile.read(profile)
    layer = next(measured.all_experts())
    errors = layer.total_error("int3/32")
    assert layer.count[-1] == 0 and layer.error("int3/32")[-1].sum() == 0
    share = errors[-1].sum() / errors[:-1].sum(axis=1).mean()
    assert 0.3 * PRIOR_SHARE < share < 3 * PRIOR_SHARE


def test_a_profile_without_what_stands_for_other_tokens_is_refused(spec, profile):
    node, measured = last_moec_node(experts_model(spec)), Profile.read(profile)
    read = measured.array
    measured.array = lambda name: None if "prior_error" in name else read(name)
    with pytest.raises(MoecError, match="node layer: the profile lacks 'prior_error/int8'; make it anew"):
        items_of([node], measured, [form_of("int8")])


@pytest.mark.nightly
@compiled_spec
def test_formats_without_groups_beside_others_run(spec, tmp_path):
    """Kernels sum up products in one size of groups: activations then have groups of the weights' size."""
    model = experts_model(spec)
    node = last_moec_node(model)
    plan = {name: ["int8", *["int4/32"] * (E - 1)] for name in weight_inputs(node)}
    (tmp_path / "plan.json").write_text(ExpertPlan((LayerPlan(key_of(node), "layer", E, plan),)).text())
    apply(model, f"assign-bits{{plan={tmp_path / 'plan.json'},method=rtn}}")
    assert spec_of(last_moec_node(model), ExpertsSpec).activation_group == 32
    compiled = moec.compile(experts_model(spec), passes=f"assign-bits{{plan={tmp_path / 'plan.json'},method=rtn}}")
    inputs = {"x": rows_of(D, 33), "logits": np.random.default_rng(0).normal(size=(33, E)).astype(np.float32)}
    np.testing.assert_allclose(compiled.run(inputs)["y"], run(model, inputs)["y"], rtol=1e-3, atol=1e-4)


def test_a_plan_is_applied_as_it_is_edited(spec, profile, tmp_path):
    model = experts_model(spec)
    node = last_moec_node(model)
    with_profile = Profile.read(profile)
    forms = [*map(form_of, FORMATS.split("+"))]
    (plan,) = least_error(items_of([node], with_profile, forms), forms, WeightBudget(3.5))
    plan.formats["down"] = ["int8", "keep", *["int4/32z"] * (E - 2)]
    (tmp_path / "plan.json").write_text(ExpertPlan((plan,)).text())
    apply(model, f"assign-bits{{plan={tmp_path / 'plan.json'},method=rtn}}")
    assert all_formats(model)["down"] == ["int8", "float32", *["int4/32z"] * (E - 2)]


def form_of(text: str):
    from moec.passes.framework.shorthand import parse_format

    return parse_format("test", text)


def test_weights_that_are_quantised_stay(spec, profile):
    model = experts_model(spec)
    apply(model, f"quantize-experts{{format=int8,experts=0-2,method=rtn,profile={profile}}}")
    apply(model, f"assign-bits{{avg=2,profile={profile},method=rtn}}")
    assert all(
        all_format == ["int8", "int8", "int8", "int2/32", "int2/32", "int2/32"]
        for all_format in all_formats(model).values()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", r"assign-bits: expected one of avg=BITS, megabytes=SIZE, microseconds=TIME and plan=FILE"),
        ("avg=3", r"assign-bits: .*profile=FILE, which moec profile MODEL"),
        ("avg=3,plan=p", r"assign-bits: expected one of avg=BITS, megabytes=SIZE, microseconds=TIME and plan=FILE"),
        (
            "megabytes=1,microseconds=1,profile={profile}",
            r"expected one of avg=BITS, megabytes=SIZE, microseconds=TIME",
        ),
        ("microseconds=0,profile={profile}", r"^microseconds is 0; expected a number above 0$"),
        ("microseconds=-1,profile={profile}", r"^microseconds is -1; expected a number above 0$"),
        ("microseconds=nan,profile={profile}", r"^microseconds is nan; expected a number above 0$"),
        ("microseconds=1,gigabytes_per_second=0,profile={profile}", r"^gigabytes_per_second is 0; expected a number"),
        ("microseconds=1,gigabytes_per_second=nan,profile={profile}", r"^gigabytes_per_second is nan; expected a"),
        ("microseconds=1,gigabytes_per_second=1e-320,profile={profile}", r"cannot be met with .*; the least is inf"),
        ("megabytes=-1,profile={profile}", r"^megabytes is -1; expected a number above 0$"),
        ("avg=1.5,profile={profile}", r"avg=1.5 cannot be met with int8\+int4/32\+int3/32\+int2/32; the least is 2"),
        ("avg=nan,profile={profile}", r"^avg is nan; expected a number above 0$"),
        ("megabytes=inf,profile={profile}", r"^megabytes is inf; expected a number above 0$"),
        ("avg=6,profile={profile},formats=int8", r"^avg=6 cannot be met with int8; the least is 8$"),
        ("avg=3,megabytes=1,profile={profile}", r"assign-bits: expected one of avg=BITS, megabytes=SIZE"),
        ("megabytes=0.02,profile={profile}", r"megabytes=0.02 cannot be met with .*; the least is 0.0\d+"),
        ("avg=3,profile={profile},formats=mxfp4", r"holds no errors of mxfp4, only of int8, int4/32, int3/32, int2/32"),
        ("avg=3,profile={profile},formats=int7", r"formats: no format 'int7'"),
        ("plan={profile},method=rtn", r"is not JSON|cannot be read"),
        ("avg=3,profile=nothing.moeprof", r"nothing.moeprof: cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_refused(options, message, spec, profile):
    with pytest.raises(MoecError, match=message):
        apply(experts_model(spec), f"assign-bits{{{options.format(profile=profile)}}}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda layer: layer["formats"].update(up=["int8"]),
            r"formats.up has 1 formats for 6 experts; give",
        ),
        (lambda layer: layer["formats"].update(gates=["int8"] * 6), r"has no weight 'gates'; expected up or down"),
        (lambda layer: layer["formats"].update(up=["int9"] * 6), r"up: no format 'int9'; expected int8, int6"),
        (lambda layer: layer["formats"].update(up=["fp16"] * 6), r"up: no format 'fp16'; expected int8, int6"),
        (lambda layer: layer.update(layer="f" * 16), r"layer f{16} \(layer\) is not in this model"),
    ],
)
def test_a_plan_that_was_edited_wrongly_is_refused(change, message, tmp_path):
    model = experts_model(SPECS[0])
    layer = {"layer": key_of(last_moec_node(model)), "name": "layer", "experts": 6, "formats": {"up": ["int8"] * 6}}
    change(layer)
    (tmp_path / "plan.json").write_text(json.dumps({"version": 2, "layers": [layer]}))
    with pytest.raises(MoecError, match=message):
        apply(model, f"assign-bits{{plan={tmp_path / 'plan.json'},method=rtn}}")


def test_a_profile_of_another_model_is_refused(spec, profile):
    model = experts_model(spec)
    down = weight_inputs(last_moec_node(model))["down"]
    down.const_value = ir.tensor(-down.const_value.numpy())
    with pytest.raises(MoecError, match="node layer: nothing was measured of its weights"):
        apply(model, f"assign-bits{{avg=3,profile={profile}}}")


def test_weights_that_no_format_holds_are_named(spec, profile):
    node, measured = last_moec_node(experts_model(spec)), Profile.read(profile)
    damaged = np.full((E, len(next(measured.all_experts()).parts)), np.nan)
    read = measured.array
    measured.array = lambda name: damaged if "error/" in name else read(name)
    forms = [form_of("int8")]
    with pytest.raises(MoecError, match=r"node layer: weight up.* of expert 0: has no finite error in any of int8;"):
        least_error(items_of([node], measured, forms), forms, WeightBudget(8))


def test_a_model_without_experts_stays(profile):
    text = f"assign-bits{{avg=3,profile={profile}}}"
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="g"), ir_version=11)
    assert not pipeline.run(model, pipeline.parse(text))
