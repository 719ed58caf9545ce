"""Warnings about designs whose integers are far from the floats."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline
from moec.targets.hls.moe.quality import signal_to_noise, too_noisy
from moec.targets.hls.options import HlsOptions
from moec.targets.hls.target import HlsTarget

from .graphs import D, E, GraphBuilder


def report(node, output, *, layers=None, of_model=30.0):
    """The report of a block, or of a model with ``layers``."""
    entries = {
        "node": node,
        "quality": {"decibels": {"output": output}},
        "model_outputs": {"y": {"decibels": of_model}},
    }
    return entries if layers is None else {**entries, "layers": [{"node": name, "decibels": r} for name, r in layers]}


def test_an_output_or_a_layer_with_less_than_10_decibels_is_told_with_the_worst_layer():
    assert too_noisy([report("a", 10.0), report("b", None)]) is None
    assert too_noisy([report("a", None, of_model=None)]) is None
    said = too_noisy([report("a", 20.0), report("b", 9.9)])
    assert said.startswith("DO NOT USE THESE PROJECTS")
    assert "the output 'y' has 30.0 dB, worst of all layers 'b' has 9.9 dB; expected 10 at least" in said
    said = too_noisy([report("all", None, layers=[("a", 12.0), ("b", 11.0)], of_model=0.01)])
    assert "the output 'y' has 0.0 dB, worst of all layers 'b' has 11.0 dB" in said


def test_infinities_that_are_the_same_are_no_noise():
    floats = np.array([30.0, -np.inf, np.inf], np.float32)
    assert signal_to_noise(floats, np.array([27.0, -np.inf, np.inf])) == pytest.approx(20)
    assert not signal_to_noise(floats, np.array([27.0, 5.0, np.inf])) > 10
    assert np.isnan(signal_to_noise(np.array([1.0, np.nan]), np.array([1.0, np.nan])))


@pytest.mark.parametrize(("factor", "is_told"), [(1.0, False), (1e6, True)])
def test_a_block_that_adds_a_million_times_its_tokens_is_told(factor, is_told):
    """The scale of the stream fits the block's results, so that tokens round to nothing."""
    graph = GraphBuilder()
    rows = graph.rows(graph.add("LayerNormalization", graph.x, graph.normal(D), graph.normal(D)))
    results = graph.like_x(graph.moe(rows, graph.dense(rows, E), ExpertsSpec("silu", "gate_up")))
    scaled = graph.add("Mul", results, graph.constant(np.float32(factor)))
    model = graph.model(graph.add("Add", scaled, graph.x))
    pipeline.run(model, pipeline.parse("infer-shapes"))
    x = np.random.default_rng(0).normal(size=(1, 20, D)).astype(np.float32)
    warnings = HlsTarget.create("hls:zcu102", HlsOptions({"x": x}, max_tokens=20)).compile(model).warnings
    assert any("worst of all layers 'block' has" in text for text in warnings) == is_told
