"""Nodes of a model, read from its text."""

from __future__ import annotations

from moec.exploring.model_nodes import ModelNodes, read_model

HEAD = '<\n   ir_version: 10,\n   opset_import: ["" : 24]\n>\n'


def graph(*nodes: str, results: str = "float[n] y") -> ModelNodes:
    """A model of nodes on the values x, w, g and k."""
    inputs = "float[n] x, float[n] w, float[n] g, bool k"
    lines = "".join(f"   {node}\n" for node in nodes)
    return read_model(f"{HEAD}main_graph ({inputs}) => ({results})\n<\n   float[1] c = {{2}}\n>\n{{\n{lines}}}\n")


def test_nodes_have_names_values_and_texts_and_unused_ones_are_not_needed():
    model = graph(
        "[scale] t = Clip (x, , w)",
        "[unused] u = Exp (x)",
        '["a \\"b\\""] "s\\"q", "" = moec.Odd <axis = 1> (t)',
        'y = Mul (w, "s\\"q")',
    )
    assert [node.name for node in model.nodes] == ["scale", "unused", "a _b_", "y"]
    assert list(model.needed) == ["scale", "a _b_", "y"]
    scale, _, odd, last = model.nodes
    assert (scale.inputs, scale.read, scale.outputs) == (("x", "", "w"), ("x", "w"), ("t",))
    assert (odd.operator, odd.outputs) == ("moec.Odd", ('s"q', ""))
    assert odd.text == '["a \\"b\\""] "s\\"q", "" = moec.Odd <axis = 1> (t)'
    assert last.inputs == ("w", 's"q')


def test_a_missing_value_makes_no_node_needed():
    model = graph('[absent] "" = Exp (x)', "[last] y = Clip (x, , w)")
    assert list(model.needed) == ["last"]


def test_a_node_with_a_graph_in_it_reads_what_the_graph_does():
    body = ("graph = then () => (float[n] a)", "{", "[inner] b = Exp (c)", "[last] a = Mul (b, z)", "}")
    model = graph("[z] z = Abs (x)", f"[if] y = If <then_branch: {' '.join(body)}> (k)")
    assert list(model.needed) == ["z", "if"], "the graph inside uses the first"
    node = model.needed["if"]
    assert (node.inputs, set(node.captured), node.inner) == (("k",), {"c", "z"}, {"inner", "last"})
    assert len(node.text.splitlines()) == 5


def test_constants_and_types_are_those_of_the_text():
    model = graph("[z] z = Abs (x)", "[last] y = Mul (z, c)")
    assert model.constants == ["float[1] c = {2.0}"]
    assert (model.types["x"], model.types["c"], model.types["k"], model.types["z"]) == (
        "float[n]",
        "float[1]",
        "bool",
        "",
    )
    assert model.results == {"y"}
