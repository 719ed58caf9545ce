from __future__ import annotations

import numpy as np
import pytest

from .before_after import check

NAME = "fuse-route-dispatch"
RANDOM = np.random.default_rng(0)
SIGNATURE = "(float[T,4] x, float[T,8] logits) => (float[T,4] y{more}) <float[8,6,4] up, float[8,4,6] down>"
ROUTE = "w, e = moec.Route <k = 2, normalize = 1> (logits)"
EXPERTS = '{y} = moec.Experts <activation = "relu", gate_layout = "none"> (x, {w}, e, up, down)'


def case(T: int) -> dict[str, np.ndarray]:
    return {name: RANDOM.standard_normal((T, size)).astype(np.float32) for name, size in (("x", 4), ("logits", 8))}


def one_expert(T: int) -> dict[str, np.ndarray]:
    return case(T) | {"logits": np.tile(np.eye(8, dtype=np.float32)[3] * 9, (T, 1))}


def test_route_and_experts_become_one():
    remarks = check(
        NAME,
        f"{SIGNATURE.format(more='')} {{ {ROUTE} {EXPERTS.format(y='y', w='w')} }}",
        f"""{SIGNATURE.format(more="")} {{
            y = moec.MoE <k = 2, normalize = 1, activation = "relu", gate_layout = "none">
            (x, logits, , up, down) }}""",
        *(case(0), case(1), case(13), one_expert(5)),
    )
    assert not remarks


@pytest.mark.parametrize(
    "more, body, reason",
    [
        (", float[T,4] z", f"{ROUTE} {EXPERTS.format(y='y', w='w')} {EXPERTS.format(y='z', w='w')}", "uses"),
        (", float[T,2] w", f"{ROUTE} {EXPERTS.format(y='y', w='w')}", "output of the model"),
        ("", f"{ROUTE} v = Mul (w, w) {EXPERTS.format(y='y', w='v')}", "weights are changed"),
        (", float[T,2] s", f"{ROUTE} s = Neg (w) {EXPERTS.format(y='y', w='w')}", "Neg uses"),
    ],
)
def test_a_route_with_other_users_stays(more, body, reason):
    remarks = check(NAME, f"{SIGNATURE.format(more=more)} {{ {body} }}")
    assert reason in remarks[0].message
