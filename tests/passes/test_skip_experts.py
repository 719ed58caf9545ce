from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import MoecError
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec, RouteSpec, spec_of
from moec.ir.semantics import route
from moec.passes import pipeline
from moec.passes.framework.base import Report

from ..products import thinned
from .before_after import assert_shown, model_of
from .profiles import write_gates, write_measured
from .stored_weights import apply, experts_model, last_moec_node

GATES = np.array([[0.9, 0.1, 0, 0], [0, 0.8, 0.2, 0], [0.4, 0, 0, 0.6], [0, 0, 0.49, 0.51]])
"""The second is 1/9, 1/4, 2/3 and 0.96 of the first."""
TIES = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.25]])
EXPERTS = 'activation = "relu", gate_layout = "none"'


def layer(routing: str = "k = 2", bias: str = "") -> str:
    """With ``routing`` and, where it says so, ``bias``."""
    return f"""(float[T,8] x, float[T,4] logits) => (float[T,8] y)
        <float[4,16,8] up, float[4,8,16] down, float[4] bias> {{
        y = moec.MoE <{EXPERTS}, {routing}> (x, logits, {bias or '""'}, up, down) }}"""


def two_layers(first: str = "k = 2", second: str = "k = 2") -> str:
    return f"""(float[T,8] x, float[T,4] logits) => (float[T,8] y)
        <float[4,16,8] up, float[4,8,16] down, float[4,16,8] up2, float[4,8,16] down2> {{
        h = moec.MoE <{EXPERTS}, {first}> (x, logits, "", up, down)
        y = moec.MoE <{EXPERTS}, {second}> (h, logits, "", up2, down2) }}"""


def apart(k: int, between: str = "", weights: str = "w") -> str:
    """Router and experts as two operators."""
    return f"""(float[T,8] x, float[T,4] logits) => (float[T,8] y) <float[4,16,8] up, float[4,8,16] down> {{
        w, e = moec.Route <k = {k}> (logits) {between}
        y = moec.Experts <{EXPERTS}> (x, {weights}, e, up, down) }}"""


def skip(folder: pathlib.Path, text: str, options: str, *gates: np.ndarray, **sizes) -> tuple[ir.Model, list[str]]:
    """The model after the pass, and its remarks."""
    model, report = model_of(text), Report()
    profile = write_gates(folder / "p.moeprof", model, gates, **sizes)
    pipeline.run(
        model, pipeline.parse(f"infer-shapes,skip-experts{{profile={profile},{options}}}"), report, verify_each=True
    )
    return model, [remark.message for remark in report.remarks]


@pytest.mark.parametrize(
    ("options", "routing"),
    [
        ("keep=0.875", "k = 2, relative_threshold = 0.125"),
        ("keep=0.8", "k = 2, relative_threshold = 0.265625"),
        ("keep=0.75", "k = 2, relative_threshold = 0.265625"),
        ("keep=0.625", "k = 2, relative_threshold = 0.671875"),
        ("keep=0.5", "k = 2, relative_threshold = 0.96875"),
        ("keep=0.5,method=k", "k = 1"),
        ("keep=0.99,method=k", "k = 1"),
        ("keep=0.75,method=both", "k = 2, relative_threshold = 0.265625"),
        ("keep=1", "k = 2"),
        ("keep=1,method=both", "k = 2"),
    ],
)
@pytest.mark.parametrize("others", ["", ', normalize = 1, score = "sigmoid"', ', score = "softmax_topk"'])
def test_the_smallest_shares_go(options, routing, others, tmp_path):
    model, _ = skip(tmp_path, layer("k = 2" + others), options, GATES)
    assert_shown(model, layer(routing + others))


def test_the_weight_of_a_bias_on_the_choice_is_as_small(tmp_path):
    for method in ("ratio", "both"):
        model, _ = skip(tmp_path, layer(bias="bias"), f"keep=0.5,method={method}", GATES)
        assert_shown(model, layer("k = 2, relative_threshold = 0.96875", "bias"))


def test_what_experts_return_counts(tmp_path):
    model, notes = skip(tmp_path, two_layers(), "keep=0.75", GATES, GATES, norms=[1, 10])
    assert_shown(model, two_layers("k = 2, relative_threshold = 0.96875"))
    (note,) = notes
    assert "keeps 50.0% of its calls, by a relative threshold of 0.96875; what goes is 42.26% of" in note


def test_negative_weights_are_as_large_as_positive_ones(tmp_path):
    model, _ = skip(tmp_path, layer('k = 2, score = "identity"'), "keep=0.75", GATES * [1, -1, 1, -1])
    assert_shown(model, layer('k = 2, relative_threshold = 0.265625, score = "identity"'))


def test_a_lower_k_goes_to_the_layer_that_it_costs_least(tmp_path):
    for method in ("k", "both"):
        model, _ = skip(tmp_path, two_layers(), f"keep=0.75,method={method}", GATES, GATES, norms=[10, 1])
        assert_shown(model, two_layers(second="k = 1"))


