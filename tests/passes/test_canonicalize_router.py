from __future__ import annotations

import numpy as np
import pytest

from .before_after import check

NAME = "canonicalize-router"
RANDOM = np.random.default_rng(0)
CASES = [{"logits": RANDOM.standard_normal((T, 8)).astype(np.float32)} for T in (0, 1, 17)]
CASES.append({"logits": np.zeros((3, 8), np.float32)})


def route(attributes: str, bias: str = "") -> str:
    constants = {"zeros": ", ".join("0" * 8), "bias": "0, 0, 1, 0, 0, 0, 0, 0"}
    declared = f"<float[8] {bias} = {{{constants[bias]}}}>" if bias else ""
    operands = f"logits, {bias}" if bias else "logits"
    return f"""(float[T,8] logits) => (float[T,2] w, int32[T,2] e) {declared} {{
        w, e = moec.Route <k = 2{attributes}> ({operands}) }}"""


@pytest.mark.parametrize(
    "attributes, bias",
    [
        (", normalize = 1", ""),
        (", normalize = 1", "zeros"),
        (', score = "softmax_topk", normalize = 1', ""),
        (", normalize = 1, groups = 4, groups_kept = 4", ""),
    ],
)
def test_renormalised_softmax_becomes_softmax_over_the_selected(attributes, bias):
    passes = f"{NAME},remove-dead-nodes"
    check(passes, route(attributes, bias), route(', score = "softmax_topk"'), *CASES)


@pytest.mark.parametrize(
    "attributes, bias",
    [
        ("", ""),
        (', score = "sigmoid", normalize = 1', ""),
        (", normalize = 1, normalize_epsilon = 0.01", ""),
        (", normalize = 1", "bias"),
        (", normalize = 1, groups = 4, groups_kept = 2", ""),
        (", normalize = 1, threshold = 0.2", ""),
        (", normalize = 1, relative_threshold = 0.5", ""),
        (", normalize = 1, normalize_floor = 0.2, relative_threshold = 0.5", ""),
        (", normalize = 1, capacity = 3", ""),
    ],
)
def test_what_sees_the_scores_themselves_stays(attributes, bias):
    check(NAME, route(attributes, bias), None, *CASES)


def scored(made: str, score: str, scores: str = "s") -> str:
    """A router with ``scores``, which ``made`` computes from the logits."""
    declared, size = "", "T"
    if "Reshape" in made:
        declared, size = "<int64[2] halves = {-1, 4}>" if "halves" in made else "<int64[2] rows = {-1, 8}>", "N"
    return f"""(float[T,8] logits) => (float[{size},2] w, int32[{size},2] e) {declared} {{
        {made} w, e = moec.Route <k = 2, score = "{score}"> ({scores}) }}"""


PASSES = f"infer-shapes,{NAME},remove-dead-nodes"


@pytest.mark.parametrize(
    ("made", "score"),
    [
        ("s = Softmax <axis = -1> (logits)", "softmax"),
        ("s = Softmax <axis = 1> (logits)", "softmax"),
        ("s = Sigmoid (logits)", "sigmoid"),
    ],
)
def test_scores_of_a_node_become_those_of_the_router(made, score):
    check(PASSES, scored(made, "identity"), scored("", score, "logits"), *CASES)


@pytest.mark.parametrize(("operator", "score"), [("Sigmoid", "sigmoid"), ("Softmax <axis = -1>", "softmax")])
def test_scores_of_a_node_in_front_of_a_reshape_become_those_of_the_router(operator, score):
    before = scored(f"p = {operator} (logits) s = Reshape (p, rows)", "identity")
    check(PASSES, before, scored("val_0 = Reshape (logits, rows)", score, "val_0"), *CASES)


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ("s = Softmax <axis = 0> (logits)", "identity"),
        ("s = Tanh (logits)", "identity"),
        ("s = Sigmoid (logits)", "sigmoid"),
        ("p = Softmax <axis = -1> (logits) s = Reshape (p, halves)", "identity"),
    ],
)
def test_scores_that_are_none_of_a_router_stay(made, asked):
    check(PASSES, scored(made, asked), None, *CASES)


def test_a_fused_operator_keeps_its_experts():
    def moe(attributes: str) -> str:
        return f"""(float[T,4] x, float[T,8] logits) => (float[T,4] y) <float[8,6,4] up, float[8,4,6] down> {{
            y = moec.MoE <k = 2, {attributes}, activation = "relu", gate_layout = "none"> (x, logits, , up, down) }}"""

    check(NAME, moe("normalize = 1"), moe('score = "softmax_topk"'))
