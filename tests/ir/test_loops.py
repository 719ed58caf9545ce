"""Loop and Scan of the reference interpreter, against onnxruntime where that can run them."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from moec.common import loop_steps
from moec.ir import interpreter

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\ng '
X = np.linspace(-2, 3, 24, dtype=np.float32).reshape(2, 4, 3)
SCAN = """(float[2,3] s, float[2,T,3] x) => (float[2,3] y, float[2,3,T] z) { y, z = Scan <num_scan_inputs = 1,
    scan_input_axes = [1], scan_input_directions = [IN], scan_output_axes = [-1], scan_output_directions = [OUT],
    body = b (float[2,3] a, float[2,3] e) => (float[2,3] t, float[2,3] u) { t = Sub (e, a)  u = Mul (t, e)
    }> (s, x) }"""
LOOP = """(float[3] x, int64 n, float limit) => (float[3] y, float[S,3] z) <bool yes = {1}> { y, z = Loop (n, yes, x) <
    body = b (int64 i, bool c, float[3] v) => (bool d, float[3] w, float[3] u) {
        f = Cast <to = 1> (i)  w = Add (v, f)  s = ReduceMax <keepdims = 0> (w)  d = Less (s, limit)  u = Mul (w, x)
    }> }"""


def run(text: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The results of the interpreter, which are onnxruntime's."""
    proto = onnx.parser.parse_model(HEADER + text)
    result = interpreter.run(ir.from_proto(proto), inputs)
    expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, inputs)
    for value, right in zip(result.values(), expected, strict=True):
        assert value.dtype == right.dtype
        np.testing.assert_allclose(value, right, 1e-6)
    return result