@pytest.mark.parametrize(
    ("tokens", "first", "second"), [([4, 8], 0.125, 0.265625), ([8, 4], 0.265625, 0.125), ([4, 4], 0.265625, 0.265625)]
)
def test_a_layer_counts_by_all_its_tokens(tokens, first, second, tmp_path):
    model, _ = skip(tmp_path, two_layers(), "keep=0.8", GATES, GATES, tokens=tokens)
    assert_shown(model, two_layers(*(f"k = 2, relative_threshold = {one}" for one in (first, second))))


def test_calls_of_layers_that_keep_theirs_count(tmp_path):
    model, notes = skip(tmp_path, two_layers("k = 1"), "keep=0.75", np.eye(4), GATES)
    assert_shown(model, two_layers("k = 1", "k = 2, relative_threshold = 0.671875"))
    assert notes[0] == "keeps all calls: it has 1 experts per token, and lowest is 1"


def test_lowest_is_what_a_token_keeps(tmp_path):
    gates, three = np.array([[0.6, 0.3, 0.1, 0], [0, 0.5, 0.45, 0.05]]), layer("k = 3")
    for method, routing in {"ratio": "k = 3, relative_threshold = 0.171875", "k": "k = 2"}.items():
        model, _ = skip(tmp_path, three, f"keep=0.67,lowest=2,method={method}", gates, k=3)
        assert_shown(model, layer(routing))
        with pytest.raises(MoecError, match=f"keep=0.6 cannot be met with method={method} and .*the least is 0.667$"):
            skip(tmp_path, three, f"keep=0.6,lowest=2,method={method}", gates, k=3)


def test_the_outputs_of_a_router_have_the_lower_k(tmp_path):
    model, _ = skip(tmp_path, apart(2), "keep=0.5,method=k", GATES)
    assert_shown(model, apart(1))
    (router,) = (node for node in model.graph if node.op_type == "Route")
    assert [list(output.shape or ()) for output in router.outputs] == [["T", 1], ["T", 1]]


@pytest.mark.parametrize("T", [0, 1, 7, 64])
def test_the_model_computes_what_its_larger_weights_make(T, tmp_path):
    text = layer('k = 2, score = "softmax_topk"')
    model, _ = skip(tmp_path, text, "keep=0.75", GATES)
    random = np.random.default_rng(T)
    x, logits = random.normal(size=(T, 8)).astype(np.float32), random.normal(size=(T, 4)).astype(np.float32)
    if T > 1:
        logits[1] = 0  # a tie: both stay
    up, down = (model.graph.initializers[name].const_value.numpy() for name in ("up", "down"))
    expected = np.zeros((T, 8))
    for token in range(T):
        first, second = np.argsort(-logits[token], kind="stable")[:2]
        ratio = np.exp(float(logits[token, second]) - float(logits[token, first]))
        for expert, weight in ((first, 1 / (1 + ratio)), (second, ratio / (1 + ratio) if ratio >= 0.265625 else 0)):
            expected[token] += weight * (down[expert] @ np.maximum(up[expert] @ x[token], 0))
    actual = interpreter.run(model, {"x": x, "logits": logits})["y"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [0.55, 0.7, 0.9])
@pytest.mark.parametrize("method", ["ratio", "both"])
def test_as_many_calls_are_left_as_were_asked_for(keep, method, tmp_path):
    model = experts_model(ExpertsSpec("relu", "none"))
    profile = write_measured(tmp_path / "p", model, "int8")
    apply(model, f"skip-experts{{keep={keep},profile={profile},method={method}}}")
    logits = np.random.default_rng(0).normal(size=(96, 5)).astype(np.float32)  # those of the profile
    _, ids = route(spec_of(last_moec_node(model), RouteSpec), logits)
    assert keep - 0.03 < (ids >= 0).sum() / (2 * len(logits)) <= keep


@thinned("target", ["cpu", "cuda"], 2)
@thinned(("text", "options"), [(layer(), "keep=0.75"), (apart(2), "keep=0.5,method=k")], 2)
def test_what_is_compiled_computes_the_same(text, options, target, tmp_path):
    model, _ = skip(tmp_path, text, options, GATES)
    compiled = moec.compile(model, passes="O1", target=target, emulate=target == "cuda", threads=1)
    for T in (0, 1, 7, 65):
        random = np.random.default_rng(T)
        inputs = {"x": random.normal(size=(T, 8)), "logits": np.round(2 * random.normal(size=(T, 4)))}
        inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
        expected = interpreter.run(model, inputs)["y"]
        np.testing.assert_allclose(compiled.run(inputs)["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (layer("k = 1"), "", "it has 1 experts per token, and lowest is 1"),
        (layer(), ",lowest=2", "it has 2 experts per token, and lowest is 2"),
        (layer('k = 4, selection = "all"'), "", "its selection is all, not topk"),
        (layer("k = 2, capacity = 3"), "", "with its capacity of 3, pairs that are dropped make room for others"),
        (layer("k = 2, relative_threshold = 0.5"), "", "it has a relative_threshold of 0.5 already"),
        (layer(bias="bias"), ",method=k", "its choice has a bias, and a profile knows weights alone; try method=ratio"),
    ],
)
def test_other_layers_keep_all_their_calls(text, options, reason, tmp_path):
    _, notes = skip(tmp_path, text, "keep=1" + options, GATES)
    assert notes == [f"keeps all calls: {reason}"]
    with pytest.raises(MoecError, match=r"skip-experts: keep=0.9 cannot be met .*; the least is 1$"):
        skip(tmp_path, text, "keep=0.9" + options, GATES)


