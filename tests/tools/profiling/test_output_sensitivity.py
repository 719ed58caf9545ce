"""Sensitivities of layers against the real effect of rounding them on a model's output."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.weights.format import WeightFormat
from moec.passes.weights.output_change import OutputChange
from moec.passes.weights.store import store
from moec.profiles.keys import key_of
from moec.tools.profiling.output_sensitivity import MOST_WEIGHTS, output_sensitivities, positions_wanted, too_large
from moec.tools.profiling.threads import measuring_threads

from ...passes.before_after import model_of
from ...passes.profiles import rows_of

FORMS = [WeightFormat("int8"), WeightFormat("int3", 32), WeightFormat("int2", 32)]
TEXT = """(float[T,64] x, float[T,4] logits) => (float[T,64] y)
    <float[4,128,64] up, float[4,64,64] down, float[4,64,64] up2, float[4,64,64] down2, float c = {{0.05}},
     float s = {{{}}}> {{
        h = moec.MoE <k = 2, activation = "silu"{}> (x, logits, , up, down)
        g = Mul (h, s)
        r = Add (x, g)
        z = moec.MoE <k = 2, activation = "relu", gate_layout = "none"> (r, logits, , up2, down2)
        y = Mul (z, c) }}"""


def two_layers(factor: float = 1, more: str = ""):
    return model_of(TEXT.format(factor, more))


def batches() -> list[dict[str, np.ndarray]]:
    logits = np.random.default_rng(5).normal(size=(24, 4)).astype(np.float32)
    return [{"x": rows_of(64, 12, seed), "logits": logits[12 * seed : 12 * seed + 12]} for seed in (0, 1)]


def measured(model, run=map):
    nodes = [node for node in model.graph if node.op_type == "MoE"]
    return output_sensitivities(model, [(key_of(node), node) for node in nodes], batches(), "y", FORMS, run)


@pytest.mark.parametrize("more", ["", ", weight_on_input = 1"])
def test_a_sensitivity_is_the_divergence_over_the_error_of_the_layer(more):
    model = two_layers(more=more)
    first, second = measured(model).values()
    assert first.shape == (3,) and first[0] == first[1] and second.shape == (2,)
    change = OutputChange(model, batches(), "y")
    before = given_by_first(model)
    for name, actual in (("up", first[0]), ("down", first[2])):
        variant = model.clone()
        store(next(node for node in variant.graph if node.op_type == "MoE"), name, [FORMS[1]] * 4)
        error = np.square(given_by_first(variant) - before, dtype=np.float64).sum(axis=1).mean()
        assert actual == pytest.approx(change.of(variant) / error, rel=0.02)
        assert actual > 0


def given_by_first(model) -> np.ndarray:
    """Collect the first layer's outputs over all batches."""
    given = []

    def keep(node, _inputs, outputs):
        if node.op_type == "MoE":
            given.append(outputs[0])

    OutputChange(model, batches(), "y", lambda _batch: keep)
    return np.concatenate(given[::2])


def test_a_layer_whose_output_counts_more_is_more_sensitive():
    small, large = (next(iter(measured(two_layers(factor)).values())) for factor in (0.1, 1))
    assert (large > 5 * small).all()


def test_threads_change_nothing():
    alone = measured(two_layers())
    with measuring_threads(2) as run:
        for actual, expected in zip(measured(two_layers(), run).values(), alone.values(), strict=True):
            assert actual.tolist() == expected.tolist()


def test_positions_and_sizes_are_bounded():
    assert [positions_wanted(tokens, 4) for tokens in (0, 8000, 10**6)] == [128, 1000, 2048]
    model = two_layers()
    weights = 4 * 64 * (128 + 3 * 64) + 2
    assert too_large(model, MOST_WEIGHTS // weights // 2) == ""
    assert "would take too long" in too_large(model, MOST_WEIGHTS // weights)
