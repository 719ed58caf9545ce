"""Errors of single parts in other formats, against an expert recomputed with that part rounded."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec
from moec.ir.expert_outputs import expert_output
from moec.ir.expert_weights import ExpertWeights
from moec.passes.framework.shorthand import parse_format
from moec.tools.profiling import formats
from moec.tools.profiling.formats import expert_errors, rounded

from ...passes.stored_weights import D, E, experts_model

FORMS = [parse_format("formats", form) for form in ("int8", "int4/32", "int2/32")]
SPECS = {
    "gated": ExpertsSpec("silu"),
    "plain": ExpertsSpec("relu", "none"),
    "clipped": ExpertsSpec("silu", limit=1.0, output_limit=0.5),
    "sizes": ExpertsSpec("silu", hidden_sizes=(30, 64, 1, 0, 5, 64)),
}


def weights_of(spec: ExpertsSpec) -> ExpertWeights:
    return ExpertWeights(experts_model(spec).graph.node(0))


def inputs(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, D)).astype(np.float32), random.random(rows).astype(np.float32)


@pytest.mark.parametrize("expert", [0, 3])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_each_part_alone_is_rounded(spec, expert):
    weights, own_inputs, others = weights_of(spec), inputs(7, 0), inputs(3, 1)
    own = {part: weights.decoded(part, expert) for part in weights.parts}
    energy, errors, of_others = expert_errors(weights, expert, own_inputs, others, own, FORMS)

    def energies(rows, gates, changed=None):
        y, moved = (expert_output(weights, expert, rows, parts)[1] for parts in (own, changed or own))
        return np.square((moved - y if changed else y) * gates[:, None], dtype=np.float64).sum()

    np.testing.assert_allclose(energy, energies(*own_inputs), rtol=1e-5)
    for row, form in enumerate(FORMS):
        for column, part in enumerate(weights.parts):
            changed = {**own, part: rounded(own[part], form)}
            np.testing.assert_allclose(errors[row, column], energies(*own_inputs, changed), rtol=1e-3, atol=1e-9)
            np.testing.assert_allclose(of_others[row, column], energies(*others, changed) / 3, rtol=1e-3, atol=1e-9)


def test_some_outputs_stand_for_all(monkeypatch):
    random, rows = np.random.default_rng(0), inputs(64, 0)
    shapes = {"gate": (E, 400, D), "up": (E, 400, D), "down": (E, D, 400)}
    arrays = {name: random.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    weights = ExpertWeights(experts_model(ExpertsSpec("silu", "separate"), arrays).graph.node(0))
    own = {part: weights.decoded(part, 1) for part in weights.parts}
    actual = {}
    for sampled in (400, 100):
        monkeypatch.setattr(formats, "SAMPLED", sampled)
        actual[sampled] = expert_errors(weights, 1, rows, rows, own, FORMS)[1]
    assert not np.array_equal(actual[400], actual[100])
    np.testing.assert_allclose(actual[100], actual[400], rtol=0.2)


def test_a_number_beyond_a_format_shows_wherever_it_is(monkeypatch):
    monkeypatch.setattr(formats, "SAMPLED", 2)
    weights = weights_of(ExpertsSpec("silu"))
    own = {part: np.array(weights.decoded(part, 0)) for part in weights.parts}
    own["down"][0, 3] = 1e6  # half of this is int2's scale, beyond float16
    rows = inputs(4, 0)
    errors = expert_errors(weights, 0, rows, rows, own, FORMS)[1]
    np.testing.assert_array_equal(np.isnan(errors), [[False] * 3, [False, False, True], [False, False, True]])
