"""Experts that matter least on data: their selection, changes of routers and metadata, and profiles for later
passes."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec, RouteSpec, inputs_of, spec_of
from moec.ir.origins import origins_of
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.profiles import Profile
from moec.profiles.keys import MEASURED_KEY, measurable

from .before_after import check, model_of
from .profiles import with_measures, write_measured
from .stored_weights import E, apply, expert_arrays, experts_model, last_moec_node

LAYER = """(float[T,8] x, float[T,{count}] logits) => (float[T,8] y)
    <float[{stored},6,8] up, float[{stored},8,6] down, float[{stored},8] down_bias{bias}> {{
    y = moec.MoE <{routing}, activation = "relu", gate_layout = "none"{experts}>
    (x, logits, {name}, up, down, , , down_bias) }}"""
SPECS = [
    ExpertsSpec(),
    ExpertsSpec("relu", "none", up_transposed=True),
    ExpertsSpec("gelu", "separate", down_transposed=True),
    ExpertsSpec(gate_layout="interleaved"),
    ExpertsSpec(hidden_sizes=(64, 55, 40, 64, 16, 64)),
]


def layer(routing: str = "k = 2", *, stored: int = 8, identity: int = 0, bias: str = "") -> ir.Model:
    experts = f", identity_experts = {identity}" if identity else ""
    declared = f", float[{stored + identity}] bias = {{{bias}}}" if bias else ""
    return model_of(
        LAYER.format(
            count=stored + identity, stored=stored, routing=routing, experts=experts,
            bias=declared, name="bias" if bias else "",
        )
    )  # fmt: skip


def profiled(model: ir.Model, path: pathlib.Path, **scores: np.ndarray) -> pathlib.Path:
    """A profile of the model with ``scores`` in the place of measurements."""
    return with_measures(write_measured(path, model, "int8"), scores)


def left(model: ir.Model) -> list[list[int]]:
    """The first ids of the experts that each layer has."""
    results = []
    for node in measurable(model.graph):
        count = inputs_of(node)["down"].shape[0] + spec_of(node, ExpertsSpec).identity_experts
        results.append([first for (first,) in origins_of(node, count).experts])
    return results


def outputs(model: ir.Model, logits: np.ndarray, size: int) -> np.ndarray:
    x = np.random.default_rng(3).standard_normal((len(logits), size), dtype=np.float32)
    return interpreter.run(model, {"x": x, "logits": logits}, dtype=np.float64)["y"]


SALIENCY = np.array([3.0, 1, 8, 2, 9, 7, 6, 100])
MEASURED = np.array([1, 1, 1, 1, 1, 1, 1, 100])


def test_the_least_salient_go_by_the_mean_over_their_tokens(tmp_path):
    model = layer()
    path = profiled(model, tmp_path / "p", saliency=SALIENCY, measured=MEASURED)
    report = apply(model, f"prune-experts{{keep=5,profile={path}}}")
    assert left(model) == [[0, 2, 4, 5, 6]]
    assert origins_of(last_moec_node(model), 5).removed == {
        1: "prune-experts: reap 1, place 1 of 8 from below",
        3: "prune-experts: reap 2, place 3 of 8 from below",
        7: "prune-experts: reap 1, place 1 of 8 from below",
    }
    (remark,) = report.remarks
    assert remark.message.startswith("keeps 5 of 8 experts; without 1, 3, 7, which had ")


def test_the_least_frequent_go(tmp_path):
    model = layer()
    path = profiled(model, tmp_path / "p", count=np.array([5, 1, 2, 9, 9, 9, 9, 0]))
    apply(model, f"prune-experts{{keep=0.625,method=frequency,profile={path}}}")
    assert left(model) == [[0, 3, 4, 5, 6]]
    assert origins_of(last_moec_node(model), 5).removed[7] == "prune-experts: no token came to it"


@pytest.mark.parametrize("method", ["reap", "frequency"])
def test_unreached_experts_go_first(method, tmp_path):
    model = layer()
    path = profiled(model, tmp_path / "p")  # no token came to the last
    apply(model, f"prune-experts{{keep=7,method={method},profile={path}}}")
    assert left(model) == [[0, 1, 2, 3, 4, 5, 6]]


def test_random_needs_no_profile_and_is_repeatable():
    actual = []
    for seed in (0, 0, 1, 2):
        model = layer()
        apply(model, f"prune-experts{{keep=0.5,method=random,seed={seed}}}")
        actual += left(model)
    assert actual[0] == actual[1] and len({tuple(experts) for experts in actual}) == 3


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.gate_layout}{spec.hidden_sizes and ' sizes'}")
@pytest.mark.parametrize("T", [0, 1, 7, 60])
def test_tokens_that_never_chose_them_do_not_miss_them(spec, T, tmp_path):
    model = experts_model(spec)
    path = write_measured(tmp_path / "p", model, "int8")
    logits = np.random.default_rng(T).normal(size=(T, E)).astype(np.float32)
    logits[:, -1] = -30
    logits[:, 3] = -30
    with_measures(path, {"saliency": np.array([1.0, 2, 3, 0.5, 4, 0])})
    before = outputs(model, logits, 128)
    apply(model, f"prune-experts{{keep=4,profile={path}}}")
    assert left(model) == [[0, 1, 2, 4]]
    np.testing.assert_allclose(outputs(model, logits, 128), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("routing", ['k = 2, score = "sigmoid", normalize = 1', 'k = 2, score = "softmax_topk"'])
def test_correction_biases_go_with_their_experts(routing, tmp_path):
    model = layer(routing, bias="0, 1, 2, 3, 4, 5, 6, 7")
    path = profiled(model, tmp_path / "p", saliency=SALIENCY, measured=MEASURED)
    apply(model, f"prune-experts{{keep=5,profile={path}}}")
    assert inputs_of(last_moec_node(model))["correction_bias"].const_value.numpy().tolist() == [0, 2, 4, 5, 6]


def test_every_group_keeps_as_many(tmp_path):
    model = layer('k = 2, score = "sigmoid", groups = 2, groups_kept = 1')
    path = profiled(model, tmp_path / "p", saliency=SALIENCY, measured=MEASURED)
    apply(model, f"prune-experts{{keep=0.75,profile={path}}}")
    assert left(model) == [[0, 2, 3, 4, 5, 6]]
    assert spec_of(last_moec_node(model), RouteSpec).groups == 2


def test_groups_of_unequal_size_are_refused():
    model = layer('k = 2, score = "sigmoid", groups = 2, groups_kept = 1')
    with pytest.raises(MoecError, match=r"cannot keep 5 of 8 experts, of which 2 are chosen in 2 groups; .* is 4"):
        apply(model, "prune-experts{keep=5,method=random}")


def test_identity_experts_stay(tmp_path):
    model = layer(identity=2)
    path = profiled(model, tmp_path / "p", saliency=SALIENCY, measured=MEASURED)
    apply(model, f"prune-experts{{keep=2,profile={path}}}")
    assert left(model) == [[2, 4, 8, 9]]


ROUTER = """(float[T,8] x) => (float[T,8] y) <{matrix}, {bias}, float[{count},6,8] up{s}, float[{count},8,6] down{s}> {{
    logits = Gemm (x, matrix{s}, bias{s})
    w, e = moec.Route <k = 2> (logits)
    y = moec.Experts <activation = "relu", gate_layout = "none"> (x, w, e, up{s}, down{s}) }}"""
ROUTER_BEFORE = ROUTER.format(matrix="float[8,4] matrix", bias="float[4] bias = {0, 1, 2, 3}", count=4, s="")


def test_a_router_loses_its_columns(tmp_path):
    path = write_measured(tmp_path / "p", model_of(ROUTER_BEFORE), "int8")
    with_measures(path, {"saliency": np.array([1.0, 8, 2, 3]), "measured": np.ones(4)})
    after = ROUTER.format(matrix="float[8,3] matrix_used", bias="float[3] bias_used = {1, 2, 3}", count=3, s="_used")
    check(f"infer-shapes,prune-experts{{keep=0.75,profile={path}}}", ROUTER_BEFORE, after)


def test_routing_with_other_users_stays(tmp_path):
    text = ROUTER_BEFORE.replace("(float[T,8] y)", "(float[T,8] y, float[T,2] w)")
    path = write_measured(tmp_path / "p", model_of(text), "int8")
    (remark,) = check(f"infer-shapes,prune-experts{{keep=0.75,profile={path}}}", text)
    assert remark.message == "keeps all experts: 'w' is an output of the model"
    assert remark.severity == "warning"


@pytest.mark.parametrize(
    "routing, reason",
    [
        ("k = 2, capacity = 3", "the capacity of 3 is that of 8 experts"),
        (
            'k = 8, selection = "expert_choice", capacity = 2',
            "experts choose tokens, which then choose among the others",
        ),
    ],
)
def test_layers_that_need_all_experts_stay(routing, reason):
    model = layer(routing)
    report = apply(model, "prune-experts{keep=0.5,method=random}")
    assert [remark.message for remark in report.remarks] == [f"keeps all experts: {reason}"]
    assert inputs_of(last_moec_node(model))["down"].shape[0] == 8


def two_layers() -> ir.Model:
    return model_of(
        """(float[T,8] x, float[T,4] logits, float[T,6] others) => (float[T,8] y)
        <float[4,6,8] up, float[4,8,6] down, float[6,6,8] up2, float[6,8,6] down2> {
        h = moec.MoE <k = 1, activation = "relu", gate_layout = "none"> (x, logits, , up, down)
        y = moec.MoE <k = 2, activation = "relu", gate_layout = "none"> (h, others, , up2, down2) }"""
    )


def of_two_layers(tmp_path: pathlib.Path, first: list[float], second: list[float]) -> tuple[ir.Model, pathlib.Path]:
    model = two_layers()
    scores = ({"saliency": np.array(one), "measured": np.ones(len(one))} for one in (first, second))
    return model, with_measures(write_measured(tmp_path / "p", model, "int8"), *scores)


def test_over_all_layers_the_lowest_go_as_shares_of_their_layer(tmp_path):
    model, path = of_two_layers(tmp_path, [0.9, 1, 1.1, 1], [2, 10, 12, 1, 30, 30])
    apply(model, f"prune-experts{{keep=0.7,per_layer=global,profile={path}}}")
    assert left(model) == [[0, 1, 2, 3], [2, 4, 5]]


def test_over_all_layers_k_experts_stay(tmp_path):
    model, path = of_two_layers(tmp_path, [10, 11, 12, 9], [1, 0.01, 0.01, 0.01, 0.01, 400])
    apply(model, f"prune-experts{{keep=2,per_layer=global,profile={path}}}")
    assert left(model) == [[1, 2], [0, 5]]


def test_layers_are_chosen_by_number(tmp_path):
    for layers, expected in (("1", [4, 3]), ("0+1", [2, 3]), ("0-1", [2, 3]), ("0", [2, 6])):
        model, path = of_two_layers(tmp_path, [10, 11, 12, 9], [1, 2, 3, 4, 5, 6])
        apply(model, f"prune-experts{{keep=0.5,layers={layers},profile={path}}}")
        assert [len(experts) for experts in left(model)] == expected


def test_layer_by_layer_with_the_profile_refreshed(tmp_path):
    """A profile that is refreshed after the first layer was pruned fits both layers, and the first again after another
    pruning."""
    model, path = of_two_layers(tmp_path, [9, 11, 12, 10], [1, 2, 3, 4, 5, 6])
    apply(model, f"prune-experts{{keep=0.75,layers=0,profile={path}}}")
    again = write_measured(tmp_path / "again", model, "int8")
    first, second = (Profile.read(again).experts(node) for node in measurable(model.graph))
    assert (first.experts, second.experts) == (3, 6)
    apply(model, f"prune-experts{{keep=0.5,layers=1,profile={again}}},prune-experts{{keep=2,layers=0,profile={again}}}")
    assert [len(experts) for experts in left(model)] == [2, 3]
    node = next(iter(measurable(model.graph)))
    for known, ids in ((path, left(model)[0]), (again, [[1, 2, 3].index(first) for first in left(model)[0]])):
        profile = Profile.read(known)
        whole = next(profile.all_experts())
        np.testing.assert_array_equal(profile.experts(node).count, whole.count[ids])


def test_later_passes_find_the_experts_that_are_left(tmp_path):
    spec = ExpertsSpec()
    model = experts_model(spec)
    path = write_measured(tmp_path / "p", model, "int8+int4/32", tokens=400)
    with_measures(path, {"saliency": np.array([1.0, 9, 9, 2, 9, 9]), "measured": np.array([1, 8, 8, 1, 8, 8])})
    whole = next(Profile.read(path).all_experts())
    apply(model, f"prune-experts{{keep=4,profile={path}}}")
    measures, kept = Profile.read(path).experts(last_moec_node(model)), left(model)[0]
    assert measures.experts == 4
    for name in ("count", "gate_sum", "hidden", "gate_histogram"):
        np.testing.assert_array_equal(measures.array(name), whole.array(name)[kept])
    np.testing.assert_array_equal(measures.array("pairs"), whole.array("pairs")[np.ix_(kept, kept)])
    np.testing.assert_array_equal(measures.array("sample_gates"), whole.array("sample_gates")[:, kept])
    np.testing.assert_array_equal(measures.array("sample"), whole.array("sample"))
    np.testing.assert_array_equal(measures.error("int8"), whole.error("int8")[kept])
    for place, expert in enumerate(kept):
        np.testing.assert_array_equal(measures.rows(expert=place), whole.rows(expert))
        np.testing.assert_array_equal(measures.moment_hidden(place), whole.moment_hidden(expert))
    before = model.clone()
    for passes in (
        f"quantize-experts{{format=int4,method=gptq,profile={path}}}",
        f"assign-bits{{avg=6,profile={path}}}",
    ):
        quantised = before.clone()
        apply(quantised, passes)
        assert Profile.read(path).experts(last_moec_node(quantised)).experts == 4


def test_metadata_that_names_no_experts_is_refused(tmp_path):
    model = layer()
    path = profiled(model, tmp_path / "p")
    node = last_moec_node(model)
    key = next(Profile.read(path).all_experts()).key
    for text, message in (
        (f"{'0' * 16} {key}:0,8", "names experts"),
        (f"{'0' * 16} {key}:x", "expected keys of layers in profiles"),
        (f"{key}:0,1", "expected keys of layers in profiles"),
        ("", "expected keys of layers in profiles"),
    ):
        node.metadata_props[MEASURED_KEY] = text
        with pytest.raises(MoecError, match=message):
            Profile.read(path).experts(node)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("keep=0", "keep is 0; expected a share of the experts"),
        ("keep=-1", "keep is -1; expected"),
        ("keep=nan", "keep is nan; expected"),
        ("keep=inf", "keep is inf; expected"),
        ("keep=2.5", "keep is 2.5; expected"),
        ("keep=9", "cannot keep 9 of 8 experts.*the nearest possible is 8"),
        ("keep=2", "cannot keep 2 of 8 experts, of which 3 are chosen in 1 group; the nearest possible is 3"),
        ("keep=0.1", "cannot keep 1 of 8 experts.*the nearest possible is 3"),
        ("keep=0.1,per_layer=global", "cannot keep 1 of 8 experts in 1 layers; the nearest possible is 3"),
        ("keep=12,per_layer=global", "cannot keep 12 of 8 experts in 1 layers; the nearest possible is 8"),
        ("keep=0.5,seed=-1", "seed is -1; expected 0 or more"),
        ("keep=0.5,layers=1", "layers is '1'; the model has the layers 0 to 0"),
        ("keep=0.5,layers=1-0", "layers is '1-0'; the model has"),
        ("keep=0.5,layers=a", "layers is 'a'; expected numbers and ranges of layers, such as 0-3[+]7"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(MoecError, match=message):
        apply(layer("k = 3"), f"prune-experts{{{options},method=random}}")


def test_methods_that_use_data_need_a_profile():
    with pytest.raises(MoecError, match="method=reap needs to know what experts do; expected profile=FILE"):
        apply(layer(), "prune-experts{keep=0.5}")


def test_another_model_is_refused(tmp_path):
    path = write_measured(tmp_path / "p", experts_model(ExpertsSpec()), "int8")
    other = experts_model(ExpertsSpec(), expert_arrays(ExpertsSpec(), seed=1))
    with pytest.raises(MoecError, match="nothing was measured of its weights"):
        apply(other, f"prune-experts{{keep=0.5,profile={path}}}")


def test_all_experts_may_stay():
    model = layer()
    report = apply(model, "prune-experts{keep=1,method=random}")
    assert [remark.message for remark in report.remarks] == ["keeps all 8 experts"]


def test_a_model_without_experts_stays():
    model, report = model_of("(float[T] x) => (float[T] y) { y = Relu (x) }"), Report()
    assert not pipeline.run(model, pipeline.parse("prune-experts{keep=0.5,method=random,layers=3}"), report)
    assert [remark.severity for remark in report.remarks] == ["warning"]
