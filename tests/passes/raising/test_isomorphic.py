"""Layers that differ only in their weights are tried with the match of the first of them."""

import re

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from moec.ir import dialect
from moec.passes.framework.base import Report
from moec.passes.raising import check
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.isomorphic import structure_of

LAYER = """
    logits = MatMul (x, router)
    scores = Sigmoid (logits)
    choice = Add (scores, bias)
    best, chosen = TopK <axis = -1> (choice, k)
    w = GatherElements <axis = -1> (scores, chosen)
"""
OWN_WEIGHTS = ("router", "bias", "up", "down")


@pytest.fixture
def layers(texts, build, normal):
    """``layers(biases)``: layers of different weights, one per bias on the choice of experts."""
    layer = LAYER + texts["batched"].removeprefix(texts["router"])
    computed = {name for names in re.findall(r"^\s*([\w, ]+) =", layer, re.MULTILINE) for name in names.split(", ")}

    def rename(index, last):
        names = {name: f"{name}_{index}" for name in (*computed, *OWN_WEIGHTS)}
        names |= {"x": f"y_{index - 1}" if index else "x", "y": "y" if index == last else f"y_{index}"}
        return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), layer)

    def layers(biases):
        shapes = {"router": (6, 4), "up": (4, 10, 6), "down": (4, 6, 5)}
        own = {f"{name}_{i}": normal(*shape) for i in range(len(biases)) for name, shape in shapes.items()}
        own |= {f"bias_{i}": np.array(bias, np.float32) for i, bias in enumerate(biases)}
        return build("".join(rename(i, len(biases) - 1) for i in range(len(biases))), **own)

    return layers


@pytest.fixture
def checked(monkeypatch):
    """For each check of a proposal, whether it was one that had agreed with an isomorphic block."""
    results = []

    def spy(block, proposal, *, isomorphic_agreed=False):
        results.append(isomorphic_agreed)
        return check.check_proposal(block, proposal, isomorphic_agreed=isomorphic_agreed)

    monkeypatch.setattr("moec.passes.raising.matching.blocks.check_proposal", spy)
    monkeypatch.setattr("moec.passes.raising.matching.search.check_proposal", spy)
    return results


def test_equal_layers_are_searched_once_and_checked_each(layers, raise_and_compare, checked):
    report = Report()
    nodes = raise_and_compare(layers([[0.3, -0.2, 0.1, 0], [0, 0.4, -0.1, 0.2], [0.1, 0, 0, -0.3]]), report)
    assert [node.op_type for node in nodes] == ["Route", "Experts"] * 3
    assert checked == [False, True, True]
    assert [dialect.inputs_of(node)["correction_bias"].name for node in nodes[::2]] == ["bias_0", "bias_1", "bias_2"]
    first = report.raised[0]
    assert [block.isomorphic_to for block in report.raised] == ["", first.name, first.name]
    assert len(first.evidence.trials) > 10 and first.evidence.decisions
    for block in report.raised[1:]:
        assert [trial.name for trial in block.evidence.trials] == ["every expert"] and not block.evidence.decisions


def test_a_bias_that_is_zero_in_the_first_layer_alone_is_not_lost(layers, raise_and_compare, checked):
    report = Report()
    nodes = raise_and_compare(layers([[0, 0, 0, 0], [0.3, -0.2, 0.1, 0]]), report)
    assert checked == [False, False]
    biases = [dialect.inputs_of(node)["correction_bias"] for node in nodes[::2]]
    assert biases[0] is None and biases[1].name == "bias_1"
    assert not any(block.isomorphic_to for block in report.raised)


def test_a_bias_that_is_zero_in_both_layers_is_not_searched_for_again(layers, raise_and_compare, checked):
    nodes = raise_and_compare(layers([[0, 0, 0, 0], [0, 0, 0, -0.0]]))  # which are not one constant
    assert checked == [False, True]
    assert [dialect.inputs_of(node)["correction_bias"] for node in nodes[::2]] == [None, None]


CONSTANTS = "float[1] number = {2}, int64[2] places = {1, 2}, float[2] weights = {1, 2}"


def key(x="float[T,6]", logits="float[T,4]", constants=CONSTANTS, inner=None):
    """The key of a block that multiplies rows of x by a number each; ``inner``: the known shape of these numbers."""
    body = "p = Softmax (logits) w = Numbers (p, number, places, weights) y = Mul (x, w)"
    text = f"g ({x} x, {logits} logits) => (float[T,6] y) <{constants}> {{ {body} }}"
    text = f'<ir_version: 10, opset_import: ["" : 24]> {text}'
    graph = ir.from_proto(onnx.parser.parse_model(text)).graph
    nodes, (rows, scores) = list(graph), graph.inputs
    nodes[1].outputs[0].shape = inner
    block = Block(DataFlow(graph), nodes[0], rows, scores, graph.outputs[0], nodes, [], 4, 6)
    return structure_of(block).key


def test_blocks_differ_by_the_types_and_sizes_of_what_they_are_given():
    assert key() == key("float[N,6]", "float[N,4]")
    others = [key("float16[T,6]"), key("float[8,6]"), key("float[B,T,6]"), key("float[N,6]"), key("float")]
    assert len({key(), *others}) == 1 + len(others)


def test_what_is_known_of_sizes_inside_makes_no_difference():
    assert key(inner=ir.Shape(["T", 1])) == key()


@pytest.mark.parametrize(
    "constant, other, told",
    [
        ("number = {2}", "number = {3}", True),
        ("places = {1, 2}", "places = {1, 3}", True),
        ("weights = {1, 2}", "weights = {1, 3}", False),
        ("float[2] weights", "float[1,2] weights", True),
        ("float[2] weights", "double[2] weights", True),
    ],
)
def test_blocks_of_one_structure_differ_in_weights_alone(constant, other, told):
    assert (key(constants=CONSTANTS.replace(constant, other)) != key()) == told
