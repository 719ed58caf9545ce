"""Experts that become one: their selection, exact averages of equal experts, and all that has to stay."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec, RouteSpec, inputs_of, spec_of
from moec.ir.origins import origins_of
from moec.ir.weights.stacks import ExpertStack
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.profiles import Profile
from moec.profiles.keys import measurable

from .before_after import check, model_of
from .profiles import with_measures, write_measured
from .stored_weights import D, E, F, apply, expert_arrays, experts_model, formats_of, last_moec_node

SPECS = [
    ExpertsSpec(),
    ExpertsSpec("relu", "none", up_transposed=True),
    ExpertsSpec("gelu", "separate", down_transposed=True),
    ExpertsSpec(gate_layout="interleaved", up_transposed=True),
    ExpertsSpec("gelu", "up_gate"),
    ExpertsSpec("gelu", "none", hidden_sizes=(64, 55, 40, 64, 16, 64)),
    ExpertsSpec(hidden_sizes=(64, 55, 40, 64, 16, 64), gate_layout="interleaved", down_transposed=True),
]
every_layout = pytest.mark.parametrize(
    "spec", SPECS, ids=lambda spec: f"{spec.activation} {spec.gate_layout}{spec.hidden_sizes and ' of several sizes'}"
)
EVENLY = {"saliency": np.arange(6, 0, -1.0), "measured": np.ones(6), "count": np.arange(6, 0, -1)}


def of_units(spec: ExpertsSpec, name: str) -> tuple[int, bool]:
    """The axis of the hidden units in an operand's part of one expert, and whether it holds gate and up."""
    if name == "down":
        return (0 if spec.down_transposed else 1), False
    return (1 if spec.up_transposed and not name.endswith("bias") else 0), spec.fused


def permuted(spec: ExpertsSpec, arrays: dict[str, np.ndarray], expert: int, order: np.ndarray) -> dict[str, np.ndarray]:
    """The weights of an expert with its hidden units in another order; the same function."""
    results = {}
    for name, array in arrays.items():
        axis, both = of_units(spec, name)
        if name == "down_bias":
            results[name] = array[expert]
            continue
        positions = order
        if both and spec.gate_layout == "interleaved":
            positions = np.stack([2 * order, 2 * order + 1], axis=1).ravel()
        elif both:
            positions = np.concatenate([order, F + order])
        results[name] = np.take(array[expert], positions, axis)
    return results


def with_copies(spec: ExpertsSpec, copies: dict[int, int]) -> ir.Model:
    """A layer in which experts are copies of others, each with its units in an order of its own."""
    arrays, random = expert_arrays(spec), np.random.default_rng(5)
    for copy, of in copies.items():
        own = spec.hidden_sizes[of] if spec.hidden_sizes else F
        order = np.concatenate([random.permutation(own), np.arange(own, F)])
        for name, array in permuted(spec, arrays, of, order).items():
            arrays[name][copy] = array
        units = np.moveaxis(arrays["down"][copy], 0 if spec.down_transposed else 1, 0)
        units[own:] = 0  # the copy may have more units
    return experts_model(spec, arrays)


def outputs(model: ir.Model, logits: np.ndarray) -> np.ndarray:
    """The model's outputs in float64."""
    x = np.random.default_rng(3).standard_normal((len(logits), model.graph.inputs[0].shape[1]), dtype=np.float32)
    return interpreter.run(model, {"x": x, "logits": logits}, dtype=np.float64)["y"]


def logits_of(T: int, absent: tuple[int, ...] = ()) -> np.ndarray:
    logits = np.random.default_rng(T).normal(size=(T, E)).astype(np.float32)
    logits[:, absent] = -40
    return logits


def merged(model: ir.Model, tmp_path: pathlib.Path, options: str, **measures: np.ndarray) -> Report:
    path = with_measures(write_measured(tmp_path / "p", model, "int8"), {**EVENLY, **measures})
    return apply(model, f"merge-experts{{{options},profile={path}}}")


def became(model: ir.Model) -> list[tuple[int, ...]]:
    node = last_moec_node(model)
    return list(origins_of(node, inputs_of(node)["down"].shape[0]).experts)


@every_layout
def test_a_centroid_that_takes_up_a_permuted_copy_stays_as_it_was(spec, tmp_path):
    model = with_copies(spec, {5: 0})
    arrays = expert_arrays(spec)
    before = [outputs(model, logits_of(T, (5,))) for T in (0, 1, 7, 60)]
    merged(model, tmp_path, "keep=5")
    assert became(model) == [(0, 5), (1,), (2,), (3,), (4,)]
    for T, expected in zip((0, 1, 7, 60), before, strict=True):
        np.testing.assert_allclose(outputs(model, logits_of(T, (5,))), expected, rtol=1e-9, atol=1e-9)
    for name, array in arrays.items():
        kept = inputs_of(last_moec_node(model))[name].const_value.numpy()
        np.testing.assert_array_equal(kept[1:], array[1:5])


