"""The body of a Loop or Scan as a graph by itself: its inputs, and the results of one step."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import interpreter
from moec.ir.graphs import is_op, outer_values
from moec.ir.loop_bodies import LoopBody, Result, body_of

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\ng '
LOOP = """(float[3] x, float[3] k, int64 n) => (float[3] y, float[3] l, float[S,3] z) <bool yes = {1},
    float[3] w = {1, 2, 3}> { o = Neg (x)  y, l, z = Loop (n, yes, x, k) <
        body = b (int64 i, bool c, float[3] v, float[3] h) => (bool d, float[3] t, float[3] g, float[3] u) {
            d = CONDITION  f = Cast <to = 1> (i)  m = Add (v, f)  t = Mul (m, w)  j = Identity (h)  g = Identity (j)
            u = Add (o, h) }> }"""
SCAN = """(float[2] s, float[2,T] x, float[T,2] q, float[2] o) => (float[2] y, float[T,2] z, float[2,T] r) {
    y, z, r = Scan <num_scan_inputs = 2, scan_input_axes = [1, -2], scan_input_directions = [0, 1],
        scan_output_axes = [0, 1], scan_output_directions = [1, 0],
        body = b (float[2] a, float[2] e, float[2] f) => (float[2] t, float[2] u, float[2] v) {
            t = Add (a, e)  u = Identity (f)  v = Mul (a, o) }> (s, x, q) }"""
ROW = np.array([1, 2, 3], np.float32)


def found(text: str) -> tuple[ir.Node, LoopBody]:
    """The node of a graph with one loop, and its body."""
    model = ir.from_proto(onnx.parser.parse_model(HEADER + text))
    (node,) = (node for node in model.graph if is_op(node, "Loop", "Scan"))
    return node, body_of(node)


def step(body: LoopBody, number: int, going: bool, **outside: np.ndarray) -> list[np.ndarray]:
    """Run one step with values from outside, by name; the body reads nothing else of its surroundings."""
    body.graph.opset_imports[""] = 23
    assert all(value.const_value is not None and value.graph is None for value in outer_values(body.graph))
    first, second, *others = body.graph.inputs
    assert others == list(body.outside)
    feeds = {str(first.name): np.array(number), str(second.name): np.array(going)}
    feeds |= {str(inner.name): outside[str(outer.name)] for inner, outer in body.outside.items()}
    return list(interpreter.run(ir.Model(body.graph, ir_version=10), feeds).values())


def names(*values: ir.Value | None) -> list[str | None]:
    return [None if value is None else value.name for value in values]


def test_a_loop_in_these_terms() -> None:
    node, body = found(LOOP.replace("CONDITION", "Identity (c)"))
    assert (body.trips, body.going, list(body.scanned), body.asks) == (node.inputs[0], node.inputs[1], [], False)
    assert names(*body.outside.values()) == ["x", "k", "o"]
    assert body.results == [Result(), Result(kept=node.inputs[3]), Result(axis=0)]
    assert names(*body.states.values()) == ["v"] and list(body.states) == body.graph.outputs[:1]
    after, slices = step(body, 4, True, x=ROW, k=ROW * 10, o=-ROW)
    np.testing.assert_array_equal(after, (ROW + 4) * ROW)
    np.testing.assert_array_equal(slices, ROW * 9)


@pytest.mark.parametrize(
    ("condition", "asks", "going_on"),
    [
        ("Identity (c)", False, None),
        ("Identity (yes)", False, None),
        ("Not (c)", True, False),
        ("Not (yes)", True, False),
    ],
)
def test_a_body_asks_whether_it_goes_on_where_it_computes_that(
    condition: str, asks: bool, going_on: bool | None
) -> None:
    _, body = found(LOOP.replace("CONDITION", condition))
    assert body.asks is asks and len(body.graph.outputs) == 2 + asks
    assert list(body.states) == [body.graph.outputs[int(asks)]]
    results = step(body, 0, True, x=ROW, k=ROW, o=ROW)
    if asks:
        assert results[0].shape == () and bool(results[0]) is going_on


@pytest.mark.parametrize(("never", "outer"), [("Identity (no)", {}), ("Identity (o)", {"o": False})])
def test_a_value_from_outside_that_ends_a_loop_is_asked_for(never: str, outer: dict[str, bool]) -> None:
    text = """(float[3] x, bool go, int64 n) => (float[3] y) <bool yes = {1}, bool no = {0}> { o = Not (go)
        y = Loop (n, yes, x) <body = b (int64 i, bool c, float[3] v) => (bool d, float[3] t) {
            d = NEVER  t = Neg (v) }> }""".replace("NEVER", never)
    _, body = found(text)
    going, after = step(body, 0, True, x=ROW, **{name: np.array(flag) for name, flag in outer.items()})
    assert body.asks and not going
    np.testing.assert_array_equal(after, -ROW)


def test_a_body_with_its_number_and_condition_along_an_axis() -> None:
    text = """(float[4] x, int64 n, bool[1] go) => (float[1] y) <float[1] zero = {0}> { y = Loop (n, go, zero) <
        body = b (int64[1] i, bool[1] c, float[1] v) => (bool[1] d, float[1] w) {
            d = Not (c)  e = Gather (x, i)  w = Add (v, e) }> }"""
    _, body = found(text)
    assert [str(value.shape) for value in body.graph.inputs[:2]] == ["[]", "[]"]
    going, after = step(body, 2, False, zero=np.zeros(1, np.float32), x=np.arange(4, dtype=np.float32) * 5)
    assert going.shape == () and bool(going) and after.tolist() == [10]


def test_a_scan_in_these_terms() -> None:
    """A step reads its slices from whole values, of which one is read from its end."""
    node, body = found(SCAN)
    assert (body.trips, body.going, body.asks) == (None, None, False)
    assert list(body.scanned) == [(node.inputs[1], 1), (node.inputs[2], -2)]
    assert body.results == [Result(), Result(0, True), Result(1, False)]
    x, q = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(10, 16, dtype=np.float32).reshape(3, 2)
    for number in range(3):
        after, u, v = step(body, number, True, s=ROW[:2], x=x, q=q, o=ROW[1:])
        np.testing.assert_array_equal(after, ROW[:2] + x[:, number])
        np.testing.assert_array_equal(u, q[2 - number])
        np.testing.assert_array_equal(v, ROW[:2] * ROW[1:])


def test_axes_and_directions_that_are_not_said_are_the_first_and_forward() -> None:
    text = SCAN[: SCAN.index(" scan_input_axes")] + SCAN[SCAN.index(" body = b") :]
    node, body = found(text.replace("float[2,T] x", "float[T,2] x"))
    assert list(body.scanned) == [(node.inputs[1], 0), (node.inputs[2], 0)]
    assert body.results == [Result(), Result(0, False), Result(0, False)]


@pytest.mark.parametrize(
    ("text", "old", "new", "problem"),
    [
        (LOOP, "(n, yes, x, k)", "(n, yes, x)", "takes 4 values and makes 4, which does not fit its 3 inputs"),
        (LOOP, "(n, yes, x, k)", "(n, yes, , k)", "an input that its body takes is missing"),
        (LOOP, "y, l, z = Loop", "y, l, z, extra = Loop", "does not fit its 4 inputs and 4 outputs"),
        (LOOP, ", float[3] g, float[3] u)", ")", "takes 4 values and makes 2"),
        (SCAN, "num_scan_inputs = 2", "num_scan_inputs = 0", "does not fit its 3 inputs and 3 outputs"),
        (SCAN, "num_scan_inputs = 2", "num_scan_inputs = 4", "does not fit its 3 inputs and 3 outputs"),
        (SCAN, "(s, x, q)", "(s, x)", "takes 3 values and makes 3, which does not fit its 2 inputs"),
        (SCAN, "y, z, r = Scan", "y, z, r, extra = Scan", "does not fit its 3 inputs and 4 outputs"),
        (SCAN, "scan_input_axes = [1, -2]", "scan_input_axes = [1]", r"are \[1\] and \[0, 1\]; expected 2 each"),
        (
            SCAN,
            "scan_output_directions = [1, 0]",
            "scan_output_directions = [1]",
            "scan_output_axes .* expected 2 each",
        ),
    ],
)
def test_nodes_that_do_not_fit_their_bodies(text: str, old: str, new: str, problem: str) -> None:
    assert old in text
    with pytest.raises(UnsupportedError, match=problem):
        found(text.replace("CONDITION", "Identity (c)").replace(old, new))


def test_a_loop_whose_body_makes_nothing_is_refused() -> None:
    text = """(int64 n) => (int64 m) <bool yes = {1}> { m = Neg (n)  y = Loop (n, yes) <
        body = b (int64 i, bool c) => (bool d) { d = Identity (c) }> }"""
    model = ir.from_proto(onnx.parser.parse_model(HEADER + text))
    body = model.graph[1].attributes["body"].as_graph()
    del body.outputs[:]
    with pytest.raises(UnsupportedError, match="takes 2 values and makes 0"):
        body_of(model.graph[1])
