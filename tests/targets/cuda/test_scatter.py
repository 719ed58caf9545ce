"""Scatter operators and running sums on a GPU, emulated, against the reference interpreter."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.ir import interpreter

TEXT = """<ir_version: 10, opset_import: ["" : 24]>
g (float[P,3] x, int64[N,1] i, float[N,3] u, float[P,6] y, int64[M,4] j, float[M,4] w, int64[K] k, float[K] v)
    => (float[P,3] last, float[P,3] sum, float[P,6] along, float[P,6] down, float[P] one, float[P,6] running)
    <int64[1] one_axis = {1}, float[1] nothing = {1.0}, int64 axis = {0}> {
    last = ScatterND (x, i, u)
    sum = ScatterND <reduction = "add"> (x, i, u)
    along = ScatterElements <axis = 1> (y, j, w)
    down = ScatterElements <axis = 0, reduction = "mul"> (y, j, w)
    flat = ReduceSum <keepdims = 0> (x, one_axis)
    one = ScatterElements <axis = 0, reduction = "max"> (flat, k, v)
    running = CumSum <exclusive = 1, reverse = 1> (y, axis)
}"""


def _inputs(P: int, N: int, M: int, K: int) -> dict[str, np.ndarray]:
    """Random inputs in which many updates write to the same place."""
    random = np.random.default_rng(P + N)
    floats = {"x": (P, 3), "u": (N, 3), "y": (P, 6), "w": (M, 4), "v": (K,)}
    least = min(P, 6)
    places = {
        "i": random.integers(-P, P, (N, 1)) if P else np.zeros((N, 1), np.int64),
        "j": random.integers(-least, least, (M, 4)) if P else np.zeros((M, 4), np.int64),
        "k": random.integers(-P, P, K) if P else np.zeros(K, np.int64),
    }
    return {name: random.standard_normal(shape, np.float32) for name, shape in floats.items()} | places


@pytest.mark.nightly
def test_updates_are_made_in_their_order(emulated):
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TEXT)))
    run = emulated(model)
    for sizes in ((5, 9, 3, 7), (1, 1, 1, 1), (6, 0, 0, 0), (0, 0, 0, 0), (70, 300, 40, 300)):
        inputs = _inputs(*sizes)
        expected, actual = interpreter.run(model, inputs), run(inputs)
        for name in ("last", "along"):
            np.testing.assert_array_equal(actual[name], expected[name], err_msg=f"{name}, {sizes}")
        for name in ("sum", "down", "one", "running"):
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=f"{name}, {sizes}")


def test_places_outside_are_left_out(emulated):
    text = "(float[P] x, int64[N] i, float[N] u) => (float[P] y) { y = ScatterElements (x, i, u) }"
    model = ir.serde.deserialize_model(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> g {text}'))
    x, places = np.arange(4, dtype=np.float32), np.array([4, -5, 1, 1 << 62, 1], np.int64)
    actual = emulated(model)({"x": x, "i": places, "u": np.array([9, 9, 7, 9, 8], np.float32)})["y"]
    np.testing.assert_array_equal(actual, [0, 8, 2, 3])


@pytest.mark.parametrize("name", ["ScatterND", "CumSum"])
def test_no_operator_is_one_thread(name, program_of):
    texts = {
        "ScatterND": "(float[P,3] x, int64[N,1] i, float[N,3] u) => (float[P,3] y) { y = ScatterND (x, i, u) }",
        "CumSum": "(float[P,3] x) => (float[P,3] y) { a = Constant <value = int64 {0}> () y = CumSum (x, a) }",
    }
    text = f'<ir_version: 10, opset_import: ["" : 24]> g {texts[name]}'
    program = program_of(ir.serde.deserialize_model(onnx.parser.parse_model(text)))
    launched = [launch.block for kernel in program.kernels for launch in kernel.launches]
    assert launched and all(block != ("1",) for block in launched)
