from __future__ import annotations

import numpy as np
import pytest

from moec.passes.framework.base import Report

RANDOM = np.random.default_rng(0)
SHAPES = {"x": 4, "logits": 8}
WEIGHTS = {"up": (8, 6, 4), "down": (8, 4, 6)}
SIGNATURE = "(float[T,4] x, float[T,8] logits, float[8,6,4] up, float[8,4,6] down) => (float[T,4] y{more})"
ROUTE = "w, e = moec.Route <k = 2, normalize = 1> (logits)"
EXPERTS = '{y} = moec.Experts <activation = "relu", gate_layout = "none"> (x, {w}, e, up, down)'


def case(T: int) -> dict[str, np.ndarray]:
    shapes = {**{name: (T, width) for name, width in SHAPES.items()}, **WEIGHTS}
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def one_expert(T: int) -> dict[str, np.ndarray]:
    inputs = case(T)
    inputs["logits"][:] = np.eye(8, dtype=np.float32)[3] * 9
    return inputs


def test_route_and_experts_become_one(rewrite, operators):
    text = f"{SIGNATURE.format(more='')} {{ {ROUTE} {EXPERTS.format(y='y', w='w')} }}"
    report = Report()
    model = rewrite(text, "fuse-route-dispatch", case(0), case(1), case(13), one_expert(5), report=report)
    assert operators(model) == ["MoE"]
    assert not report.remarks
    node = model.graph.node(0)
    assert [None if value is None else value.name for value in node.inputs] == ["x", "logits", None, "up", "down"]
    assert node.attributes["k"].as_int() == 2 and node.attributes["activation"].as_string() == "relu"


@pytest.mark.parametrize(
    "more, body, reason",
    [
        (", float[T,4] z", f"{ROUTE} {EXPERTS.format(y='y', w='w')} {EXPERTS.format(y='z', w='w')}", "uses"),
        (", float[T,2] w", f"{ROUTE} {EXPERTS.format(y='y', w='w')}", "output of the model"),
        ("", f"{ROUTE} v = Mul (w, w) {EXPERTS.format(y='y', w='v')}", "weights are changed"),
        (", float[T,2] s", f"{ROUTE} s = Neg (w) {EXPERTS.format(y='y', w='w')}", "Neg uses"),
    ],
)
def test_a_route_with_other_users_stays(rewrite, operators, more, body, reason):
    report = Report()
    model = rewrite(f"{SIGNATURE.format(more=more)} {{ {body} }}", "fuse-route-dispatch", case(3), report=report)
    assert "MoE" not in operators(model)
    assert reason in report.remarks[0].message
