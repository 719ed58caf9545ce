from __future__ import annotations

import numpy as np
import pytest

from moec.ir.dialect import RouteSpec, spec_of

RANDOM = np.random.default_rng(0)
CASES = [{"logits": RANDOM.standard_normal((T, 8)).astype(np.float32)} for T in (0, 1, 17)]
CASES.append({"logits": np.zeros((3, 8), np.float32)})


def route(attributes: str, bias: str = "") -> str:
    return f"""(float[T,8] logits) => (float[T,2] w, int32[T,2] e) <float[8] zeros = {{0, 0, 0, 0, 0, 0, 0, 0}},
        float[8] bias = {{0, 0, 1, 0, 0, 0, 0, 0}}> {{ w, e = moec.Route <k = 2{attributes}> (logits{bias}) }}"""


@pytest.mark.parametrize(
    "attributes, bias",
    [
        (", normalize = 1", ""),
        (", normalize = 1", ", zeros"),
        (', score = "softmax_topk", normalize = 1', ""),
        (", normalize = 1, groups = 4, groups_kept = 4", ""),
    ],
)
def test_renormalised_softmax_becomes_softmax_over_the_selected(rewrite, attributes, bias):
    model = rewrite(route(attributes, bias), "canonicalize-router", *CASES)
    assert spec_of(model.graph.node(0), RouteSpec) == RouteSpec(k=2, score="softmax_topk")
    assert len(model.graph.node(0).inputs) == 1


@pytest.mark.parametrize(
    "attributes, bias",
    [
        ("", ""),
        (', score = "sigmoid", normalize = 1', ""),
        (", normalize = 1, normalize_epsilon = 0.01", ""),
        (", normalize = 1", ", bias"),
        (", normalize = 1, groups = 4, groups_kept = 2", ""),
        (", normalize = 1, threshold = 0.2", ""),
        (", normalize = 1, capacity = 3", ""),
    ],
)
def test_what_sees_the_scores_themselves_stays(rewrite, attributes, bias):
    model = rewrite(route(attributes, bias), "canonicalize-router", *CASES)
    spec = spec_of(model.graph.node(0), RouteSpec)
    assert spec.score != "softmax_topk"
    assert spec.normalize == ("normalize = 1" in attributes)
    assert len(model.graph.node(0).inputs) == (2 if bias else 1)


SCORES = (
    """(float[T,8] logits) => (float[N,2] w, int32[N,2] e) <int64[2] rows = {-1, 8}, int64[2] halves = {-1, 4}> {"""
)


def routed(rewrite, made, score):
    """The rewritten model whose router is given ``s``, which ``made`` makes of the logits."""
    text = f'{SCORES} {made} w, e = moec.Route <k = 2, score = "{score}"> (s) }}'
    return rewrite(text, "infer-shapes,canonicalize-router,remove-dead-nodes", *CASES)


@pytest.mark.parametrize(
    ("made", "score"),
    [
        ("s = Softmax <axis = -1> (logits)", "softmax"),
        ("s = Softmax <axis = 1> (logits)", "softmax"),
        ("s = Sigmoid (logits)", "sigmoid"),
        ("p = Sigmoid (logits) s = Reshape (p, rows)", "sigmoid"),
        ("p = Softmax <axis = -1> (logits) s = Reshape (p, rows)", "softmax"),
    ],
)
def test_scores_of_a_node_become_those_of_the_router(rewrite, operators, made, score):
    model = routed(rewrite, made, "identity")
    assert operators(model) == (["Reshape", "Route"] if "rows" in made else ["Route"])
    assert spec_of(model.graph.node(-1), RouteSpec) == RouteSpec(k=2, score=score)


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ("s = Softmax <axis = 0> (logits)", "identity"),
        ("s = Tanh (logits)", "identity"),
        ("s = Sigmoid (logits)", "sigmoid"),
        ("p = Softmax <axis = -1> (logits) s = Reshape (p, halves)", "identity"),
    ],
)
def test_scores_that_are_none_of_a_router_stay(rewrite, operators, made, asked):
    model = routed(rewrite, made, asked)
    assert len(model.graph) == made.count("=") - made.count("<") + 1
    assert spec_of(model.graph.node(-1), RouteSpec) == RouteSpec(k=2, score=asked)


def test_a_fused_operator_keeps_its_experts(rewrite):
    text = """(float[T,4] x, float[T,8] logits, float[8,6,4] up, float[8,4,6] down) => (float[T,4] y) {
        y = moec.MoE <k = 2, normalize = 1, activation = "relu", gate_layout = "none"> (x, logits, , up, down) }"""
    inputs = {"x": (5, 4), "logits": (5, 8), "up": (8, 6, 4), "down": (8, 4, 6)}
    case = {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
    model = rewrite(text, "canonicalize-router", case)
    attributes = model.graph.node(0).attributes
    assert attributes["score"].as_string() == "softmax_topk" and "normalize" not in attributes
    assert attributes["activation"].as_string() == "relu" and attributes["gate_layout"].as_string() == "none"