@every_layout
def test_averages_are_weighted_by_saliency(spec, tmp_path):
    """Two experts have the same hidden units in two orders, and different down projections."""
    model = with_copies(spec, {5: 0})
    node = last_moec_node(model)
    tensor = inputs_of(node)["down"].const_value
    numbers = np.array(tensor.numpy())
    numbers[5] *= 2
    inputs_of(node)["down"].const_value = ir.tensor(numbers, name="down")
    merged(model, tmp_path, "keep=5", saliency=np.array([3.0, 1, 1, 1, 1, 0.5]), measured=np.ones(6))
    actual = inputs_of(last_moec_node(model))["down"].const_value
    assert isinstance(actual, ExpertStack)
    own = spec.hidden_sizes[0] if spec.hidden_sizes else F
    used = np.moveaxis(actual.expert(0), 0 if spec.down_transposed else 1, 0)[:own]
    first = np.moveaxis(numbers[0], 0 if spec.down_transposed else 1, 0)[:own]
    np.testing.assert_allclose(used, first * (3 + 2 * 0.5) / 3.5, rtol=1e-6)


def test_the_largest_expert_says_how_many_units_there_are(tmp_path):
    spec = SPECS[-2]
    model = experts_model(spec)
    merged(model, tmp_path, "keep=3,most=2", saliency=np.array([1, 1, 9, 1, 9, 9.0]))
    (joined,) = (group for group in became(model) if 4 in group)
    sizes = spec_of(last_moec_node(model), ExpertsSpec).hidden_sizes
    assert len(joined) == 2
    assert sizes[became(model).index(joined)] == max(spec.hidden_sizes[expert] for expert in joined)


@pytest.mark.parametrize("like", [0, 1])
def test_the_most_salient_take_up_their_nearest(like, tmp_path):
    """Expert 5 absorbs the one that it is a copy of; the other goes to the next."""
    model = with_copies(ExpertsSpec(), {5: like})
    merged(model, tmp_path, "keep=4,most=2", saliency=np.array([1.0, 1, 3, 3, 8, 9]))
    assert became(model) == [(2,), (3,), (1 - like, 4), (like, 5)]


def test_no_more_than_most_become_one(tmp_path):
    spec, scores = ExpertsSpec(), np.array([1, 1, 0.5, 0.5, 8, 9.0])
    model = with_copies(spec, {5: 0, 4: 1})
    merged(model, tmp_path, "keep=2,most=3", saliency=scores)
    assert [(len(group), group[-1]) for group in became(model)] == [(3, 4), (3, 5)]
    model = with_copies(spec, {5: 0, 4: 1})
    merged(model, tmp_path, "keep=2", saliency=scores)
    assert became(model) == [(4,), (0, 1, 2, 3, 5)]
    reasons = origins_of(last_moec_node(model), 2).joined
    assert sorted(reasons) == [0, 1, 2, 3] and reasons[0].startswith("merge-experts: ream, similarity ")
    assert reasons[0].endswith("saliency 1")


ROUTED = """(float[T,8] x) => (float[T,8] y) <float[8,4] matrix, float[4] bias = {{0, 1, 2, 3}}{more}> {{
    {rows}logits = Gemm (x, matrix, bias)
    w, e = moec.Route <k = 2> (logits)
    y = moec.Experts <activation = "relu", gate_layout = "none"> ({x}, w, e, up, down) }}"""
WEIGHTS = ", float[4,6,8] up, float[4,8,6] down"


@pytest.mark.parametrize("rows", [("", "x"), ("wide = Unsqueeze (x, axes) rows = Reshape (wide, shape)", "rows")])
def test_experts_that_get_like_logits_are_alike(rows, tmp_path):
    """The logits of 3 are almost those of 1; 0 absorbs the remaining expert."""
    more = ", int64[1] axes = {0}, int64[2] shape = {-1, 8}"
    model = model_of(ROUTED.format(more=more + WEIGHTS, rows=rows[0] + " ", x=rows[1]))
    matrix, columns = model.graph.initializers["matrix"], np.random.default_rng(1).normal(size=(8, 4))
    columns[:, 3] = columns[:, 1] * 1.01
    matrix.const_value = ir.tensor(columns.astype(np.float32), name="matrix")
    model.graph.initializers["bias"].const_value = ir.tensor(np.zeros(4, np.float32), name="bias")
    for name in ("up", "down"):  # outputs do not tell
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.repeat(value.const_value.numpy()[:1], 4, axis=0), name=name)
    pipeline.run(model, pipeline.parse("infer-shapes"))
    scores = {"saliency": np.array([4.0, 9, 1, 1]), "measured": np.ones(4)}
    path = with_measures(write_measured(tmp_path / "p", model, "int8"), scores)
    apply(model, f"merge-experts{{keep=2,most=2,profile={path}}}")
    assert became(model) == [(0, 2), (1, 3)]
    assert "similarity 1.000, " in origins_of(last_moec_node(model), 2).joined[3]


