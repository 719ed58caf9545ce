"""Intervals hold every number that a graph computes, and are as narrow as its operators say."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from moec.frontend.onnx.importer import import_model
from moec.ir.interpreter import Evaluator
from moec.ir.intervals import Interval, intervals, may_hold
from moec.passes import pipeline

from ..text_models import model_of

CONSTANTS = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "seven": np.float32(7),
    "none": np.zeros((0, 5), np.float32),
    "two": np.array([2], np.int64),
    "prime": np.int32(8000009),
    "axis": np.array([-1], np.int64),
    "first": np.int64(0),
    "from_end": np.int64(-2),
    "last": np.int64(1),
    "third": np.int64(3),
    "ids": np.arange(5),
    "depth": np.int64(5),
    "off_on": np.array([0, 1], np.float32),
}


def bounds(text: str, shape: str = "T,5") -> tuple[ir.Model, dict[ir.Value, Interval]]:
    model = import_model(model_of(text, CONSTANTS, f"float[{shape}] x"))
    pipeline.run(model, pipeline.parse("infer-shapes"))
    constant = lambda value: None if value.const_value is None else value.const_value.numpy()  # noqa: E731
    return model, intervals(model.graph, {}, constant)


LARGEST = float(np.finfo(np.float32).max)
CASES = {
    "p = Softmax (x)\n y = Sub (p, one)": (-1, 0),
    "y = Clip (x, zero, seven)": (0, 7),
    "a = Abs (x)\n b = Min (a, seven)\n y = Neg (b)": (-7, 0),
    "s = Sigmoid (x)\n e = Exp (s)\n y = Mul (e, seven)": (7, 7 * math.e),
    "s = Sigmoid (x)\n o = Add (s, one)\n y = Div (seven, o)": (3.5, 7),
    "v, y = TopK (x, two)": (0, 4),
    "y = ArgMax <axis = -1> (x)": (0, 4),
    "n = ArgMax <axis = -1> (x)\n b = GreaterOrEqual (n, depth)\n y = Not (b)": (1, 1),
    "n = ArgMax <axis = -1> (x)\n y = OneHot (n, depth, off_on)": (0, 1),
    "n = ArgMax <axis = -1> (x)\n y = Mod (n, two)": (0, 2),
    "n = ArgMax <axis = -1> (x)\n y = Div (n, two)": (0, 2),
    "n = Shape (x)\n y = Gather (n, first)": (0, 2.0**63),
    "s = Sigmoid (x)\n y = Cast <to = 7> (s)": (0, 1),
    "s = Sigmoid (x)\n c = Greater (s, seven)\n y = Where (c, x, s)": (0, 1),
    "n = ArgMax <axis = -1> (x)\n c = Less (n, third)\n y = Where (c, n, first)": (0, 2),
    "n = ArgMax <axis = -1> (x)\n c = Greater (n, third)\n y = Where (c, third, n)": (0, 3),
    "n = ArgMax <axis = -1> (x)\n c = LessOrEqual (n, third)\n y = Where (c, n, third)": (0, 3),
    "n = ArgMax <axis = -1> (x)\n c = Less (n, third)\n y = Where (c, third, n)": (3, 4),
    "s = Sigmoid (x)\n c = Less (x, zero)\n y = Where (c, s, zero)": (0, 1),
    "c = Less (x, seven)\n y = Where (c, zero, x)": (0, LARGEST),
    "s = Sigmoid (x)\n y = ReduceSum (s, axis)": (0, LARGEST),
    's = Sigmoid (x)\n y = Einsum <equation = "te,te->te"> (s, s)': (0, LARGEST),
    's = Sigmoid (x)\n a = Tanh (x)\n y = Einsum <equation = "te,te->te"> (s, a)': (-LARGEST, LARGEST),
    "y = Tanh (x)": (-1, 1),
    "n = Shape (x)\n y = Cast <to = 3> (n)": (-128, 127),
    "n = ArgMax <axis = -1> (x)\n y = Cast <to = 3> (n)": (0, 4),
    "n = Shape (x)\n m = Cast <to = 6> (n)\n y = Mul (m, prime)": (-(2.0**31), 2.0**31 - 1),
    "a = Abs (x)\n b = Neg (a)\n y = Cast <to = 9> (b)": (0, 1),
    "s = Sigmoid (x)\n o = Add (s, one)\n n = Neg (o)\n y = Cast <to = 9> (n)": (1, 1),
    "y = Concat <axis = 0> (x, none)": (-LARGEST, LARGEST),
    "s = Sigmoid (x)\n a = Abs (x)\n y = Div (s, a)": (0, LARGEST),
}


@pytest.mark.parametrize("text", CASES)
def test_what_is_known_of_the_last_value(text: str) -> None:
    model, actual = bounds(text)
    np.testing.assert_allclose(actual[model.graph.outputs[0]].whole, CASES[text])


@pytest.mark.parametrize("text", CASES)
def test_no_number_lies_outside(text: str) -> None:
    model, result = bounds(text)
    values = [value for node in model.graph for value in node.outputs if value.name]
    evaluator = Evaluator(list(model.graph), model.graph.inputs, values, {"": 24}, dtype=np.float64)
    for scale in (1e-3, 1.0, 30.0):
        x = np.random.default_rng(0).normal(size=(9, 5)) * scale
        for value, array in zip(values, evaluator.run({model.graph.inputs[0]: x}), strict=True):
            low, high = result[value].whole
            slack = 1e-12 * max(1.0, abs(low) if math.isfinite(low) else 1.0)
            assert low - slack <= array.min() and array.max() <= high + slack, value.name


def test_a_scatter_that_replaces_everything_leaves_nothing_of_the_data() -> None:
    text = "p = Softmax (x)\n i = ArgMax <axis = -1> (p)\n z = Mul (x, x)\n y = ScatterElements <axis = -1> (z, i, p)"
    assert bounds(text, "T,1")[1]
    model, actual = bounds(text, "T,1")
    assert actual[model.graph.outputs[0]].whole == (0, 1)


def test_numbers_of_a_type_are_finite() -> None:
    model, actual = bounds("t = MatMul (x, x)\n y = Identity (t)", "5,5")
    assert actual[model.graph.outputs[0]].whole == (np.finfo(np.float32).min, np.finfo(np.float32).max)


@pytest.mark.parametrize(
    "relation, holds",
    [("<", False), ("<=", True), (">", True), (">=", True), ("==", True), ("!=", True)],
)
def test_what_may_hold(relation: str, holds: bool) -> None:
    assert bool(may_hold(relation, Interval(1.0, 2.0), Interval(0.0, 1.0))) == holds


def test_equal_numbers_are_never_unequal() -> None:
    assert not may_hold("!=", Interval(1.0, 1.0), Interval(1.0, 1.0))


def test_every_bound_is_asked_for_itself() -> None:
    limits = np.array([1.0, 5.0, math.inf])
    assert may_hold(">", Interval(0.0, 3.0), Interval(limits, limits)).tolist() == [True, False, False]


@pytest.mark.parametrize(("place", "expected"), [("first", 5), ("from_end", 5), ("last", None)])
def test_a_size_that_is_known_is_gathered_alone(place, expected):
    model, actual = bounds(f"n = Shape (x)\n y = Gather (n, {place})", "5,T")
    assert actual[model.graph.outputs[0]] == (Interval(expected, expected) if expected else Interval(0, 2.0**63))
