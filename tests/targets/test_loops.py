"""Loops whose number of steps is known only when the model runs; against onnxruntime and the reference interpreter."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import moec
from moec.common import loop_steps
from moec.common.errors import InputError, UnsupportedError
from moec.ir import interpreter

from .conftest import parse

LENGTHS = (0, 1, 5, 37)
RANDOM = np.random.default_rng(0)
TANH = """body = step (float[B,3] a, float[B,3] e) => (float[B,3] t, float[B,3] u) {
    m = MatMul (a, w)  n = Tanh (m)  p = Add (n, o)  t = Add (p, e)  u = Neg (t) }"""
WEIGHT = "float[3,3] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}"


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def check(text: str, *cases: dict[str, np.ndarray], by_onnxruntime: bool = True) -> moec.CompiledModel:
    """Compile the graph and compare it on the cases, with one thread and with three."""
    proto = parse(text)
    model = moec.compile(proto, threads=3)
    session = onnxruntime.InferenceSession(proto.SerializeToString()) if by_onnxruntime else None
    for case in cases:
        result, reference = model.run(case), interpreter.run(ir.from_proto(proto), case)
        expected = reference if session is None else dict(zip(result, session.run(None, case), strict=True))
        for name, value in result.items():
            assert value.shape == reference[name].shape and value.dtype == reference[name].dtype
            np.testing.assert_allclose(value, reference[name], 1e-5, 1e-5)
            np.testing.assert_allclose(value, expected[name], 1e-5, 1e-5)
    return model


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> moec.CompiledModel:
    """Several states, scanned values and slices, along other axes, from the end, with a value from outside."""
    text = f"""g (float[B,3] s, int64 k, float[B,T,3] x, float[B,3] v) => (float[B,3] y, int64 c, float[B,T,3] z,
            float[T,B,3] q) <{WEIGHT}, int64 two = {{2}}> {{
        o = Relu (v)
        y, c, z, q = Scan <num_scan_inputs = 2, scan_input_axes = [1, -2], scan_input_directions = [0, 1],
            scan_output_axes = [1, 0], scan_output_directions = [1, 0],
            body = step (float[B,3] a, int64 h, float[B,3] e, float[B,3] f) => (float[B,3] t, int64 i, float[B,3] u,
                    float[B,3] r) {{
                m = MatMul (a, w)  n = Tanh (m)  p = Add (n, o)  t = Add (p, e)  i = Mul (h, two)
                u = Sub (t, f)  g = Cast <to = 1> (h)  r = Mul (f, g) }}> (s, k, x, x) }}"""
    folder = tmp_path_factory.mktemp("scan") / "artifact"
    model = moec.compile(parse(text), output=folder, threads=1)
    model.proto, model.folder = parse(text), folder
    return model


@pytest.mark.parametrize("length", LENGTHS)
def test_a_scan_of_any_length(scan, length):
    case = {"s": numbers(2, 3), "k": np.array(3), "x": numbers(2, length, 3), "v": numbers(2, 3)}
    actual, reference = scan.run(case), interpreter.run(ir.from_proto(scan.proto), case)
    session = onnxruntime.InferenceSession(scan.proto.SerializeToString())
    expected = (
        dict(zip(actual, session.run(None, case), strict=True)) if length else reference
    )  # onnxruntime ends there
    for name in actual:
        assert actual[name].shape == reference[name].shape and actual[name].dtype == reference[name].dtype
        np.testing.assert_allclose(actual[name], reference[name], 1e-5, 1e-5)
        np.testing.assert_allclose(actual[name], expected[name], 1e-5, 1e-5)


def test_any_number_of_threads_computes_the_same_bits_from_an_artifact(scan):
    case = {"s": numbers(2, 3), "k": np.array(3), "x": numbers(2, 9, 3), "v": numbers(2, 3)}
    expected = scan.run(case)
    for threads in (1, 3):
        actual = moec.load(scan.folder, threads=threads).run(case)
        assert all(actual[name].tobytes() == expected[name].tobytes() for name in expected)


def test_sizes_that_follow_from_inputs_are_not_asked_for_when_it_runs(scan):
    """A body's results have sizes of the graph: its loop has no places at which to look for any."""
    assert (scan.folder / "src" / "loop_0.relax").exists()
    main = (scan.folder / "src" / "main.relax").read_text()
    assert re.search(r'"moec\.loop", \(0, 2, 0, 0, ', main) and "tensor_to_shape" not in main


