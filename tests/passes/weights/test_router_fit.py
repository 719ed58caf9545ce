"""The gradient by the logits, against differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.ir import semantics
from moec.ir.dialect import RouteSpec

pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')

from moec.passes.weights.router_fit import pulled_back

SPECS = [
    RouteSpec(2),
    RouteSpec(3, normalize=True, normalize_epsilon=0.1, scale=2.0),
    RouteSpec(3, "sigmoid", normalize=True, normalize_floor=1.2),
    RouteSpec(2, "softplus", threshold=0.9),
    RouteSpec(2, "sqrt_softplus"),
    RouteSpec(2, "relu"),
    RouteSpec(2, "identity", normalize=True),
    RouteSpec(3, "softmax_topk", relative_threshold=0.4),
    RouteSpec(3, "sigmoid_topk", relative_threshold=0.8, normalize=True),
    RouteSpec(5, "softmax", "all"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.score} {spec.selection} {spec.k}")
def test_the_gradient_is_that_of_the_weights_while_the_choice_stays(spec):
    random = np.random.default_rng(0)
    logits, by_weight = random.normal(size=(20, 5)), random.normal(size=(20, spec.k))
    weights, ids = semantics.route(spec, logits)
    chosen = semantics.route(dataclasses.replace(spec, threshold=None, relative_threshold=0.0), logits)[1]
    if spec.threshold or spec.relative_threshold:
        assert (ids < 0).any() and (ids >= 0).any()
    actual = pulled_back(spec, logits, chosen, ids >= 0, by_weight)
    step = 1e-6
    for place in np.ndindex(5):
        moved = logits.copy()
        moved[:, place[0]] += step
        other, same = semantics.route(spec, moved)
        kept = (same == ids).all(axis=1)
        assert kept.mean() > 0.9
        slope = ((other - weights) * by_weight).sum(axis=1) / step
        np.testing.assert_allclose(actual[kept, place[0]], slope[kept], rtol=1e-4, atol=1e-4)