def test_identity_experts_are_not_known(tmp_path):
    text = layer("k = 2, identity_experts = 1").replace("float[T,4]", "float[T,5]")
    assert skip(tmp_path, text, "keep=1", GATES)[1] == [
        "keeps all calls: the profile says nothing of its identity experts"
    ]


def test_weights_that_are_changed_on_the_way_stay(tmp_path):
    text = apart(2, "v = Neg (w)", "v")
    model, notes = skip(tmp_path, text, "keep=0.5", GATES)
    assert_shown(model, text)
    assert "keeps all calls, uncounted: the weights are changed between moec.Route and moec.Experts" in notes


def test_equal_weights_all_stay_with_a_threshold(tmp_path):
    with pytest.raises(MoecError, match=r"keep=0.9 cannot be met with method=ratio .*; the least is 1$"):
        skip(tmp_path, layer(), "keep=0.9", TIES)
    assert_shown(skip(tmp_path, layer(), "keep=0.9,method=k", TIES)[0], layer("k = 1"))


def test_layers_that_saw_nothing_are_left(tmp_path):
    for text, gates in ((layer(), [np.zeros((0, 4))]), ("(float[T] x) => (float[T] y) { y = Relu (x) }", [])):
        model, notes = skip(tmp_path, text, "keep=0.5", *gates)
        assert_shown(model, text)
        assert notes == ["nothing to skip: no layer of experts saw a token, or none was raised"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("keep=0", "skip-experts: keep is 0; expected a share of the calls, above 0, up to 1"),
        ("keep=1.5", "skip-experts: keep is 1.5; expected"),
        ("keep=nan", "skip-experts: keep is nan; expected"),
        ("keep=0.4", "keep=0.4 cannot be met with method=ratio and lowest=1; the least is 0.5$"),
        ("keep=0.4,method=both", "keep=0.4 cannot be met with method=both and lowest=1; the least is 0.5$"),
        ("keep=0.5,lowest=0", "skip-experts: lowest is 0; expected 1 or more"),
        ("keep=0.5,method=best", "method"),
    ],
)
def test_what_cannot_be_is_refused(options, message, tmp_path):
    with pytest.raises(MoecError, match=message):
        skip(tmp_path, layer(), options, GATES)


def test_a_profile_of_another_k_or_another_model_is_refused(tmp_path):
    with pytest.raises(MoecError, match=r"measured with 3 experts per token, but has 2; profile the model after"):
        skip(tmp_path, layer(), "keep=0.5", GATES, k=3)
    profile = write_gates(tmp_path / "p", model_of(layer()), [GATES])
    with pytest.raises(MoecError, match=r"nothing was measured of its weights; expected a profile of this model"):
        pipeline.run(model_of(two_layers()), pipeline.parse(f"skip-experts{{keep=0.5,profile={profile}}}"))


def test_a_profile_from_before_experts_were_removed_is_refused(tmp_path):
    model = experts_model(ExpertsSpec("relu", "none"))
    profile = write_measured(tmp_path / "before", model, "int8")
    apply(model, f"prune-experts{{keep=3,profile={profile}}}")
    with pytest.raises(MoecError, match=r"experts were removed since it was measured, .*; profile the model after"):
        apply(model, f"skip-experts{{keep=0.5,profile={profile}}}")
    profile = write_measured(tmp_path / "after", model, "int8")
    apply(model, f"skip-experts{{keep=0.5,profile={profile}}}")
    assert spec_of(last_moec_node(model), RouteSpec).relative_threshold > 0


def test_a_profile_that_is_none_is_refused(tmp_path):
    with pytest.raises(MoecError, match=r"none.moeprof: cannot be read"):
        pipeline.run(model_of(layer()), pipeline.parse(f"skip-experts{{keep=0.5,profile={tmp_path}/none.moeprof}}"))


def test_a_damaged_profile_is_refused(tmp_path):
    for gates, message in ((GATES[:, :3], "is damaged"), (GATES[0], "is damaged")):
        with pytest.raises(MoecError, match=message):
            skip(tmp_path, layer(), "keep=0.5", gates)
