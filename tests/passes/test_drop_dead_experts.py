"""Experts that no token needs: their detection, and the changes of router, weights and metadata."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir import interpreter
from moec.ir.dialect import RouteSpec, inputs_of, spec_of
from moec.ir.origins import origins_of
from moec.passes import pipeline
from moec.passes.framework.base import Report

from .before_after import check, model_of

NAME = "drop-dead-experts"
E = 6
LAYER = """(float[T,4] x, float[T,6] logits) => (float[T,4] y)
    <{constants}float[6,5,4] up, float[6,4,5] down, float[6,4] down_bias> {{
    {mask} y = moec.MoE <{routing}, activation = "relu", gate_layout = "none"{experts}>
    (x, {logits}, {bias}, up, down, , , down_bias) }}"""


def cases() -> list[dict[str, np.ndarray]]:
    """No token, one, an odd number and many; all logits equal; some so far apart that scores become 0."""
    random = np.random.default_rng(0)
    numbers = [random.standard_normal((T, E), dtype=np.float32) for T in (0, 1, 7, 40)]
    numbers += [np.zeros((5, E), np.float32), 300 * random.standard_normal((20, E), dtype=np.float32)]
    numbers += [np.eye(E, dtype=np.float32) * 500]
    return [{"x": random.standard_normal((len(logits), 4), dtype=np.float32), "logits": logits} for logits in numbers]


def layer(routing: str, *, mask: str = "", bias: str = "", experts: str = "") -> str:
    """A layer whose logits get ``mask`` added, with a correction bias."""
    constants = (f"float[6] mask = {{{mask}}}, " if mask else "") + (f"float[6] bias = {{{bias}}}, " if bias else "")
    return LAYER.format(
        constants=constants,
        mask="masked = Add (logits, mask)" if mask else "",
        logits="masked" if mask else "logits",
        bias="bias" if bias else "",
        routing=routing,
        experts=experts,
    )


def left(text: str) -> tuple[list[int], str]:
    """The remaining experts, and the remark. The layer's results are compared in every case."""
    model, report = model_of(text), Report()
    before = [interpreter.run(model, case, dtype=np.float64)["y"] for case in cases()]
    pipeline.run(model, pipeline.parse(f"infer-shapes,{NAME}"), report, verify_each=True)
    for case, expected in zip(cases(), before, strict=True):
        actual = interpreter.run(model, case, dtype=np.float64)["y"]
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    node = next(node for node in model.graph if node.op_type == "MoE")
    count = inputs_of(node)["logits"].shape[1]
    return [first for (first,) in origins_of(node, count).experts], " ".join(
        remark.message for remark in report.remarks
    )


TWO_MASKED = "0, 0, -inf, 0, -inf, 0"


@pytest.mark.parametrize(
    "routing",
    [
        "k = 2",
        "k = 2, normalize = 1",
        'k = 3, score = "sigmoid", normalize = 1, normalize_epsilon = 1e-9',
        'k = 2, score = "softmax_topk"',
        'k = 2, score = "sigmoid_topk"',
        'k = 4, score = "sqrt_softplus", scale = 2.5',
        'k = 2, score = "relu", threshold = 0.5',
        'k = 2, score = "identity"',
        'k = 6, selection = "all"',
        'k = 6, selection = "all", score = "sigmoid", threshold = 0.25',
    ],
)
def test_experts_whose_logit_is_minus_infinite_go(routing):
    experts, remark = left(layer(routing, mask=TWO_MASKED))
    assert experts == [0, 1, 3, 5]
    assert remark == "of 6 experts, no token needs 2, 4; 2 are gone"


@pytest.mark.parametrize(
    "routing, mask, reason",
    [
        ("k = 5", TWO_MASKED, "4 experts are left, of which 5 are chosen"),
        ("k = 2", "0, 0, -1e9, 0, -1e9, 0", ""),
        ('k = 6, selection = "all", score = "identity"', TWO_MASKED, ""),
        ('k = 6, selection = "expert_choice", capacity = 2', TWO_MASKED, ""),
        ('k = 2, score = "sparsemixer", jitter = 0.01', TWO_MASKED, ""),
        ("k = 2, capacity = 3", TWO_MASKED, "the capacity of 3 is that of 6 experts"),
    ],
)
def test_experts_that_may_count_stay(routing, mask, reason):
    experts, remark = left(layer(routing, mask=mask))
    assert experts == list(range(E))
    assert remark == (reason and f"of 6 experts, no token needs 2, 4; 0 are gone, for {reason}")


