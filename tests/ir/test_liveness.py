"""Live elements: at least those that change the results, and no others where that is known."""

from __future__ import annotations

import zlib

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.interpreter import Evaluator
from moec.ir.liveness import Liveness
from moec.passes import pipeline

from ..text_models import model_of

CONSTANTS = {
    "zero": np.float32(0),
    "one": np.array([1], np.int64),
    "last": np.array([-1], np.int64),
    "begin": np.array([0], np.int64),
    "two": np.array([2], np.int64),
    "pair": np.array([2, 1], np.int64),
    "picked": np.array([2, 0, 2], np.int64),
    "grid": np.array([[2], [0]], np.int64),
    "cells": np.array([[1, 2], [0, 0], [1, 2]], np.int64),
    "flat": np.array([6], np.int64),
    "taller": np.array([4, 2, 3], np.int64),
    "edges": np.array([0, 1, 0, 2], np.int64),
    "axis": np.int64(1),
    "tiny": np.float32(1e-3),
    "mask": np.array([[1, 0, 1], [0, 1, 1]], np.float32),
    "flags": np.array([True, False, True]),
    "weights": np.arange(1, 13, dtype=np.float32).reshape(3, 4),
    "sparse": np.array([[1, 0], [0, 0], [2, 3]], np.float32),
    "stack": np.arange(1, 25, dtype=np.float32).reshape(4, 3, 2),
    "plane": np.zeros((2, 3), np.float32),
    "rows": np.array([[0], [1]], np.int64),
    "row": np.array([2, 3, 5], np.float32),
}
EXACT = [
    "y = Mul (a, w)",
    "y = Mul (a, mask)",
    "y = Div (w, a)",
    "b = Cast <to = 9> (w)\n y = Where (b, a, zero)",
    "b = Cast <to = 9> (w)\n y = Where (b, zero, a)",
    "y = Reshape (a, flat)",
    "y = Unsqueeze (a, one)",
    "y = Transpose <perm = [1, 0]> (a)",
    "y = Expand (a, taller)",
    "y = Add (a, row)",
    "y = ReduceSum (a, last)",
    "y = ReduceMean <keepdims = 0> (a)",
    "y = ReduceSum <keepdims = 0> (a, begin)",
    "y = Gather <axis = 1> (a, picked)",
    "y = GatherElements <axis = 1> (a, grid)",
    "y = GatherND (a, cells)",
    "y = Slice (a, two, begin, one, last)",
    "y = Concat <axis = 0> (w, a)",
    "y, z = Split <axis = 1> (a, pair)",
    "y = Tile (a, pair)",
    "y = Pad (a, edges)",
    "y = Trilu <upper = 0> (a)",
    "y = Compress <axis = 1> (a, flags)",
    "y = ScatterElements <axis = 1> (a, grid, some)\n some = Slice (w, begin, one, one)",
    "y = ScatterElements <axis = 1> (w, grid, some)\n some = Slice (a, begin, one, one)",
    'y = ScatterElements <axis = 1, reduction = "add"> (plane, grid, some)\n some = Slice (a, begin, one, one)',
    "y = ScatterND (plane, rows, a)",
    'y = ScatterND <reduction = "add"> (w, rows, a)',
    "y = MatMul (a, weights)",
    "y = MatMul (a, sparse)",
    "t = Transpose (w)\n y = MatMul (a, t)",
    "t = Transpose (a)\n y = MatMul (w, t)",
    "y = Gemm <transA = 1> (a, w)",
    'y = Einsum <equation = "ab,ab->a"> (a, w)',
    'y = Einsum <equation = "ta,eaf,tf->te"> (a, stack, v)\n v = Slice (w, begin, two, one)',
    'y = Einsum <equation = "...a,abc->...bc"> (a, s)\n s = Transpose <perm = [1, 0, 2]> (stack)',
    "y = Softmax (a)",
    "y = LogSoftmax <axis = 0> (a)",
    "y = LayerNormalization <axis = -1> (a, row)",
    "y = Mul (a, a)",
]
AT_LEAST = [
    "r = Relu (a)\n y = Mul (r, r)",
    "f = Greater (a, zero)\n f1 = Cast <to = 1> (f)\n r = Relu (a)\n y = Mul (r, f1)",
    "y = CumSum (a, axis)",
    "t, i = TopK <axis = 1> (a, two)\n y = Mul (t, t)",
    "y = ReduceMax (a, last)",
    "y = Sinh (a)",
    "y = Hardmax (a)",
    "y = Mish (a)",
]
W = np.array([[0, 2, 0], [3, 0, 4]], np.float32)