@pytest.mark.parametrize("directions", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_axes_and_directions_of_a_scan(directions):
    text = SCAN.replace("IN", str(directions[0])).replace("OUT", str(directions[1]))
    for length in (1, 4):
        run(text, s=X[:, 0], x=X[:, :length])


@pytest.mark.parametrize(("trips", "limit"), [(5, 99), (5, 3.5), (1, 99)])
def test_a_loop_stacks_its_slices(trips, limit):
    assert run(LOOP, x=X[0, 0], n=np.array(trips), limit=np.array(limit, np.float32))["z"].ndim == 2


def test_a_body_may_take_its_number_and_condition_with_an_axis():
    text = """(float[4,3] x, int64 n, bool[1] go) => (float[1,3] y, float[S,1,3] z) <float[1,3] zero = {0, 0, 0}> {
        y, z = Loop (n, go, zero) <
            body = b (int64[1] i, bool[1] c, float[1,3] v) => (bool[1] d, float[1,3] w, float[1,3] u) {
                d = Identity (c)  e = Gather (x, i)  w = Add (v, e)  u = Mul (w, e) }> }"""
    assert run(text, x=X[0], n=np.array(3), go=np.array([True]))["z"].shape == (3, 1, 3)


def test_loops_without_a_step():
    """Slices have the sizes that a step would make; onnxruntime stops the process for one, and forgets the other's."""
    scan = ir.from_proto(onnx.parser.parse_model(HEADER + SCAN.replace("IN", "0").replace("OUT", "0")))
    actual = interpreter.run(scan, {"s": X[:, 0], "x": X[:, :0]})
    np.testing.assert_array_equal(actual["y"], X[:, 0])
    assert actual["z"].shape == (2, 3, 0) and actual["z"].dtype == np.float32
    loop = ir.from_proto(onnx.parser.parse_model(HEADER + LOOP))
    actual = interpreter.run(loop, {"x": X[0, 0], "n": np.array(0), "limit": np.array(9, np.float32)}, dtype=np.float64)
    assert actual["z"].shape == (0, 3) and actual["z"].dtype == np.float64


def test_a_step_that_cannot_be_computed_says_sizes_by_its_type():
    text = """(float[T,3] x, int64 n) => (float[S,3] z) <bool yes = {1}> { z = Loop (n, yes) <
        body = b (int64 i, bool c) => (bool d, float[3] u) { d = Identity (c)  u = Gather (x, i) }> }"""
    model = ir.from_proto(onnx.parser.parse_model(HEADER + text))
    assert interpreter.run(model, {"x": X[0, :0], "n": np.array(0)})["z"].shape == (0, 3)
    with pytest.raises(interpreter.EvaluationError, match="from an empty axes"):
        interpreter.run(model, {"x": X[0, :0], "n": np.array(1)})


def test_a_loop_that_does_not_end_is_an_error(monkeypatch):
    monkeypatch.setattr(loop_steps, "MAXIMUM_STEPS", 10)
    model = ir.from_proto(onnx.parser.parse_model(HEADER + LOOP))
    far, low = np.array(99, np.float32), np.array(-9, np.float32)
    with pytest.raises(interpreter.EvaluationError, match="goes on behind its step 10"):
        interpreter.run(model, {"x": X[0, 0] * 0 - 99, "n": np.array(11), "limit": far})
    assert len(interpreter.run(model, {"x": X[0, 0], "n": np.array(11), "limit": low})["z"]) == 1


def test_scanned_axes_have_equal_sizes():
    text = """(float[T,3] x, float[U,3] z) => (float[T,3] y) { y = Scan <num_scan_inputs = 2,
        body = b (float[3] a, float[3] e) => (float[3] u) { u = Add (a, e) }> (x, z) }"""
    run(text, x=X[0], z=X[1])
    model = ir.from_proto(onnx.parser.parse_model(HEADER + text))
    with pytest.raises(interpreter.EvaluationError, match=r"axes of sizes \[3, 4\]; expected equal sizes"):
        interpreter.run(model, {"x": X[0], "z": X[1, :3]})


@pytest.mark.parametrize(
    "text",
    [
        """y, p, q = Scan <num_scan_inputs = 1, body = b (float[2,3] a, float[3] e) => (
            float[2,3] t, float[3] u, float[2] v) { """,
        """y, p, q = Loop (n, yes, s) <body = b (int64 i, bool c, float[2,3] a) => (
            bool d, float[2,3] t, float[3] u, float[2] v) { d = Identity (c)  e = Gather (x, i)  """,
    ],
)
@pytest.mark.parametrize("length", [0, 2])
def test_each_of_several_slices_has_its_own_sizes(text, length):
    body = "t = Add (a, e)  u = Neg (e)  v = ReduceSum <keepdims = 0> (a, last) }>"
    head = "(float[2,3] s, float[T,3] x, int64 n) => (float[2,3] y, float[S,3] p, float[S,2] q)"
    constants = "<int64[1] last = {-1}, bool yes = {1}>"
    text = f"{head} {constants} {{ {text} {body} {'(s, x)' if 'Scan' in text else ''} }}"
    model = ir.from_proto(onnx.parser.parse_model(HEADER + text))
    x = np.concatenate([X[0, :length], X[1, :1]]) if "Loop" in text else X[0, :length]
    actual = interpreter.run(model, {"s": X[:, 0], "x": x, "n": np.array(length)})
    np.testing.assert_array_equal(actual["p"], -X[0, :length])
    assert actual["q"].shape == (length, 2)


@pytest.mark.parametrize("count", [0, 3])
def test_a_scan_scans_some_of_its_inputs(count):
    text = SCAN.replace("IN", "0").replace("OUT", "0").replace("num_scan_inputs = 1", f"num_scan_inputs = {count}")
    model = ir.from_proto(onnx.parser.parse_model(HEADER + text))
    with pytest.raises(interpreter.EvaluationError, match=f"num_scan_inputs is {count}, of 2 inputs"):
        interpreter.run(model, {"s": X[:, 0], "x": X})


def test_slices_count_where_only_a_condition_ends_a_loop(monkeypatch):
    """Eight slices of 12 bytes are within a hundred bytes; a loop of so many steps has room for all from the start."""
    monkeypatch.setattr(loop_steps, "MAXIMUM_GROWTH", 100)
    case = {"x": X[0, 0] * 0 - 99, "n": np.array(12), "limit": np.array(99, np.float32)}
    counted, endless = (
        ir.from_proto(onnx.parser.parse_model(HEADER + LOOP.replace("(n, ", trips))) for trips in ("(n, ", "(, ")
    )
    assert len(interpreter.run(counted, case)["z"]) == 12
    with pytest.raises(interpreter.EvaluationError, match="holds 120 bytes in its step 10, and 12 in its first"):
        interpreter.run(endless, case)
    assert len(interpreter.run(endless, {**case, "limit": np.array(-98, np.float32)})["z"]) == 2


def test_a_scan_that_carries_more_and_more_is_an_error(monkeypatch):
    monkeypatch.setattr(loop_steps, "MAXIMUM_GROWTH", 100)
    text = """(float[N] s, float[T] x) => (float[M] y) { y = Scan <num_scan_inputs = 1,
        body = b (float[K] a, float e) => (float[L] t) { u = Mul (a, e)  t = Concat <axis = 0> (a, u) }> (s, x) }"""
    model = ir.from_proto(onnx.parser.parse_model(HEADER + text))
    assert interpreter.run(model, {"s": X[0, 0], "x": X[0, 0]})["y"].shape == (24,)
    with pytest.raises(interpreter.EvaluationError, match="holds 192 bytes in its step 5, and 12 in its first"):
        interpreter.run(model, {"s": X[0, 0], "x": X[0].ravel()})


def test_a_body_reads_what_bodies_in_it_read():
    text = """(float[3] x, int64 n, bool f) => (float[3] y) <bool yes = {1}> { o = Neg (x)  y = Loop (n, yes, x) <
        body = b (int64 i, bool c, float[3] v) => (bool d, float[3] w) { d = Identity (c)  w = If (f) <
            then_branch = one () => (float[3] p) { p = Add (v, o) },
            else_branch = other () => (float[3] q) { q = Identity (x) }> }> }"""
    for flag in (True, False):
        run(text, x=X[0, 0], n=np.array(3), f=np.array(flag))
