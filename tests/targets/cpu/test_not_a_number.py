"""NaN and infinity in inputs and in weights reach the results of a MoE layer exactly where the interpreter says."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline
from moec.targets.cpu.hardware.machine import Machine

from ...products import thinned
from ..node_models import node_model
from .one_node import compile_model

E, k, d, f = 4, 2, 64, 96
SPECS = {"swiglu": ExpertsSpec(), "relu": ExpertsSpec("relu", "none")}
PASSES = {
    "float32": "",
    "bfloat16": "cast-weights{dtype=bf16}",
    "float16": "cast-weights{dtype=fp16}",
    "int8": "quantize-experts{format=int8}",
    "int8 in groups": "quantize-experts{format=int8,group=32}",
    "mxfp4": "quantize-experts{format=mxfp4}",
    "nvfp4": "quantize-experts{format=nvfp4}",
}
FEW, MANY = 1, 70
"""Tokens, all of which go to the same experts: one by dot instructions, many by matrix tiles where there are any."""


def layer(spec: str, stored: str, **bad: float):
    """The compiled layer and its model; ``bad`` puts a number into one place of a weight of expert 1."""
    random = np.random.default_rng(1)
    hidden = 2 * f if SPECS[spec].gated else f
    weights = {
        "up": (random.standard_normal((E, hidden, d)) / np.sqrt(d)).astype(np.float32),
        "down": (random.standard_normal((E, d, f)) / np.sqrt(f)).astype(np.float32),
    }
    for name, value in bad.items():
        weights[name][1, 3, 5] = value
    model = node_model("Experts", feeds(1), weights, SPECS[spec])
    pipeline.run(model, pipeline.parse(PASSES[stored]))
    return compile_model(model, Machine.host()), model


clean_layer = functools.cache(layer)


def feeds(tokens: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(tokens)
    return {
        "x": random.standard_normal((tokens, d)).astype(np.float32),
        "weights": random.random((tokens, k)).astype(np.float32) + np.float32(0.1),
        "experts": np.tile(np.array([[1, 3]], np.int32), (tokens, 1)),
    }


def check(run, model, case: dict[str, np.ndarray]) -> np.ndarray:
    """Compare, and return the result."""
    (y,) = run(**case)
    expected = interpreter.run(model, case, dtype=np.float64)["y"]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(np.where(np.isinf(y), y, 0), np.where(np.isinf(expected), expected, 0))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(y[finite], expected[finite], rtol=0, atol=2e-2)
    return y


@pytest.mark.parametrize("tokens", [FEW, MANY])
@thinned("bad", [np.nan, np.inf, -np.inf], 3)
@thinned("stored", PASSES, 3)
def test_in_the_rows(stored, bad, tokens):
    run, model = clean_layer("swiglu", stored)
    case = feeds(tokens)
    case["x"][tokens // 2, 17] = bad
    y = check(run, model, case)
    assert not np.isfinite(y[tokens // 2]).any()
    assert np.isfinite(np.delete(y, tokens // 2, axis=0)).all()


@pytest.mark.parametrize("tokens", [FEW, MANY])
@thinned("bad", [np.nan, np.inf, -np.inf], 2)
@thinned("stored", ["int8", "float32", "bfloat16"], 2)
def test_in_the_routing_weights(stored, bad, tokens):
    run, model = clean_layer("swiglu", stored)
    case = feeds(tokens)
    case["weights"][0, 1] = bad
    check(run, model, case)


@thinned("bad", [np.nan, np.inf], 2)
@pytest.mark.parametrize("name", ["up", "down"])
@thinned("stored", ["float32", "bfloat16", "float16"], 3)
@thinned("spec", ["relu", "swiglu"], 2)
def test_in_the_weights_of_an_expert(spec, stored, name, bad):
    """With relu, hidden units that came out zero must not be skipped: zero times infinity is NaN."""
    run, model = layer(spec, stored, **{name: bad})
    for tokens in (FEW, MANY):
        y = check(run, model, feeds(tokens))
        assert not np.isfinite(y).all()
