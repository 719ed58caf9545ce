"""Divergence of a model's output: none for the model itself, and that of the formula for another."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.divergence import total_divergence
from moec.ir.interpreter import run
from moec.passes.weights.output_change import OutputChange

from ..before_after import model_of

SCALED = "(float[T,4] x) => (float[T,4] y) <float[4] scale = {{ {} }}> {{ h = Mul (x, scale) y = Relu (h) }}"
BATCHES = [{"x": np.random.default_rng(seed).normal(size=(3 + seed, 4)).astype(np.float32)} for seed in (0, 1)]


def scaled(*numbers: float):
    return model_of(SCALED.format(", ".join(map(str, numbers))))


def divergence(result: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The mean divergence by its definition."""
    p, q = (np.exp(one.astype(np.float64)) for one in (first, result))
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    return (p * np.log(p / q)).sum(axis=-1)


def test_a_variant_moves_by_the_mean_divergence_of_all_positions():
    model, other = scaled(1, 2, 3, 4), scaled(1, 2, 3, 3.5)
    change = OutputChange(model, BATCHES, "y")
    assert change.of(model) == 0
    each = np.concatenate([divergence(run(other, batch)["y"], run(model, batch)["y"]) for batch in BATCHES])
    assert change.of(other) == pytest.approx(each.mean())
    assert each.mean() > 0


def test_an_error_of_a_node_moves_what_comes_behind_it():
    model = scaled(1, 2, 3, 4)
    change = OutputChange(model, BATCHES, "y")
    node = model.graph.node(0)
    errors = [np.full(batch["x"].shape, 0.5, np.float32) * [1, 0, 0, 0] for batch in BATCHES]
    hidden = [batch["x"] * np.array([1, 2, 3, 4], np.float32) for batch in BATCHES]
    pairs = zip(hidden, errors, strict=True)
    each = np.concatenate([divergence(np.maximum(h + error, 0), np.maximum(h, 0)) for h, error in pairs])
    assert change.with_errors(node, errors) == pytest.approx(each.mean())
    assert change.with_errors(node, [error * 0 for error in errors]) == 0


@pytest.mark.parametrize(
    ("batches", "output", "message"),
    [
        ([{"other": BATCHES[0]["x"]}], "y", "takes inputs"),
        (BATCHES, "z", "there is no output 'z'"),
        ([{"x": np.full((2, 4), np.nan, np.float32)}], "y", "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(batches, output, message):
    with pytest.raises(ValueError, match=message):
        OutputChange(scaled(1, 2, 3, 4), batches, output)


def test_the_divergence_of_many_blocks_is_that_of_all():
    actual, first = np.random.default_rng(0).normal(size=(2, 5, 7, 300_000 // 35)).astype(np.float32)
    total, count = total_divergence(actual, first)
    assert (count, total) == (35, pytest.approx(divergence(actual, first).sum()))
