from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.common.specs import State
from moec.ir.states import STATES_KEY, set_states, states_of
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.hold_cache import HoldCache

from .before_after import model_of


def marked(text: str, report: Report | None = None) -> list[State]:
    model = model_of(text)
    pipeline.run(model, pipeline.parse("infer-shapes,hold-cache"), report)
    return states_of(model)


GROWN = State("a", "b", 1)
PAIR = "(float[B,S,4] new, float[B,P,4] a) => (float[B,R,4] b) "


@pytest.mark.parametrize(
    "body",
    [
        "{ b = Concat <axis = 1> (a, new) }",
        "{ b = Concat <axis = -2> (a, new) }",
        "{ c = Concat <axis = 1> (a, new) b = Identity (c) }",
        "{ c = Concat <axis = 1> (a, new) b = Concat <axis = 1> (c, new) }",
        "{ x = Transpose <perm = [1, 0, 2]> (a) y = Transpose <perm = [1, 0, 2]> (new) c = Concat <axis = 0> (x, y) "
        "b = Transpose <perm = [1, 0, 2]> (c) }",
    ],
)
def test_what_has_more_behind_it_is_a_state(body):
    assert marked(PAIR + body) == [GROWN]


@pytest.mark.parametrize(
    "body",
    [
        "{ n = Neg (new) b = Concat <axis = 1> (n, a) }",  # in front
        "{ x = Neg (a) b = Concat <axis = 1> (x, new) }",
        "{ x = Transpose <perm = [1, 0, 2]> (a) y = Transpose <perm = [1, 0, 2]> (new) b = Concat <axis = 0> (x, y) }",
        "{ c = Concat <axis = 2> (a, a) b = Concat <axis = 1> (c, new) }",  # along two axes
        "{ b = Identity (a) }",
    ],
)
def test_other_outputs_are_none(body):
    assert marked(PAIR + body) == []


def test_an_axis_of_fixed_size_cannot_grow():
    body = "{ b = Concat <axis = 1> (a, new) }"
    assert marked("(float[B,S,4] new, float[B,P,4] a) => (float[B,R,4] b)" + body)
    assert not marked("(float[B,1,4] new, float[B,3,4] a) => (float[B,4,4] b)" + body)


ATTENTION = "(float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,4] v) => (float[B,2,S,4] y, {outputs}) {{ {names} }}"


def test_the_state_of_linear_attention():
    text = """(float[B,S,8] q, float[B,S,2] decay, float[B,2,4,4] a, float[B,2,4,4] c) => (float[B,S,8] y,
        float[B,2,4,4] b) { y, b = LinearAttention <q_num_heads = 2, kv_num_heads = 2, update_rule = "gated">
        (q, q, q, a, decay) }"""
    assert marked(text) == [State("a", "b", None)]
    assert marked(text.replace("y, b =", "y, x =").replace("decay) }", "decay) b = Add (c, c) }")) == [
        State("c", "b", None)
    ]


def test_keys_and_values_of_attention():
    types = "float[B,2,R,4] {}, float[B,2,R,4] {}"
    body = 'y, pk, pv = Attention (q, q, q, "", k, v)'
    text = ATTENTION.format(outputs=types.format("pk", "pv"), names=body)
    assert marked(text) == [State("k", "pk", 2), State("v", "pv", 2)]
    crossed = ATTENTION.format(outputs=types.format("pv", "pk"), names=body)
    assert marked(crossed) == [State("v", "pv", 2), State("k", "pk", 2)]
    result = "(float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,4] v) => (float[B,2,S,4] y) { y = Attention (q, k, v) }"
    assert marked(result) == []


CACHE = "(float[B,S,4] new, float[B,{size},4] a, int64[B] at) => (float[B,{size},4] b) "


@pytest.mark.parametrize("size", ["9", "R"])
def test_caches_with_room(size):
    text = CACHE.format(size=size)
    assert marked(text + "{ b = TensorScatter <axis = 1> (a, new, at) }") == [GROWN]
    assert marked(text + "{ b = TensorScatter (a, new, at) }") == [GROWN]
    assert not marked(text + '{ b = TensorScatter <axis = 1, mode = "circular"> (a, new, at) }')
    assert not marked(text + "{ n = Neg (a) b = TensorScatter <axis = 1> (n, new, at) }")


def test_caches_that_are_padded_behind():
    text = (
        "(float[B,S,4] new, float[B,P,4] a, int64[B] at, int64[1] more) => (float[B,R,4] b) "
        "<int64[1] zero = {{0}}, int64[1] axis = {{1}}> {{ pads = Concat <axis = 0> ({pads}) "
        'room = Pad (a, pads, "", axis) b = TensorScatter <axis = 1> (room, new, at) }}'
    )
    assert marked(text.format(pads="zero, more")) == [GROWN]
    assert marked(text.format(pads="more, zero")) == []


