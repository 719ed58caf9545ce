"""Constants in float64 that are kept, and evaluations of which only a part is run again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.interpreter import Evaluator
from moec.ir.text import parse_model
from moec.ir.widened import WIDENED_FROM, WidenedConstants, only_multiplied

TEXT = """<ir_version: 10, opset_import: ["" : 24]>
g (float[n,2] x, float[n,2] z) => (float[n,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 0, 0, 1}> {
    a = MatMul (x, w) b = MatMul (x, v) c = Add (b, v) d = Mul (a, c) y = Add (d, z) }"""


def values_named(*names: str) -> list[ir.Value]:
    return [ir.Value(name=name) for name in names]


def test_what_is_asked_for_last_is_kept():
    kept, (single, two, large) = WidenedConstants(most_bytes=64), values_named("one", "two", "large")
    ones = np.ones(6, np.float32)
    first = kept.of(single, ones)
    assert first.dtype == np.float64 and kept.of(single, ones) is first
    kept.of(two, ones)
    assert kept.of(single, ones) is not first
    assert kept.of(large, np.ones(9, np.float32)).dtype == np.float32


def test_only_what_nothing_else_reads_is_multiplied_alone():
    graph = parse_model(TEXT).graph
    assert {value.name for value in only_multiplied(list(graph)) if value in graph.initializers.values()} == {"w"}


def test_results_are_the_same_with_and_without():
    graph = parse_model(TEXT).graph
    x, z = np.random.default_rng(0).normal(size=(2, 2, 2))
    feeds = dict(zip(graph.inputs, (x, z), strict=True))
    plain, widened = (
        Evaluator(list(graph), feeds, graph.outputs, {"": 24}, dtype=np.float64, widened=kept)
        for kept in (None, WidenedConstants())
    )
    for _ in range(WIDENED_FROM + 1):
        np.testing.assert_array_equal(plain.run(feeds)[0], widened.run(feeds)[0])


@pytest.mark.parametrize(("runs", "asked"), [(WIDENED_FROM - 1, []), (WIDENED_FROM + 2, ["w"])])
def test_what_runs_a_few_times_widens_as_it_goes(monkeypatch, runs, asked):
    graph = parse_model(TEXT).graph
    feeds = dict.fromkeys(graph.inputs, np.ones((2, 2)))
    kept, widened = WidenedConstants(), WidenedConstants.of
    actual = []
    monkeypatch.setattr(
        WidenedConstants, "of", lambda *arguments: actual.append(arguments[1].name) or widened(*arguments)
    )
    evaluator = Evaluator(list(graph), feeds, graph.outputs, {"": 24}, dtype=np.float64, widened=kept)
    for _ in range(runs):
        evaluator.run(feeds)
    assert actual == asked


def test_what_depends_on_no_change_is_not_computed_again():
    graph = parse_model(TEXT).graph
    x, z = np.random.default_rng(0).normal(size=(2, 2, 2))
    feeds = dict(zip(graph.inputs, (x, z), strict=True))
    evaluator = Evaluator(list(graph), feeds, graph.outputs, {"": 24}, dtype=np.float64)
    values = evaluator.values(feeds)
    values["a"] = values["a"] * np.nan  # which is read by nothing that depends on z
    moved = {graph.inputs[1]: z + 1}
    np.testing.assert_array_equal(evaluator.run_changed(values, moved)[0], evaluator.run({**feeds, **moved})[0])
    assert np.isnan(evaluator.run_changed(values, {graph.inputs[0]: x})[0]).sum() == 0
