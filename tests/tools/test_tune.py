"""moec tune: crossovers are measured, kept, and used by every artifact loaded later."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

import moec
from moec.common.crossovers import Point
from moec.common.errors import MoecError
from moec.runtime.tuning import ALWAYS, NEVER, read_tuned
from moec.targets.cpu.hardware.machine import host_has
from moec.tools.crossovers import crossover_of
from moec.tools.tune import measure, tune

E, d, f = 4, 64, 64
MODEL = """<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
block (float[{rows},64] x, float[{rows},4] logits) => (float[{rows},64] y) {{
    y = moec.MoE <k = 2> (x, logits, , up, down)
}}"""
needs_matrix_tiles = pytest.mark.skipif(
    not host_has(["amx-tile", "amx-int8"]), reason="kernels have a second way only on processors with matrix tiles"
)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def compiled(rows: str = "T", passes: str = "quantize-experts{format=int8}"):
    proto = onnx.parser.parse_model(MODEL.format(rows=rows))
    random = np.random.default_rng(0)
    for name, shape in {"up": (E, 2 * f, d), "down": (E, d, f)}.items():
        array = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return moec.compile(proto, passes=passes)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([(1, 9), (2, 8), (4, 7)], NEVER),
        ([(9, 1), (8, 2), (7, 4)], ALWAYS),
        ([(1, 2), (2, 2.5), (4, 3), (8, 5)], 4),
        ([(1, 3), (3, 2.9), (4, 5), (20, 5), (40, 6)], 8),
    ],
)
def test_the_crossover_is_where_the_second_way_pays(seconds, expected):
    points = [Point(2.0**i, *pair) for i, pair in enumerate(seconds)]
    assert crossover_of(points) == expected


@needs_matrix_tiles
def test_measured_values_are_used_from_then_on(tmp_path):
    model = compiled()
    model.save(tmp_path / "model.moec")
    estimated = model.probe.crossovers
    tuned = tune(model)
    assert tuned is not model and model.probe.crossovers == estimated
    assert tuned.probe.crossovers == read_tuned() == moec.load(tmp_path / "model.moec").probe.crossovers
    measured = measure(tuned)
    assert {crossover.name: crossover.before for crossover in measured} == tuned.probe.crossovers
    assert {crossover.name: crossover.rows for crossover in measured} == read_tuned()
    assert all(crossover.kernels and len(crossover.points) > 5 for crossover in measured)


@needs_matrix_tiles
def test_both_ways_compute_the_same():
    model = compiled()
    random = np.random.default_rng(1)
    inputs = {"x": random.standard_normal((40, d), np.float32), "logits": random.standard_normal((40, E), np.float32)}
    results = []
    for crossover in (ALWAYS, NEVER):
        model.probe.set_crossovers(dict.fromkeys(model.probe.crossovers, crossover))
        results.append(model.run(inputs)["y"])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-4)


@needs_matrix_tiles
def test_a_model_of_fixed_sizes_cannot_be_tuned():
    with pytest.raises(MoecError, match="all sizes of the model's inputs are fixed"):
        tune(compiled(rows="5"))


def test_what_is_no_model_is_refused():
    with pytest.raises(MoecError, match="model is 3 of type int; expected a CompiledModel"):
        moec.tune(3)


def test_a_model_without_two_ways_has_nothing_to_tune():
    model = compiled(passes="O0")
    assert measure(model) == [] and tune(model) is model