CONVOLVED = (
    "(float[B,4,S] new, float[B,4,2] a) => (float[B,4,2] b) "
    "<int64[1] from = {-2}, int64[1] to = {9223372036854775807}, int64[1] axis = {2}> "
)
RECURRENT = "(float[B,S,4] new, float[B,4] a) => (float[B,4] b) <int64[1] axis = {1}, float half = {0.5}> "


@pytest.mark.parametrize(
    "text",
    [
        CONVOLVED + "{ c = Concat <axis = 2> (a, new) b = Slice (c, from, to, axis) }",
        RECURRENT + "{ s = ReduceSum <keepdims = 0> (new, axis) d = Mul (a, half) b = Add (d, s) }",
    ],
)
def test_what_is_replaced_as_a_whole(text):
    assert marked(text) == [State("a", "b", None)]


LOOPED = """{ IN b, c = Scan <num_scan_inputs = 1,
    body = step (float[B,4] s, float[B,4] e) => (float[B,4] t, float[B,4] u) { t = Tanh (s)  u = Mul (t, e)
    }> (z, new) }"""


@pytest.mark.parametrize(("before", "is_state"), [("z = Identity (a)", True), ("z = Tanh (a)", False)])
def test_what_a_loop_carries(before, is_state):
    text = "(float[S,B,4] new, float[B,4] a) => (float[B,4] b, float[S,B,4] c) " + LOOPED.replace("IN", before)
    assert marked(text) == ([State("a", "b", None)] if is_state else [])


def test_slices_of_a_loop_are_no_state():
    text = "(float[S,4] a, float[P] other) => (float[4] d, float[S,4] b) <float[4] zero = {0, 0, 0, 0}> {"
    text += "d, b = Scan <num_scan_inputs = 1, body = step (float[4] s, float[4] e) => (float[4] t, float[4] u) {"
    assert marked(text + "t = Add (s, e)  u = Neg (e) }> (zero, a) }") == []


@pytest.mark.parametrize(
    "text",
    [
        RECURRENT + "{ b = ReduceSum <keepdims = 0> (new, axis) }",  # made of something else
        "(float[B,S,4] a) => (float[B,S,4] b) { b = Add (a, a) }",  # a layer
        "(float[B,S,4] a, int64[B,S] at) => (float[B,S,4] b) { b = Add (a, a) }",
        "(float[B,S,4] new, float[4,4] a) => (float[4,4] b) { b = MatMul (a, a) }",
    ],
)
def test_layers_are_no_states(text):
    assert marked(text) == []


def test_a_path_that_is_too_long_is_none():
    def chain(length: int) -> str:
        steps = " ".join(f"x{step + 1} = Neg (x{step})" for step in range(1, length - 1))
        return f"(float[B,S] new, float[B,4] a) => (float[B,4] b) {{ x1 = Neg (a) {steps} b = Neg (x{length - 1}) }}"

    assert marked(chain(16)) == [State("a", "b", None)]
    assert marked(chain(17)) == []


def test_what_could_be_of_several_is_left_with_a_remark():
    report = Report()
    sums = "(float[B,S] new, float[B,4] a, float[B,4] c) => (float[B,4] b) { b = Add (a, c) }"
    assert marked(sums, report) == []
    assert [remark.subject for remark in report.remarks] == ["b"]
    assert "the next of each of 'a', 'c'" in report.remarks[0].message
    report = Report()
    twice = "(float[B,S] new, float[B,4] a) => (float[B,4] b, float[B,4] c) { b = Neg (a) c = Exp (b) }"
    assert marked(twice, report) == []
    assert [remark.subject for remark in report.remarks] == ["b", "c"]
    assert "the next of 'a', as other outputs could" in report.remarks[0].message


def test_marks_that_are_there_stay():
    model = model_of(PAIR + "{ b = Concat <axis = 1> (a, new) }")
    assert HoldCache().apply(model, Report())
    assert not HoldCache().apply(model, Report())
    model.metadata_props[STATES_KEY] = "[1]"
    with pytest.raises(MoecError, match=r"'moec.states': \[0\] is 1; expected an object; run the pass hold-cache"):
        HoldCache().apply(model, Report())


@pytest.mark.parametrize("shape, stays", [("B,4", True), ("B,5", False), ("B,4,1", False)])
def test_a_frontend_knows_states_that_the_graph_does_not_tell(shape, stays):
    """A product is never taken for the next state by a pass."""
    body = "{ b = MatMul (a, new) }" if stays else "{ b = Reshape (new, shape) }"
    model = model_of(f"(float[4,4] new, int64[R] shape, float[B,4] a) => (float[{shape}] b) {body}")
    set_states(model, [State("a", "b", None)])
    HoldCache().apply(model, Report())
    assert states_of(model) == ([State("a", "b", None)] if stays else [])
