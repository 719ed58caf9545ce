from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.ir.dialect import is_moec
from moec.ir.streaming import SHARES_KEY, is_streamed, shares_of
from moec.passes import pipeline
from moec.passes.framework.base import Report

from .before_after import check, model_of
from .profiles import with_measures, write_routed

PASSES = pipeline.parse("infer-shapes,stream-experts")
WEIGHTS = "float[2,3,4] up, float[2,4,3] down, float[2,3,4] up_2, float[2,4,3] down_2"
FIRST = 'a = MatMul (x, r) z = moec.MoE <gate_layout = "none", k = 1> (x, a, , up, down)'


def test_a_router_of_its_own_and_a_bias_of_the_choice():
    check(
        "infer-shapes,stream-experts",
        f"(float[T,4] x) => (float[T,4] y) <float[4,2] r, float[4,2] s, float[2] bias, {WEIGHTS}> {{ {FIRST} "
        'b = MatMul (z, s) w, e = moec.Route <k = 1, score = "sigmoid"> (b, bias) '
        'y = moec.Experts <gate_layout = "none"> (z, w, e, up_2, down_2) }',
        f"(float[T,4] x) => (float[T,4] y) <float[4,2] r, float[4,2] s, float[2] bias, {WEIGHTS}> {{ "
        'a = MatMul (x, r) "z.next_logits" = MatMul (x, s) '
        '"z.next_weights", "z.next_experts" = moec.Route <k = 1, score = "sigmoid"> ("z.next_logits", bias) '
        '"z.rows" = moec.Expect (x, "z.next_experts", down_2) '
        "z_absent = moec.Absent (a, down) z_weights, z_experts = moec.Route <k = 1> (a, , z_absent) "
        'z = moec.Experts <gate_layout = "none"> ("z.rows", z_weights, z_experts, up, down) '
        "b = MatMul (z, s) y_absent = moec.Absent (b, down_2) "
        'w, e = moec.Route <k = 1, score = "sigmoid"> (b, bias, y_absent) '
        'y = moec.Experts <gate_layout = "none"> (z, w, e, up_2, down_2) }',
    )


def test_weights_that_nodes_decode_come_first():
    model = model_of(
        f"(float[T,4] x) => (float[T,4] y) <float[4,2] r, float[4,2] s, float16[2,4,3] half, {WEIGHTS}> {{ {FIRST} "
        'b = MatMul (z, s) c = Cast <to = 1> (half) y = moec.MoE <gate_layout = "none", k = 1> (z, b, , up_2, c) }'
    )
    pipeline.run(model, PASSES, verify_each=True)
    order = [node.op_type for node in model.graph]
    first = ["MatMul", "Cast", "MatMul", "Route", "Expect", "Absent", "Route", "Experts"]
    assert order == [*first, "MatMul", "Absent", "Route", "Experts"]


@pytest.mark.parametrize("router", ['k = 1, score = "sparsemixer"', 'k = 2, selection = "all"', "k = 1, capacity = 3"])
def test_routers_in_which_no_expert_takes_the_place_of_another(router):
    model = model_of(
        f"(float[T,4] x) => (float[T,4] z) <float[4,2] r, {WEIGHTS}> {{ a = MatMul (x, r) "
        f'z = moec.MoE <gate_layout = "none", {router}> (x, a, , up, down) }}'
    )
    pipeline.run(model, PASSES, verify_each=True)
    assert [node.op_type for node in model.graph] == ["MatMul", "MoE"]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("b = Softmax (t)", "no product of its rows"),
        ("b = MatMul (z, s)", "looks at all tokens together"),
    ],
)
def test_what_cannot_be_told_is_not_expected(second, reason):
    capacity = ", capacity = 2" if "together" in reason else ""
    text = f'{second} y = moec.MoE <gate_layout = "none", k = 1{capacity}> (z, b, , up_2, down_2)'
    model, report = (
        model_of(
            "(float[T,4] x, float[T,2] t) => (float[T,4] y) "
            f"<float[4,2] r, float[4,2] s, {WEIGHTS}> {{ {FIRST} {text} }}"
        ),
        Report(),
    )
    assert pipeline.run(model, PASSES, report)
    assert not any(is_moec(node, "Expect") for node in model.graph) and is_streamed(model)
    assert reason in report.remarks[0].message


def test_it_is_done_once():
    model = model_of(f"(float[T,4] x) => (float[T,4] z) <float[4,2] r, {WEIGHTS}> {{ {FIRST} }}")
    assert pipeline.run(model, pipeline.parse("stream-experts"))
    assert not pipeline.run(model, pipeline.parse("stream-experts"))


def test_shares_come_from_a_profile(tmp_path):
    model = model_of(
        "(float[T,16] x) => (float[T,16] y) <float[16,4] r, float[4,24,16] up, float[4,16,12] down> {"
        " logits = MatMul (x, r) y = moec.MoE <k = 1> (x, logits, , up, down) }"
    )
    path = write_routed(tmp_path / "p.moeprof", model)
    with_measures(path, {"count": np.array([64, 256, 0, 192])})
    pipeline.run(model, pipeline.parse(f"stream-experts{{profile={path}}}"))
    node = model.graph[-1]
    assert is_moec(node, "Experts")
    assert shares_of(node, 4) == [0.125, 0.5, 0, 0.375]
    node.metadata_props[SHARES_KEY] = "[2, 1]"
    with pytest.raises(MoecError, match="expected a share of each of 4 experts"):
        shares_of(node, 4)