class Run:
    """A graph that computes y from a [2,3], which is x, and from w [2,3] with some zeros."""

    def __init__(self, text: str) -> None:
        text = "a = Identity (x)\n " + text
        model = ir.from_proto(model_of(text, CONSTANTS, "float[2,3] x, float[2,3] w"))
        pipeline.run(model, pipeline.parse("infer-shapes"))
        self.x, self.w = model.graph.inputs
        (self.y,) = model.graph.outputs
        model.graph.sort()
        self.evaluator = Evaluator(list(model.graph), [self.x, self.w], [self.y], {"": 24}, dtype=np.float64)
        (self.first,) = (node for node in model.graph if node.op_type == "Identity")
        self.data, self.choices = {self.x}, {self.w}
        for node in model.graph:
            for depending in (self.data, self.choices):
                depending.update(node.outputs if not depending.isdisjoint(node.inputs) else ())

    def y_of(self, x: np.ndarray) -> np.ndarray:
        return self.evaluator.run({self.x: x, self.w: W})[0]

    def live(self, x: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """The elements of a that reach the elements of y that are ``counted``."""
        liveness = Liveness(self.evaluator, [self.first], self.data, self.choices, {})
        self.evaluator.run({self.x: x, self.w: W}, liveness)
        result = liveness.of_decisions({self.y: counted})[self.first]
        return np.ones(x.shape, bool) if result is None else result

    def changing(self, x: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """The elements of a that change the elements of y that are ``counted``."""
        y, result = self.y_of(x), np.zeros(x.shape, bool)
        for place in np.ndindex(*x.shape):
            for number in (-7.5, 0.25, 9.0):
                moved = x.copy()
                moved[place] = number
                result[place] |= bool((self.y_of(moved) != y)[counted].any())
        return result


@pytest.mark.parametrize("text", [*EXACT, *AT_LEAST])
def test_what_changes_the_results_is_live(text: str) -> None:
    run, random = Run(text), np.random.default_rng(zlib.crc32(text.encode()))
    for share in (0.2, 0.6, 1.0):
        x = random.normal(size=(2, 3))
        counted = random.random(run.y_of(x).shape) < share
        live, changing = run.live(x, counted), run.changing(x, counted)
        assert not (changing & ~live).any()
        if text in EXACT and changing.any():
            np.testing.assert_array_equal(live, changing)


def test_nothing_is_hidden_where_constants_hide_everything() -> None:
    """The other side of such a decision shows nowhere, so there is nothing to wait for."""
    assert Run("y = Mul (a, zero)").live(np.ones((2, 3)), np.ones((2, 3), bool)).all()
    assert not Run("z = Sub (w, w)\n y = Mul (a, z)").live(np.ones((2, 3)), np.ones((2, 3), bool)).any()


def test_weights_that_are_next_to_nothing_hide() -> None:
    for power, hidden in (("tiny", True), ("row", False)):
        run = Run(f"p = Pow ({power}, w)\n y = Mul (a, p)")
        live = run.live(np.ones((2, 3)), np.ones((2, 3), bool))
        np.testing.assert_array_equal(live, (W == 0) | (not hidden))


def test_weights_that_are_all_small_count_as_large_ones_do() -> None:
    live = Run("p = Mul (tiny, w)\n q = Mul (p, tiny)\n y = Mul (a, q)").live(np.ones((2, 3)), np.ones((2, 3), bool))
    np.testing.assert_array_equal(live, W != 0)


def test_data_hides_only_where_it_is_zero() -> None:
    """A factor near 0 may be as large as the rest for other rows, unless it is the weight of an expert."""
    x, every = np.array([[30.0, 0, 0], [0, 0, 30]]), np.ones((2, 3), bool)
    assert Run("s = Softmax (x)\n y = Mul (a, s)").live(x, every).all()


def test_values_made_of_the_same_numbers_hide_nothing_and_others_do() -> None:
    """The minimum is 1 only where it is not chosen."""
    x, every = np.array([[3.0, 0, 3], [0, 3, 0]]), np.ones((2, 3), bool)
    assert Run("f = Greater (x, mask)\n m = Abs (a)\n y = Where (f, zero, m)").live(x, every).all()
    others = Run("s = Softmax (x)\n f = Greater (s, mask)\n m = Abs (a)\n y = Where (f, zero, m)").live(x, every)
    np.testing.assert_array_equal(others, np.array([[1, 0, 1], [0, 1, 1]], bool))