def test_a_weight_of_zero_counts_where_it_is_on_the_input():
    """The expert returns its bias then, and a score that underflows is as good as that of a dead expert."""
    text = layer('k = 2, score = "sigmoid"', mask=TWO_MASKED, experts=", weight_on_input = 1")
    assert left(text) == (list(range(E)), "")


def test_identity_scores_are_below_all_others_on_the_input_too():
    text = layer('k = 2, score = "identity"', mask=TWO_MASKED, experts=", weight_on_input = 1")
    assert left(text)[0] == [0, 1, 3, 5]


@pytest.mark.parametrize(
    "score, bias, expected",
    [
        ("sigmoid", "0, 0.5, -inf, 0, -inf, 1", [0, 1, 3, 5]),
        ("sigmoid", "0, 0.5, nan, 0, -inf, 1", [0, 1, 3, 5]),
        ("sigmoid", "3, 3, 1.9, 3.5, 2.1, 3", [0, 1, 3, 4, 5]),
        ("sigmoid", "3, 3, 2, 3, 2.1, 3", list(range(E))),
        ("softplus", "3, 3, 2, 3, -inf, 3", [0, 1, 2, 3, 5]),
        ("softplus", "3, 3, -1e9, 3, 0, 3", list(range(E))),
        ("softmax_topk", "0, 1, -inf, 0, 0, 0", [0, 1, 3, 4, 5]),
        ("softmax_topk", "0, 1, -1e9, 0, 0, 0", list(range(E))),
        ("sigmoid", "5, 0, 0, 0, 0, 0", list(range(E))),
        ("sigmoid", "-inf, -inf, -inf, -inf, -inf, 0", list(range(E))),
    ],
)
def test_a_correction_bias_may_be_too_low(score, bias, expected):
    """With k = 2; sigmoids lie between 0 and 1, and one that is 1.0 away from others may tie with them."""
    assert left(layer(f'k = 2, score = "{score}", normalize = 1', bias=bias))[0] == expected


def test_the_softmax_over_all_counts_experts_that_a_bias_excludes():
    experts, remark = left(layer("k = 2", bias="0, 0, -inf, 0, 0, 0"))
    assert experts == list(range(E))
    assert remark.endswith("0 are gone, for the softmax over all experts counts them")


def test_an_expert_that_a_softmax_counts_does_not_hold_others():
    experts, _ = left(layer("k = 2", bias="0, 0, -inf, 0, -9, 0", mask="0, 0, 0, 0, -inf, 0"))
    assert experts == [0, 1, 2, 3, 5]


def test_a_logit_of_minus_infinity_does_not_outweigh_a_bias():
    """The score is 0, but the bias makes a token go there."""
    assert left(layer('k = 2, score = "sigmoid"', bias="0, 0, 9, 0, 0, 0", mask=TWO_MASKED))[0] == list(range(E))


@pytest.mark.parametrize(
    "routing, bias, expected",
    [
        ("groups = 2, groups_kept = 1", "0, 0, -inf, -inf, 0, 0", [0, 1, 4, 5]),
        ("groups = 2, groups_kept = 1", "0, -inf, -inf, -inf, 0, 0", [0, 1, 2, 3, 4, 5]),
        ("groups = 3, groups_kept = 2", "0, -inf, -inf, 0, 0, -inf", [0, 3, 4]),
        ('groups = 3, groups_kept = 2, group_score = "sum_top2"', "0, -inf, -inf, 0, 0, -inf", list(range(E))),
        ('groups = 2, groups_kept = 1, group_score = "sum_top2"', "0, 0, -inf, -inf, 0, 0", [0, 1, 4, 5]),
        ("groups = 2, groups_kept = 1", "0, 0, -inf, 0, 0, 0", list(range(E))),
        ("groups = 2, groups_kept = 1", "0, 0, -inf, -inf, -inf, 0", list(range(E))),
    ],
)
def test_every_group_loses_as_many(routing, bias, expected):
    experts, _ = left(layer(f'k = 2, score = "sigmoid", {routing}', bias=bias))
    assert experts == expected


