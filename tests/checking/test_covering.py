"""Inputs are selected to take the sides of a model's decisions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.checking.covering import Coverage, Covering, cover
from moec.checking.sampling import random_inputs, size_cases
from moec.common.specs import tensor_specs
from moec.frontend.onnx.importer import import_model
from moec.passes import pipeline

from ..text_models import model_of

CONSTANTS = {
    "limit": np.float32(50),
    "huge": np.float32(1e30),
    "zero": np.int64(0),
    "many": np.int64(600),
    "table": np.arange(5, dtype=np.float32),
    "four": np.float32(4),
    "thousand": np.float32(1000),
    "hundred_thousand": np.float32(1e5),
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
    actual = covered(model("y = Min (x, limit)"))
    assert len(actual.inputs) == 5 and np.abs(actual.inputs[-1]["x"]).max() > 50
    assert actual.coverage == Coverage(2, []) and actual.coverage.share == 1


def test_a_number_of_tokens_is_reached_by_more_of_them():
    text = "s = Shape (x)\n n = Gather (s, zero)\n b = Greater (n, many)\n y = Where (b, x, limit)"
    actual = covered(model(text))
    assert not actual.coverage.unseen and actual.inputs[-1]["x"].shape[0] > 600


def test_many_tokens_are_among_the_inputs_whatever_is_decided():
    actual = covered(model("y = Neg (x)"))
    assert actual.coverage.share == 1 and actual.inputs[-1]["x"].shape[0] == 300


def test_the_last_index_is_reached():
    text = "e = Gather (table, i)\n b = Less (e, four)\n f = Cast <to = 1> (b)\n y = Mul (f, limit)"
    assert not covered(model(text, "int64[N] i")).coverage.unseen


def test_what_nothing_reaches_is_listed_by_node():
    actual = covered(model("y = Min (x, huge)"))
    assert len(actual.inputs) == 4 and actual.coverage.share == 0.5
    (line,) = actual.coverage.unseen
    assert line == "Min node 'y': input 0 > input 1"


def test_nothing_is_added_that_is_not_accepted():
    actual = covered(model("y = Min (x, limit)"), accepts=lambda inputs: False)
    assert len(actual.inputs) == 3 and len(actual.coverage.unseen) == 1


def test_given_inputs_are_watched_and_kept():
    inputs = {"x": np.full((2, 4), 99, np.float32)}
    actual = cover(model("y = Min (x, limit)"), [inputs])
    assert actual.inputs == [inputs] and actual.coverage.unseen == ["Min node 'y': input 0 < input 1"]


def test_inputs_that_are_missing_show_nothing():
    assert cover(model("y = Min (x, limit)"), [{}]).coverage.share == 0


def test_a_large_model_is_not_watched(monkeypatch):
    monkeypatch.setattr("moec.checking.covering.MOST_WORK", 1)
    actual = covered(model("y = MatMul (x, w)\n", "float[N,4] x, float[4,4] w"))
    assert actual.coverage.note is None, "it has no weights"
    actual = covered(model("y = Add (x, table)", "float[N,5] x"))
    assert actual.coverage.note == "the model is too large to watch its decisions in the interpreter"


def test_what_was_not_taken_is_printed():
    lines = list(Coverage(4, ["Min node 'y': ..."]).lines())
    assert lines == ["decisions: 3 of 4 sides were taken (75%)", "  never taken: Min node 'y': ..."]
    assert list(Coverage(0, [], "too large").lines()) == ["decisions not watched: too large"]


SMOOTH = """s = Shape (x)
    n = Gather (s, zero)
    f = Cast <to = 1> (n)
    d = Sub (f, {limit})
    g = Sigmoid (d)
    y = Mul (x, g)"""


def test_several_of_everything_are_among_the_inputs():
    shapes = [inputs["x"].shape for inputs in covered(model("y = Neg (x)", "float[A,B,C] x")).inputs]
    assert {(3, 4, 5), (5, 4, 3)} <= set(shapes)
    assert len(covered(model("y = Neg (x)")).inputs) == 4


def test_sizes_are_compared_at_which_a_smooth_switch_turns():
    actual = covered(model(SMOOTH.format(limit="thousand")))
    assert actual.inputs[-1]["x"].shape[0] > 1000 and not actual.coverage.beyond
    assert actual.coverage.sizes == {"N": actual.inputs[-1]["x"].shape[0]}


def test_a_switch_beyond_all_sizes_that_can_be_run_is_told():
    actual = covered(model(SMOOTH.format(limit="hundred_thousand")))
    (reported,) = actual.coverage.beyond
    assert reported.startswith("Sigmoid node 'g': it is another number than in all trials where N = ")
    assert f"  never compared: {reported}" in actual.coverage.lines()


def test_sizes_that_guards_rule_out_are_neither_compared_nor_told():
    graph = model(SMOOTH.format(limit="thousand"))
    actual = covered(graph, guards=["N <= 700"], accepts=lambda inputs: inputs["x"].shape[0] <= 700)
    assert not actual.coverage.beyond and max(inputs["x"].shape[0] for inputs in actual.inputs) <= 700
