"""The order of nodes, and functions that call each other, before anything is inlined."""

from __future__ import annotations

import time

import numpy as np
import pytest
from onnx import AttributeProto, TensorProto, helper

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.onnx.importer import import_model
from moec.frontend.onnx.structure import ALWAYS_ALLOWED, DEEPEST_CALL
from moec.ir import interpreter

_IMPORTS = [helper.make_opsetid("", 24), helper.make_opsetid("own", 1)]


def model_of(*nodes, functions=()):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T"]) for name in "xy")
    graph = helper.make_graph(list(nodes), "graph", [x], [y])
    return helper.make_model(graph, opset_imports=_IMPORTS, functions=list(functions), ir_version=10)


def function_of(name, *calls):
    """Make a function that calls others one after the other."""
    names = [f"v{index}" for index in range(len(calls))] + ["v"]
    nodes = [
        helper.make_node(call, [a], [b], domain=domain_of(call))
        for call, a, b in zip(calls, names, names[1:], strict=False)
    ]
    return helper.make_function("own", name, [names[0]], ["v"], nodes, _IMPORTS)


def domain_of(call):
    return "own" if call.startswith("F") else ""


def refuse(proto, kind, message):
    with pytest.raises(kind, match=message) as caught:
        import_model(proto)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_nodes_are_sorted():
    nodes = [
        helper.make_node("Neg", ["b"], ["y"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Abs", ["x"], ["a"]),
    ]
    model = import_model(model_of(*nodes))
    assert [node.op_type for node in model.graph] == ["Abs", "Exp", "Neg"]
    x = np.array([-1, 2], np.float32)
    np.testing.assert_allclose(interpreter.run(model, {"x": x})["y"], -np.exp(np.abs(x)), rtol=1e-6)


def test_sorted_nodes_stay_in_their_order():
    nodes = [
        helper.make_node("Exp", ["x"], ["b"]),
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    assert [node.op_type for node in import_model(model_of(*nodes)).graph] == ["Exp", "Abs", "Add"]


def test_nodes_of_functions_and_bodies_are_sorted():
    body = [helper.make_node("Neg", ["b"], ["c"]), helper.make_node("Abs", ["a"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["c"], body, _IMPORTS)
    model = import_model(model_of(helper.make_node("F", ["x"], ["y"], domain="own"), functions=[function]))
    assert [node.op_type for node in model.graph] == ["Abs", "Neg"]


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_a_cycle_names_its_nodes(length):
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{(i + 1) % length}"], f"n{i}") for i in range(length)]
    behind = helper.make_node("Abs", ["v0"], ["y"], "behind")
    cycle = [f"'n{i}' .Neg." for i in range(length)]
    refuse(
        model_of(helper.make_node("Exp", ["x"], ["e"]), behind, *nodes),
        MoecError,
        "needs its own result: the graph has",
    )
    with pytest.raises(MoecError) as caught:
        import_model(model_of(behind, *nodes))
    assert sum(name.replace(".", "") in str(caught.value).replace("(", "").replace(")", "") for name in cycle) == min(
        length, 4
    )
    assert "behind" not in str(caught.value)


def test_a_cycle_in_a_function_and_one_through_a_body():
    body = [helper.make_node("Add", ["a", "c"], ["b"], "first"), helper.make_node("Abs", ["b"], ["c"], "second")]
    function = helper.make_function("own", "F", ["a"], ["c"], body, _IMPORTS)
    call = helper.make_node("F", ["x"], ["y"], domain="own")
    refuse(model_of(call, functions=[function]), MoecError, "'first' .Add.|'second' .Abs.")
    inner = helper.make_graph(
        [helper.make_node("Neg", ["y"], ["i"])], "inner", [], [helper.make_tensor_value_info("i", 1, None)]
    )
    fork = helper.make_node("If", ["x"], ["y"], "fork", then_branch=inner, else_branch=inner)
    refuse(model_of(fork), MoecError, "fork|'i'")


@pytest.mark.parametrize("levels, fits", [(3, True), (8, True), (11, False), (60, False), (DEEPEST_CALL - 1, False)])
def test_functions_that_double(levels, fits):
    """Each function calls the one before twice: 2 ** levels nodes."""
    functions = [
        function_of("F0", "Neg"),
        *(function_of(f"F{i}", f"F{i - 1}", f"F{i - 1}") for i in range(1, levels + 1)),
    ]
    proto = model_of(helper.make_node(f"F{levels}", ["x"], ["y"], domain="own"), functions=functions)
    if fits:
        assert len(import_model(proto).graph) == 2**levels <= ALWAYS_ALLOWED
        return
    start = time.perf_counter()
    refuse(proto, UnsupportedError, "call each other so often that inlining them makes .* nodes")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("depth", [DEEPEST_CALL, DEEPEST_CALL + 1, 3000])
def test_calls_nested_deep(depth):
    functions = [function_of("F1", "Neg"), *(function_of(f"F{i}", f"F{i - 1}") for i in range(2, depth + 1))]
    proto = model_of(helper.make_node(f"F{depth}", ["x"], ["y"], domain="own"), functions=functions)
    if depth == DEEPEST_CALL:
        assert len(import_model(proto).graph) == 1
    else:
        refuse(proto, UnsupportedError, "are nested more than 64 deep")


@pytest.mark.parametrize("calls", [["F0"], ["F1", "F0"], ["F2", "F0", "F1"]])
def test_recursion(calls):
    functions = [function_of(f"F{i}", call) for i, call in enumerate(calls)]
    proto = model_of(helper.make_node("F0", ["x"], ["y"], domain="own"), functions=functions)
    refuse(proto, MoecError, "local function own.F. calls itself")


def test_one_function_used_twice_is_no_recursion():
    functions = [function_of("F0", "Neg"), function_of("F1", "F0"), function_of("F2", "F0", "F1", "F0")]
    assert (
        len(import_model(model_of(helper.make_node("F2", ["x"], ["y"], domain="own"), functions=functions)).graph) == 3
    )


def test_a_body_that_is_an_attribute_of_a_function(tmp_path):
    fork = helper.make_node("If", ["a"], ["c"], "fork")
    fork.attribute.append(AttributeProto(name="then_branch", ref_attr_name="body", type=AttributeProto.GRAPH))
    function = helper.make_function("own", "F", ["a"], ["c"], [fork], _IMPORTS, ["body"])
    proto = model_of(helper.make_node("F", ["x"], ["y"], domain="own"), functions=[function])
    refuse(proto, UnsupportedError, "node 'fork' .If.: its body 'then_branch' is an attribute of a function")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    refuse(
        tmp_path / "m.onnx", UnsupportedError, "node 'fork' .If.: its body 'then_branch' is an attribute of a function"
    )
