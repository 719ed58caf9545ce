"""Dominators are the values without which a value cannot be reached from the graph's inputs."""

from __future__ import annotations

import itertools
import random

import onnx
import onnx_ir as ir
import pytest

from moec.passes.raising.dataflow import DataFlow

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'


def graph_of(text: str) -> ir.Graph:
    return ir.from_proto(onnx.parser.parse_model(HEAD + text)).graph


def random_graph(seed: int, count: int = 30) -> ir.Graph:
    """Sums of two earlier values, most of them recent ones, of which some are constants."""
    choose, nodes, names = random.Random(seed), [], ["x", "z", "one"]
    for number in range(count):
        left, right = (choose.choice(names[-choose.choice((2, 4, 40)) :]) for _ in range(2))
        nodes.append(f"v{number} = Add({left}, {right})")
        names.append(f"v{number}")
    return graph_of(f"g (float[4] x, float[4] z) => (float[4] {names[-1]}) <float one = {{1}}> {{ {' '.join(nodes)} }}")


def reaches(graph: ir.Graph, value: ir.Value, without: ir.Value) -> bool:
    """Whether data of an input reaches a value by a way that avoids another one."""
    if value is without:
        return False
    node = value.producer()
    if node is None:
        return value in graph.inputs
    return any(reaches(graph, one, without) for one in node.inputs if one is not None)


@pytest.mark.parametrize("seed", range(12))
def test_each_dominator_is_on_all_ways_and_nothing_else_is(seed):
    graph = random_graph(seed, 12)
    dataflow = DataFlow(graph)
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    values = [value for value in values if not dataflow.constant(value)]
    for value in values:
        found = list(dataflow.dominators(value))
        assert set(found) == {one for one in values if not reaches(graph, value, one)}
        assert all(one in list(dataflow.dominators(nearer)) for nearer, one in itertools.pairwise(found))


def test_random_numbers_are_on_no_way():
    graph = graph_of(
        "g (float[4] x) => (float[4] y) { a = Exp(x) r = RandomNormal<shape = [4]>() t = Tanh(r) y = Add(a, t) }"
    )
    dataflow = DataFlow(graph)
    assert [value.name for value in dataflow.dominators(graph.outputs[0])] == ["y", "a", "x"]


def test_dominators_behind_a_replaced_value_are_found_again():
    graph = graph_of("g (float[4] x) => (float[4] y) { a = Exp(x) b = Tanh(a) y = Neg(b) }")
    dataflow, (_, tanh, negative) = DataFlow(graph), list(graph)
    assert [value.name for value in dataflow.dominators(graph.outputs[0])] == ["y", "b", "a", "x"]
    new = ir.node("Sigmoid", [graph.inputs[0]])
    new.outputs[0].name = "c"
    graph.insert_before(tanh, new)
    dataflow.extend([new], before=tanh)
    negative.replace_input_with(0, new.outputs[0])
    assert [value.name for value in dataflow.dominators(graph.outputs[0])] == ["y", "c", "x"]


def test_a_chain_of_many_nodes_needs_no_recursion():
    nodes = " ".join(f"v{number + 1} = Neg(v{number})" for number in range(3000))
    graph = graph_of(f"g (float[4] v0) => (float[4] v3000) {{ {nodes} }}")
    assert len(list(DataFlow(graph).dominators(graph.outputs[0]))) == 3001