def test_scanned_axes_have_equal_sizes():
    text = """g (float[T,2] x, float[U,2] z) => (float[T,2] y) { y = Scan <num_scan_inputs = 2,
        body = step (float[2] a, float[2] e) => (float[2] u) { u = Add (a, e) }> (x, z) }"""
    model = check(text, {"x": numbers(3, 2), "z": numbers(3, 2)})
    for other in (0, 1, 4):
        with pytest.raises(InputError, match=r"scans axes of T.* and U; expected equal sizes"):
            model.run({"x": numbers(3, 2), "z": numbers(other, 2)})


def test_a_condition_ends_a_loop():
    """The number of slices is known only behind the last step."""
    text = """g (float[N] x, float limit) => (float[N] y, float[S,N] z) <bool yes = {1}> {
        y, z = Loop (, yes, x) <body = step (int64 i, bool c, float[N] v) => (bool d, float[N] w, float[N] u) {
            w = Add (v, v)  s = ReduceSum <keepdims = 0> (w)  d = Less (s, limit)  u = Neg (w) }> }"""
    ones = np.ones(4, np.float32)
    model = check(text, *({"x": ones, "limit": np.array(2.0**limit, np.float32)} for limit in (0, 3, 9)))
    assert model.run({"x": ones, "limit": np.array(64, np.float32)})["z"].shape == (4, 4)


def test_trips_and_conditions_of_the_run_and_a_loop_in_a_loop():
    text = """g (float[N] x, int64 n, int64[1] m, bool go) => (float[N] y, float[S,R,N] z) <bool[1] yes = {1}> {
        y, z = Loop (n, go, x) <body = outer (int64 i, bool c, float[N] v) => (bool d, float[N] w, float[R,N] u) {
            d = Identity (c)
            w, u = Loop (m, yes, v) <
                body = inner (int64[1] j, bool[1] k, float[N] a) => (bool[1] l, float[N] b, float[N] e) {
                l = Identity (k)  f = Cast <to = 1> (j)  g = Add (f, x)  b = Sub (g, a)  e = Mul (b, v) }> }> }"""
    counts = [(n, m, True) for n in (0, 1, 3) for m in (1, 2)] + [(3, 0, True), (2, 2, False), (-1, 2, True)]
    cases = [{"x": numbers(4), "n": np.array(n), "m": np.array([m]), "go": np.array(go)} for n, m, go in counts]
    check(text, *cases, by_onnxruntime=False)  # which gives no slices at all the size 0 along every axis


def test_what_a_loop_carries_may_grow():
    """Tokens chosen one after the other, each appended to those before."""
    text = """g (int64[B,N] ids, int64 n, float[7,7] table) => (int64[B,M] y, float[S,B,7] logits)
            <bool yes = {1}, int64 last = {-1}, int64 axis = {1}> {
        y, logits = Loop (n, yes, ids) <body = step (int64 i, bool c, int64[B,K] v) => (bool d, int64[B,L] w,
                float[B,7] g) {
            d = Identity (c)  e = Gather (table, v)  h = CumSum (e, axis)  g = Gather <axis = 1> (h, last)
            t = ArgMax <axis = -1, keepdims = 1> (g)  w = Concat <axis = 1> (v, t) }> }"""
    ids, table = np.array([[1, 2], [3, 4]]), numbers(7, 7)
    model = check(text, *({"ids": ids, "n": np.array(n), "table": table} for n in (1, 6)))
    assert model.run({"ids": ids, "n": np.array(0), "table": table})["logits"].shape == (0, 2, 7)


def test_loops_that_do_not_end_are_an_error(monkeypatch):
    monkeypatch.setattr(loop_steps, "MAXIMUM_STEPS", 100)
    monkeypatch.setattr(loop_steps, "MAXIMUM_GROWTH", 1 << 16)
    text = """g (float[N] x, float limit) => (float[M] y) <bool yes = {1}> {
        y = Loop (, yes, x) <body = step (int64 i, bool c, float[K] v) => (bool d, float[L] w) {
            s = ReduceMax <keepdims = 0> (v)  d = Less (s, limit)  w = BODY }> }"""
    case = {"x": numbers(4), "limit": np.array(1e9, np.float32)}
    for body, problem in (("Neg (v)", "goes on behind its step 100"), ("Concat <axis = 0> (v, v)", "holds .* bytes")):
        model = moec.compile(parse(text.replace("BODY", body)), passes="infer-shapes,prepare-loops")
        with pytest.raises(InputError, match=f"a loop {problem}"):
            model.run(case)
        assert model.run({**case, "limit": np.array(-1e9, np.float32)})["y"].size in (4, 8)