def test_a_router_loses_the_columns_of_those_taken_up(tmp_path):
    before = ROUTED.format(more=WEIGHTS, rows="", x="x")
    path = with_measures(
        write_measured(tmp_path / "p", model_of(before), "int8"),
        {"saliency": np.array([4.0, 1, 9, 3]), "measured": np.ones(4)},
    )
    after = """(float[T,8] x) => (float[T,8] y) <float[8,3] matrix_used, float[3] bias_used = {0, 2, 3},
        float[3,6,8] up_changed_used, float[3,8,6] down_changed_used> {
        logits = Gemm (x, matrix_used, bias_used)
        w, e = moec.Route <k = 2> (logits)
        y = moec.Experts <activation = "relu", gate_layout = "none"> (x, w, e, up_changed_used, down_changed_used) }"""
    check(f"infer-shapes,merge-experts{{keep=3,profile={path}}}", before, after)


def test_routing_with_other_users_stays(tmp_path):
    text = ROUTED.format(more=WEIGHTS, rows="", x="x").replace("(float[T,8] y)", "(float[T,8] y, float[T,2] w)")
    path = write_measured(tmp_path / "p", model_of(text), "int8")
    (remark,) = check(f"infer-shapes,merge-experts{{keep=2,profile={path}}}", text)
    assert (remark.severity, remark.message) == ("warning", "keeps all experts: 'w' is an output of the model")


LAYER = """(float[T,8] x, float[T,8] logits) => (float[T,8] y)
    <float[8,6,8] up, float[8,8,6] down, float[8] bias = {{0, 1, 2, 3, 4, 5, 6, 7}}> {{
    y = moec.MoE <k = 2, score = "sigmoid", activation = "relu", gate_layout = "none"{more}>
    (x, logits, bias, up, down) }}"""


def test_groups_keep_as_many_and_biases_go_along(tmp_path):
    model = model_of(LAYER.format(more=", groups = 2, groups_kept = 1"))
    scores = {"saliency": np.array([9.0, 1, 8, 2, 3, 1, 2, 7]), "measured": np.ones(8)}
    path = with_measures(write_measured(tmp_path / "p", model, "int8"), scores)
    apply(model, f"merge-experts{{keep=0.5,profile={path}}}")
    node = last_moec_node(model)
    assert inputs_of(node)["correction_bias"].const_value.numpy().tolist() == [0, 2, 4, 7]
    assert spec_of(node, RouteSpec).groups == 2
    with pytest.raises(MoecError, match=r"cannot keep 3 of 4 experts.*in 2 groups; the nearest possible is"):
        again = write_measured(tmp_path / "again", model, "int8")
        apply(model, f"merge-experts{{keep=3,profile={again}}}")


def test_experts_with_a_capacity_stay(tmp_path):
    text = LAYER.format(more=", capacity = 4")
    path = write_measured(tmp_path / "p", model_of(text), "int8")
    (remark,) = check(f"merge-experts{{keep=4,profile={path}}}", text)
    assert remark.message == "keeps all experts: the capacity of 4 is that of 8 experts"


def test_identity_experts_stay(tmp_path):
    text = LAYER.format(more=", identity_experts = 2")
    model = model_of(text.replace("float[8,6,8]", "float[6,6,8]").replace("float[8,8,6]", "float[6,8,6]"))
    path = write_measured(tmp_path / "p", model, "int8")
    apply(model, f"merge-experts{{keep=3,profile={path}}}")
    assert spec_of(last_moec_node(model), ExpertsSpec).identity_experts == 2
    assert np.isfinite(outputs(model, np.ones((5, 8), np.float32))).all()


def test_narrower_types_stay(tmp_path):
    """Weights that are stored in float16 stay in float16."""
    spec = ExpertsSpec()
    model = with_copies(spec, {5: 0})
    apply(model, "cast-weights{dtype=fp16}")
    before = outputs(model, logits_of(20, (5,)))
    merged(model, tmp_path, "keep=5")
    assert became(model)[0] == (0, 5)
    assert formats_of(model) == {"up": ["float16"], "down": ["float16"]}
    np.testing.assert_allclose(outputs(model, logits_of(20, (5,))), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_models_in_narrower_types_are_averaged_in_them(dtype, tmp_path):
    model = with_copies(ExpertsSpec(), {5: 0})
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(dtype.numpy()), name=value.name)
        value.dtype = dtype
    first = {name: model.graph.initializers[name].const_value.numpy()[0] for name in ("up", "down", "up_bias")}
    merged(model, tmp_path, "keep=5")
    assert became(model)[0] == (0, 5)
    for name, array in first.items():
        actual = inputs_of(last_moec_node(model))[name]
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual.const_value.numpy()[0], array)


