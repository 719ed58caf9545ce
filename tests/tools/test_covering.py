"""Inputs are chosen so that they take the sides of a model's decisions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.common.specs import tensor_specs
from moec.frontend.onnx import import_model
from moec.passes.framework import pipeline
from moec.tools.covering import Coverage, Covering, cover
from moec.tools.sampling import random_inputs, size_cases

from ..text_models import model_of

CONSTANTS = {
    "limit": np.float32(50),
    "huge": np.float32(1e30),
    "zero": np.int64(0),
    "many": np.int64(600),
    "table": np.arange(5, dtype=np.float32),
    "four": np.float32(4),
}


def model(text: str, inputs: str = "float[N,4] x") -> ir.Model:
    imported = import_model(model_of(text, CONSTANTS, inputs))
    pipeline.run(imported, pipeline.parse("infer-shapes"))
    return imported


def covered(graph: ir.Model, **options) -> Covering:
    specs = tensor_specs(graph.graph.inputs)
    base = [random_inputs(specs, sizes, {"i": 5}) for sizes in size_cases(specs)]
    return cover(graph, base, specs, **options)


def test_a_clamp_is_reached_by_larger_numbers():
    found = covered(model("y = Min (x, limit)"))
    assert len(found.inputs) == 5 and np.abs(found.inputs[-1]["x"]).max() > 50
    assert found.coverage == Coverage(2, []) and found.coverage.share == 1


def test_a_number_of_tokens_is_reached_by_more_of_them():
    text = "s = Shape (x)\n n = Gather (s, zero)\n b = Greater (n, many)\n y = Where (b, x, limit)"
    found = covered(model(text))
    assert not found.coverage.unseen and found.inputs[-1]["x"].shape[0] > 600


def test_many_tokens_are_among_the_inputs_whatever_is_decided():
    found = covered(model("y = Neg (x)"))
    assert found.coverage.share == 1 and found.inputs[-1]["x"].shape[0] == 300


def test_the_last_index_is_reached():
    text = "e = Gather (table, i)\n b = Less (e, four)\n f = Cast <to = 1> (b)\n y = Mul (f, limit)"
    assert not covered(model(text, "int64[N] i")).coverage.unseen


def test_what_nothing_reaches_is_listed_by_node():
    found = covered(model("y = Min (x, huge)"))
    assert len(found.inputs) == 4 and found.coverage.share == 0.5
    (line,) = found.coverage.unseen
    assert line == "Min node 'y': input 0 > input 1"


def test_nothing_is_added_that_is_not_accepted():
    found = covered(model("y = Min (x, limit)"), accepts=lambda inputs: False)
    assert len(found.inputs) == 3 and len(found.coverage.unseen) == 1


def test_given_inputs_are_watched_and_kept():
    inputs = {"x": np.full((2, 4), 99, np.float32)}
    found = cover(model("y = Min (x, limit)"), [inputs])
    assert found.inputs == [inputs] and found.coverage.unseen == ["Min node 'y': input 0 < input 1"]


def test_inputs_that_are_missing_show_nothing():
    assert cover(model("y = Min (x, limit)"), [{}]).coverage.share == 0


def test_a_large_model_is_not_watched(monkeypatch):
    monkeypatch.setattr("moec.tools.covering.MOST_WORK", 1)
    found = covered(model("y = MatMul (x, w)\n", "float[N,4] x, float[4,4] w"))
    assert found.coverage.note is None, "it has no weights"
    found = covered(model("y = Add (x, table)", "float[N,5] x"))
    assert found.coverage.note == "the model is too large to watch its decisions in the interpreter"


def test_what_was_not_taken_is_printed():
    lines = list(Coverage(4, ["Min node 'y': ..."]).lines())
    assert lines == ["decisions: 3 of 4 sides were taken (75%)", "  never taken: Min node 'y': ..."]
    assert list(Coverage(0, [], "too large").lines()) == ["decisions not watched: too large"]
