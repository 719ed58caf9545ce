"""Sizes that operators need: TopK of more elements than there are must not get an answer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import moec
from moec.common.errors import InputError
from moec.passes.shapes.needed_sizes import needed_sizes

HEADER = '<ir_version: 10, opset_import: ["" : 20]> '
TOP_K = """agraph (float[batch, seq] x) => (float[batch, k] y) <int64[1] k = {3}> { y, i = TopK <axis = %d> (x, k) }"""


def model_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER + text)


@pytest.mark.parametrize(("axis", "expected"), [(-1, ["3 <= seq"]), (1, ["3 <= seq"]), (0, ["3 <= batch"])])
def test_top_k_needs_as_many_as_it_chooses(axis, expected):
    assert needed_sizes(moec.import_model(model_of(TOP_K % axis))) == expected


GATHER = "agraph (float[batch, seq] x) => (float[batch, k] y) <int64[2] k = {%s}> { y = Gather <axis = 1> (x, k) }"


@pytest.mark.parametrize(("places", "expected"), [("-1, 0", "1 <= seq"), ("2, 0", "3 <= seq"), ("0, -4", "4 <= seq")])
def test_gather_needs_the_elements_that_it_takes(places, expected):
    assert needed_sizes(moec.import_model(model_of(GATHER % places))) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "agraph (float[batch, seq] x) => (float[batch, seq] y) { y = Neg (x) }",
        "agraph (float[batch, 8] x) => (float[batch, 3] y) <int64[1] k = {3}> { y, i = TopK (x, k) }",
        "agraph (float[8, seq] x, int64[seq] k) => (float[seq, seq] y) { y = Gather (x, k) }",
        "agraph (float[batch, seq] x, int64[1] k) => (float[batch, n] y) { y, i = TopK (x, k) }",
    ],
)
def test_what_needs_nothing(text):
    assert needed_sizes(moec.import_model(model_of(text))) == []


def test_sizes_of_blocks_are_divided():
    """One block for every four elements that are there, and another one."""
    model = moec.compile(
        model_of("""agraph (float[seq] x) => (float[k] y)
        <int64[1] k = {3}, int64[1] four = {4}, int64[1] one = {1}, int64[1] begin = {0}> {
            length = Shape (x)
            whole = Div (length, four)
            count = Add (whole, one)
            blocks = Expand (one, count)
            places = CumSum (blocks, begin)
            numbers = Cast <to = 1> (places)
            y, i = TopK (numbers, k)
        }""")
    )
    np.testing.assert_array_equal(model(np.ones(8, np.float32))["y"], [3, 2, 1])
    with pytest.raises(InputError, match=r"cannot run where seq = 7"):
        model(np.ones(7, np.float32))


def test_shorter_inputs_are_refused():
    model = moec.compile(model_of(TOP_K % 1))
    np.testing.assert_array_equal(model(np.array([[1, 4, 2, 3]], np.float32))["y"], [[4, 3, 2]])
    assert model(np.ones((2, 3), np.float32))["y"].shape == (2, 3)
    with pytest.raises(InputError, match=r"3 <= seq only, and cannot run where seq = 2 \(axis 1 of input 'x'\)"):
        model(np.ones((1, 2), np.float32))
