"""Sizes that a model fixes at zero: nothing is computed along them, and what is read of nothing is what ONNX says."""

from __future__ import annotations

import numpy as np
import onnx

import moec

from .conftest import parse

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
    actual = moec.compile(proto).run(feeds)
    assert {name: array.shape for name, array in actual.items()} == OUTPUTS
    np.testing.assert_array_equal(actual["exponential"], np.ones(2))
    np.testing.assert_array_equal(actual["joined"], wide)
    np.testing.assert_array_equal(actual["padded"], np.zeros((2, 2)))
    np.testing.assert_array_equal(actual["bias_alone"], np.tile(np.arange(4), (2, 1)))
    np.testing.assert_array_equal(actual["product"], np.zeros((2, 5)))


def test_a_state_of_width_0_is_kept_from_run_to_run():
    """As attention that is split into a part that is rotated and one that is not has it, where the one is empty."""
    table = ", ".join(map(str, range(64)))
    text = f"""g (int64[B,S] input_ids, float[B,1,P,8] past_k, float[B,1,P,0] past_r) =>
        (float[B,S,8] y, float[B,1,Q,8] present_k, float[B,1,Q,0] present_r)
        <float[8,8] w = {{{table}}}, int64[2] parts = {{8, 0}}, int64[1] one = {{1}}> {{
        x = Gather(w, input_ids) a, r = Split<axis = -1>(x, parts) k = Unsqueeze(a, one) rotated = Unsqueeze(r, one)
        present_k = Concat<axis = 2>(past_k, k) present_r = Concat<axis = 2>(past_r, rotated)
        keys = Concat<axis = -1>(present_k, present_r) turned = Transpose<perm = [0,1,3,2]>(keys)
        s = MatMul(k, turned) p = Softmax(s) z = MatMul(p, present_k) y = Squeeze(z, one) }}"""
    model = moec.compile(parse(text))
    ids = np.array([[1, 3, 2]])
    past = {"past_k": np.zeros((1, 1, 0, 8), np.float32), "past_r": np.zeros((1, 1, 0, 0), np.float32)}
    whole = model.run({"input_ids": ids, **past})
    assert whole["present_k"].shape == (1, 1, 3, 8) and whole["present_r"].shape == (1, 1, 3, 0)
    session = model.session()
    session.run(ids[:, :2])
    np.testing.assert_allclose(session.run(ids[:, 2:])[:, -1], whole["y"][:, -1], rtol=1e-5)
