"""Data flow of a graph: kept up to date while blocks are replaced, and answered without reading the whole graph."""

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.weights.stacks import ExpertStack
from moec.passes import raise_moe
from moec.passes.framework.base import Report
from moec.passes.raising.dataflow import DataFlow


@pytest.fixture(params=["batched", "loop"])
def model(request, build, texts, normal):
    return build(texts[request.param], up=normal(4, 10, 6), down=normal(4, 6, 5))


def _values(graph):
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]


def test_data_flow_of_a_replaced_block_is_that_of_the_new_graph(build, texts, monkeypatch):
    graphs = []
    monkeypatch.setattr(raise_moe, "DataFlow", lambda graph: graphs.append(DataFlow(graph)) or graphs[-1])
    model = build(texts["loop"])
    assert raise_moe.RaiseMoE().apply(model, Report())
    (kept,), fresh, nodes = graphs, DataFlow(model.graph), list(model.graph)
    assert len(set(kept.order.values())) == len(nodes)
    assert sorted(kept.order, key=kept.order.__getitem__) == nodes
    assert kept.outputs == fresh.outputs
    for value in _values(model.graph):
        assert kept.constant(value) == fresh.constant(value), value.name
        assert kept.determined_by([value]) == fresh.determined_by([value]), value.name


def test_two_replacements_in_front_of_one_another_keep_the_order(build, texts):
    model = build(texts["loop"])
    graph, last = model.graph, list(model.graph)[-1]
    dataflow = DataFlow(graph)
    for _ in range(3):
        new = [ir.node("Identity", [graph.inputs[0]]) for _ in range(2)]
        graph.insert_before(last, new)
        dataflow.extend(new, before=last)
        last = new[0]
    assert sorted(dataflow.order, key=dataflow.order.__getitem__) == list(graph)


def test_walks_from_a_value_find_what_a_walk_over_all_nodes_finds(model):
    dataflow, nodes, values = DataFlow(model.graph), list(model.graph), _values(model.graph)
    for source in values:
        reached = dataflow.dependents([source], nodes)
        assert {value for value in values if dataflow.depends(value, source)} == reached
        readers = [node for node in nodes if node.op_type != "Shape" and reached.intersection(node.inputs)]
        assert list(dataflow.readers([source])) == readers


@pytest.mark.parametrize("returned", ["weights", "something of the weights", "something of y"])
def test_what_a_router_returns_leads_past_the_block(build, texts, raise_and_compare, returned):
    """The experts' results alone have to pass through y."""
    model = build(texts["loop"])
    source = next(v for v in _values(model.graph) if v.name == ("y_2" if returned == "something of y" else "w"))
    if returned != "weights":
        node = ir.node("Exp", [source])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "more", source.type, source.shape
        model.graph.append(node)
        source = node.outputs[0]
    model.graph.outputs.append(source)
    raised = [node.op_type for node in raise_and_compare(model)]
    assert raised == ([] if returned == "something of y" else ["Route", "Experts"])


@pytest.mark.parametrize(
    "numbers, mask, made",
    [
        ("random", False, [0]),
        ("zeros", True, [0, 0, 1, 2]),
        ("one of them random", False, [0, 0, 1, 2]),
        ("zeros and minus infinity", True, [0, 0, 1, 2]),
        ("one number each, but not of all", False, [0, 0, 1, 2]),
    ],
)
def test_one_expert_of_a_stack_tells_that_it_holds_no_mask(build, texts, normal, numbers, mask, made):
    stack = np.zeros((3, 2, 5), np.float32)
    if numbers == "random":
        stack = normal(3, 2, 5)
    elif numbers == "one of them random":
        stack[1] = normal(2, 5)
    elif numbers == "zeros and minus infinity":
        stack[:, 0] = -np.inf
    elif numbers == "one number each, but not of all":
        stack[0], stack[1:] = 1, 2
    read = []
    tensor = ExpertStack("s", ir.DataType.FLOAT, stack.shape, lambda expert: read.append(expert) or stack[expert])
    value = ir.Value(name="s", const_value=tensor)
    assert DataFlow(build(texts["loop"]).graph).is_mask(value) is mask
    assert read == made
