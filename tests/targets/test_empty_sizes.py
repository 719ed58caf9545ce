"""Sizes that a model fixes at zero: nothing is computed along them, and what is read of nothing is what ONNX says."""

from __future__ import annotations

import numpy as np
import onnx

import moec

NODES = """
    sum = Add (x, x)
    negated = Neg (sum)
    total = ReduceSum <keepdims = 0> (sum, one)
    exponential = Exp (total)
    joined = Concat <axis = 1> (negated, wide)
    padded = Pad (x, pads)
    shares = Softmax (x)
    no_columns = Gemm (wide, none)
    maximum = Relu (no_columns)
    bias_alone = Gemm (x, no_rows, bias)
    product = MatMul (x, rows)
    values, places = TopK <axis = 0> (line, zero)
    turned = Reshape (x, shape)
"""
OUTPUTS = {
    "negated": (2, 0), "exponential": (2,), "joined": (2, 3), "padded": (2, 2), "shares": (2, 0), "maximum": (2, 0),
    "bias_alone": (2, 4), "product": (2, 5), "values": (0,), "places": (0,), "turned": (0, 7),
}  # fmt: skip


def test_sizes_of_zero() -> None:
    inputs = "float[N,0] x, float[N,3] wide, float[0,M] rows, float[5] line"
    outputs = ", ".join(f"{'int64' if name == 'places' else 'float'}[] {name}" for name in OUTPUTS)
    text = f'<ir_version: 10, opset_import: ["" : 21]>\ng ({inputs}) => ({outputs}) {{ {NODES} }}'
    proto = onnx.parser.parse_model(text)
    constants = {
        "one": np.array([1]),
        "zero": np.array([0]),
        "pads": np.array([0, 1, 0, 1]),
        "shape": np.array([0, 7]),
        "none": np.zeros((3, 0), np.float32),
        "no_rows": np.zeros((0, 4), np.float32),
        "bias": np.arange(4, dtype=np.float32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    proto.graph.node[-1].attribute.append(onnx.helper.make_attribute("allowzero", 1))
    wide, line = np.ones((2, 3), np.float32), np.ones(5, np.float32)
    feeds = {"x": np.zeros((2, 0), np.float32), "wide": wide, "rows": np.zeros((0, 5), np.float32), "line": line}
    found = moec.compile(proto).run(feeds)
    assert {name: array.shape for name, array in found.items()} == OUTPUTS
    np.testing.assert_array_equal(found["exponential"], np.ones(2))
    np.testing.assert_array_equal(found["joined"], wide)
    np.testing.assert_array_equal(found["padded"], np.zeros((2, 2)))
    np.testing.assert_array_equal(found["bias_alone"], np.tile(np.arange(4), (2, 1)))
    np.testing.assert_array_equal(found["product"], np.zeros((2, 5)))