def test_quantised_weights_stay(tmp_path):
    model = experts_model(ExpertsSpec())
    path = write_measured(tmp_path / "p", model, "int8")
    apply(model, "quantize-experts{format=int8}")
    report = apply(model, f"merge-experts{{keep=3,profile={path}}}")
    assert [(remark.severity, remark.message) for remark in report.remarks] == [
        ("warning", "keeps all experts: up is int8; run this pass before quantize-experts")
    ]


def test_what_is_merged_needs_a_new_profile(tmp_path):
    model = experts_model(ExpertsSpec())
    path = write_measured(tmp_path / "p", model, "int8", tokens=300)
    passes = f"merge-experts{{keep=4,profile={path}}}"
    apply(model, f"prune-experts{{keep=5,profile={path}}},{passes}")
    assert len(origins_of(last_moec_node(model), 4).removed) == 1
    with pytest.raises(MoecError, match="nothing was measured of its weights"):
        apply(model, f"quantize-experts{{format=int4,method=gptq,profile={path}}}")
    assert Profile.read(path).layer(last_moec_node(model)).experts == E
    again = write_measured(tmp_path / "again", model, "int8", tokens=300)
    assert Profile.read(again).experts(last_moec_node(model)).experts == 4
    apply(model, f"quantize-experts{{format=int4,method=gptq,profile={again}}},prune-experts{{keep=3,profile={again}}}")
    assert [Profile.read(one).layer(last_moec_node(model)).experts for one in (path, again)] == [E, 4]


def test_layer_by_layer_with_the_profile_refreshed(tmp_path):
    model = model_of(
        """(float[T,8] x, float[T,4] logits, float[T,6] others) => (float[T,8] y)
        <float[4,6,8] up, float[4,8,6] down, float[6,6,8] up2, float[6,8,6] down2> {
        h = moec.MoE <k = 1, activation = "relu", gate_layout = "none"> (x, logits, , up, down)
        y = moec.MoE <k = 2, activation = "relu", gate_layout = "none"> (h, others, , up2, down2) }"""
    )
    path = write_measured(tmp_path / "p", model, "int8")
    apply(model, f"merge-experts{{keep=3,layers=0,profile={path}}}")
    again = write_measured(tmp_path / "again", model, "int8")
    apply(model, f"merge-experts{{keep=0.5,layers=1,profile={again}}}")
    assert [inputs_of(node)["down"].shape[0] for node in measurable(model.graph)] == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("keep=0", "keep is 0; expected a share of the experts"),
        ("keep=7", "cannot keep 7 of 6 experts.*the nearest possible is 6"),
        ("keep=0.2", "cannot keep 1 of 6 experts, of which 2 are chosen in 1 group; the nearest possible is 2"),
        ("keep=2,most=2", "cannot merge 6 experts to 2 where at most 2 become one; the nearest possible is 3"),
        ("keep=2,most=1", "most is 1; expected 2 experts or more that become one"),
        ("keep=3,layers=1", "layers is '1'; the model has the layers 0 to 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message, tmp_path):
    model = experts_model(ExpertsSpec())
    path = write_measured(tmp_path / "p", model, "int8")
    with pytest.raises(MoecError, match=message):
        apply(model, f"merge-experts{{{options},profile={path}}}")


def test_another_model_is_refused(tmp_path):
    path = write_measured(tmp_path / "p", experts_model(ExpertsSpec()), "int8")
    other = experts_model(ExpertsSpec(), expert_arrays(ExpertsSpec(), seed=1))
    with pytest.raises(MoecError, match="nothing was measured of its weights"):
        apply(other, f"merge-experts{{keep=0.5,profile={path}}}")


def test_all_experts_may_stay(tmp_path):
    model = experts_model(ExpertsSpec())
    report = merged(model, tmp_path, "keep=1")
    assert [remark.message for remark in report.remarks] == ["keeps all 6 experts"]
    assert last_moec_node(model).op_type == "MoE"


def test_without_scipy_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MoecError, match=r"merging experts needs scipy.*pip install \"moec\[specialise\]\""):
        merged(experts_model(ExpertsSpec()), tmp_path, "keep=3")


def test_averages_are_computed_when_they_are_read(tmp_path):
    model = with_copies(ExpertsSpec(), {5: 0})
    merged(model, tmp_path, "keep=5")
    stack = inputs_of(last_moec_node(model))["up"].const_value
    assert isinstance(stack, ExpertStack)
    assert stack.expert(2).shape == (2 * F, D)