def test_loops_of_a_branch_that_is_not_chosen_take_no_step():
    """On the data of the other branch, they would not end."""
    text = """g (float[N] x, bool c, bool e) => (float[N] y) <bool yes = {1}, float most = {9}, float least = {-9}> {
        y = If (c) <
            then_branch = up () => (float[] p) { p = Loop (, yes, x) <
                body = more (int64 i, bool g, float[] v) => (bool d, float[] w) {
                    w = Add (v, x)  s = ReduceSum <keepdims = 0> (w)  d = Less (s, most) }> },
            else_branch = other () => (float[] q) { q = If (e) <
                then_branch = no () => (float[] t) { t = Exp (x) },
                else_branch = down () => (float[] u) { u = Loop (, , x) <
                    body = less (int64 j, bool h, float[] a) => (bool f, float[] b) {
                        b = Add (a, x)  r = ReduceSum <keepdims = 0> (b)  f = Greater (r, least) }> }> }> }"""
    cases = [(1, True, False), (-1, False, False), (1, False, True), (-1, False, True), (0, False, True)]
    check(text, *({"x": np.full(3, x, np.float32), "c": np.array(c), "e": np.array(e)} for x, c, e in cases))


def test_a_condition_is_a_truth_value():
    text = """g (float[N] x, int64 n) => (float[N] y) <bool yes = {1}> {
        y = Loop (n, yes, x) <body = step (int64 i, bool c, float[N] v) => (COND d, float[N] w) {
            w = Neg (v)  d = BY }> }"""
    moec.compile(parse(text.replace("COND", "bool").replace("BY", "Greater (i, n)")))
    with pytest.raises(UnsupportedError, match="its condition to go on is float32; expected bool"):
        moec.compile(parse(text.replace("COND", "float").replace("BY", "ReduceSum <keepdims = 0> (w)")))


def test_what_a_body_requires_is_an_error_of_its_node():
    text = """g (float[3] x, float[K] q, int64 n) => (float[3] y) <bool yes = {1}> {
        y = Loop (n, yes, x) <body = step (int64 i, bool c, float[3] v) => (bool d, float[3] w) {
            d = Identity (c)  w = Add (v, q) }> }"""
    model = check(text, {"x": numbers(3), "q": numbers(1), "n": np.array(2)})
    with pytest.raises(InputError, match=r"node 'w' \(Add\): sizes .* do not broadcast"):
        model.run({"x": numbers(3), "q": numbers(2), "n": np.array(2)})


@pytest.mark.parametrize(("body", "problem"), [("Unsqueeze (v, zero)", "the number of its axes"), ("Foo (v)", "Foo")])
def test_bodies_that_cannot_be_compiled_are_refused(body, problem):
    text = f"""g (float[3] x, int64 n) => (float[3] y) <bool yes = {{1}}, int64[1] zero = {{0}}> {{
        y = Loop (n, yes, x) <body = step (int64 i, bool c, float[3] v) => (bool d, float[3] w) {{
            d = Identity (c)  w = {body} }}> }}"""
    with pytest.raises(moec.MoecError, match=problem):
        moec.compile(parse(text))


def test_lstm_of_any_number_of_steps():
    """From the end, with lengths of sequences."""
    text = f"""g (float[T,B,2] x, int32[B] l) => (float[T,1,B,3] y, float[1,B,3] h, float[1,B,3] c) <
            float[1,12,2] w = {{{_weights(24)}}}, float[1,12,3] r = {{{_weights(36)}}}> {{
        y, h, c = LSTM <hidden_size = 3, direction = "reverse"> (x, w, r, , l) }}"""
    lengths = {steps: np.array([steps, steps // 2], np.int32) for steps in (1, 5, 37)}
    model = check(text, *({"x": numbers(steps, 2, 2), "l": length} for steps, length in lengths.items()))
    nothing = model.run({"x": numbers(0, 2, 2), "l": np.array([0, 0], np.int32)})
    assert nothing["y"].shape == (0, 1, 2, 3) and not nothing["h"].any()


def _weights(count: int) -> str:
    return ", ".join(f"{number:.3f}" for number in numbers(count))


def test_a_target_without_loops_says_where_they_run():
    text = f"""g (float[B,3] s, float[T,B,3] x, float[B,3] o) => (float[B,3] y, float[T,B,3] z) <{WEIGHT}> {{
        y, z = Scan <num_scan_inputs = 1, {TANH}> (s, x) }}"""
    with pytest.raises(UnsupportedError, match=r"Scan .*scans axes of size T.* or compile for a CPU"):
        moec.compile(parse(text), target="cuda:sm_80")
