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


def reaches(graph: ir.Graph, value: ir.Value, *without: ir.Value) -> bool:
    """Whether data of an input reaches a value by a way that avoids others."""
    if value in without:
        return False
    node = value.producer()
    if node is None:
        return value in graph.inputs
    return any(reaches(graph, one, *without) for one in node.inputs if one is not None)


@pytest.mark.parametrize("seed", range(12))
def test_each_dominator_is_on_all_ways_and_nothing_else_is(seed):
    graph = random_graph(seed, 12)
    dataflow = DataFlow(graph)
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    values = [value for value in values if not dataflow.constant(value)]
    for value in values:
        actual = list(dataflow.dominators(value))
        assert set(actual) == {one for one in values if not reaches(graph, value, one)}
        assert all(one in list(dataflow.dominators(nearer)) for nearer, one in itertools.pairwise(actual))


@pytest.mark.parametrize("seed", range(12))
def test_sources_count_as_constant(seed):
    graph = random_graph(seed, 12)
    dataflow = DataFlow(graph)
    values = [value for node in graph for value in node.outputs if not dataflow.constant(value)]
    for source, value in itertools.product(values[:8], values[8:]):
        sources = dataflow.determined_by([source])
        if not reaches(graph, value, *sources):
            continue  # nothing is on a way that does not exist
        expected = {one for one in [*graph.inputs, *values] if not reaches(graph, value, one, *sources)} - sources
        assert set(dataflow.dominators(value, sources)) == expected


class CountingDataFlow(DataFlow):
    """``visits``: how many values were looked at."""

    visits = 0

    def _is_free_of_data(self, value: ir.Value) -> bool:
        self.visits += 1
        return super()._is_free_of_data(value)

    def _last_data_use(self, value: ir.Value, others: frozenset[ir.Value]) -> float:
        self.visits += 1
        return super()._last_data_use(value, others)


def visits_of(layers: int) -> int:
    """Visits of searches from a gate of each layer, in a graph with a mask that all layers read, and a result of
    each."""
    nodes = [
        f"q{n} = Mul(x{n}, m) k{n} = Exp(q{n}) g{n} = Tanh(q{n}) s{n} = Sigmoid(g{n}) x{n + 1} = Mul(q{n}, s{n})"
        for n in range(layers)
    ]
    results = "".join(f", float[4] k{n}" for n in range(layers))
    graph = graph_of(f"g (float[4] x0, float[4] m) => (float[4] x{layers}{results}) {{ {' '.join(nodes)} }}")
    dataflow = CountingDataFlow(graph)
    dataflow.visits = 0
    for gate in (node.outputs[0] for node in graph if node.op_type == "Tanh"):
        sources = dataflow.determined_by([gate])
        y = next(value for value in dataflow.post_dominators([gate], sources) if value not in sources)
        assert len(list(dataflow.post_dominators([gate], sources))) < 5
        assert next(dataflow.dominators(y, sources)) is y
        assert len(list(dataflow.dominators(y, sources))) == 2
    return dataflow.visits


def test_searches_from_many_gates_walk_through_the_graph_once():
    """They would take four times as long for twice as many."""
    assert visits_of(100) < 2.1 * visits_of(50)


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