def test_an_unequal_number_of_dead_experts_leaves_some():
    bias = "0, 0, 0, -inf, 0, -inf, -inf, 0"
    text = layer('k = 1, score = "sigmoid", groups = 2, groups_kept = 1', bias=bias)
    for old, new in (("[T,6]", "[T,8]"), ("[6", "[8")):
        text = text.replace(old, new)
    model = model_of(text)
    pipeline.run(model, pipeline.parse(NAME), verify_each=True)
    (node,) = (node for node in model.graph if node.op_type == "MoE")
    assert origins_of(node, 6).removed == {
        3: "drop-dead-experts: its correction bias is too low",
        5: "drop-dead-experts: its correction bias is too low",
    }
    assert spec_of(node, RouteSpec).groups == 2


ROUTER = """(float[T,4] x) => (float[T,4] y) <{constants}, float[3,5,4] up, float[3,4,5] down> {{
    {nodes}
    w, e = moec.Route <k = 2> (logits)
    y = moec.Experts <activation = "relu", gate_layout = "none"> (x, w, e, up, down) }}"""
CUT = """(float[T,4] x) => (float[T,4] y) <{constants}, float[2,5,4] up_used, float[2,4,5] down_used> {{
    {nodes}
    w, e = moec.Route <k = 2> (logits)
    y = moec.Experts <activation = "relu", gate_layout = "none"> (x, w, e, up_used, down_used) }}"""
BIASED = {
    "Add": ("p = MatMul (x, matrix) logits = Add (p, bias)", "p = MatMul (x, matrix_used) logits = Add (p, bias_used)"),
    "Gemm": ("logits = Gemm (x, matrix, bias)", "logits = Gemm (x, matrix_used, bias_used)"),
    "Linear": (
        "logits = moec.Linear <transposed = 1> (x, matrix, bias)",
        "logits = moec.Linear <transposed = 1> (x, matrix_used, bias_used)",
    ),
}


@pytest.mark.parametrize("kind", BIASED)
def test_the_router_loses_the_columns(kind):
    before, after = BIASED[kind]
    check(
        f"infer-shapes,{NAME}",
        ROUTER.format(constants="float[4,3] matrix, float[3] bias = {1, -inf, 2}", nodes=before),
        CUT.format(constants="float[4,2] matrix_used, float[2] bias_used = {1, 2}", nodes=after),
    )


def test_a_mask_by_where_is_seen():
    check(
        f"infer-shapes,{NAME}",
        ROUTER.format(
            constants="float[4,3] matrix, bool[1,3] used = {1, 0, 1}, float least = {-inf}",
            nodes="p = MatMul (x, matrix) logits = Where (used, p, least)",
        ),
        CUT.format(
            constants="float[4,2] matrix_used, bool[1,2] used_used = {1, 1}, float least = {-inf}",
            nodes="p = MatMul (x, matrix_used) logits = Where (used_used, p, least)",
        ),
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "logits = Gemm <beta = 0.0> (x, matrix, bias)",
        'logits = moec.Linear <activation = "relu", transposed = 1> (x, matrix, bias)',
        "p = MatMul (x, matrix) logits = Sub (p, bias)",
        "p = MatMul (x, matrix) logits = Max (p, bias)",
    ],
)
def test_what_only_looks_like_a_mask_stays(nodes):
    text = ROUTER.format(constants="float[4,3] matrix, float[3] bias = {1, -inf, 2}", nodes=nodes)
    model = model_of(text)
    pipeline.run(model, pipeline.parse("infer-shapes"))
    assert not pipeline.run(model, pipeline.parse(NAME))


def test_routing_with_other_users_stays():
    text = ROUTER.format(
        constants="float[4,3] matrix, float[3] bias = {1, -inf, 2}", nodes="logits = Gemm (x, matrix, bias)"
    )
    check(f"infer-shapes,{NAME}", text.replace("(float[T,4] y)", "(float[T,4] y, float[T,2] w)"))


def test_biases_computed_at_run_time_are_not_looked_at():
    text = layer('k = 2, score = "sigmoid"', bias="0, 0, -inf, 0, 0, 0").replace("y = moec", "b = Neg (bias) y = moec")
    assert left(text.replace("logits, bias", "logits, b")) == (list(range(E)), "")


def test_a_second_run_finds_nothing():
    model = model_of(layer("k = 2", mask=TWO_MASKED))
    assert pipeline.run(model, pipeline.parse(f"infer-shapes,{NAME}"))
    report = Report()
    assert not pipeline.run(model, pipeline.parse(NAME), report) and not report.remarks
