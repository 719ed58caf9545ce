"""Nodes of a model's text, and the imported nodes that they were made of."""

from __future__ import annotations

import pytest

from moec.exploring.node_lines import imported_nodes, nodes_of

HEAD = '<\n   ir_version: 10,\n   opset_import: ["" : 24]\n>\n'
HEAD += "main_graph (float[n] x) => (float[n] y)\n<\n   float[n] t\n>\n"


def graph(*nodes: str) -> str:
    return HEAD + "{\n" + "".join(f"   {node}\n" for node in nodes) + "}\n"


IMPORTED = graph(
    "[scale] t = Mul (x, x)",
    "[unused] u = Exp (x)",
    "[mean] m = ReduceMean <keepdims = 1> (t)",
    '["a (b)"] "s\\"q" = Sqrt (m)',
    '[norm] d = Div (x, "s\\"q")',
    "y = Neg (d)",
)


def test_nodes_have_names_values_and_lines_and_unused_ones_are_left_out():
    nodes = nodes_of(IMPORTED)
    assert list(nodes) == ["scale", "mean", "a (b)", "norm", "y"]
    assert nodes["a (b)"].outputs == ('s"q',)
    assert nodes["norm"].inputs == ("x", 's"q')
    assert IMPORTED.splitlines()[nodes["mean"].first] == "   [mean] m = ReduceMean <keepdims = 1> (t)"


def test_a_node_with_a_graph_in_it_has_all_its_lines():
    text = graph(
        "[c] c = Abs (x)",
        "[if] y = If <then_branch: graph = then () => (float[n] a)",
        "{",
        "   [inner] a = Exp (c)",
        "}> (k)",
    )
    nodes = nodes_of(text)
    assert list(nodes) == ["c", "if"], "the graph inside uses the first"
    assert (nodes["if"].last - nodes["if"].first, nodes["if"].inputs) == (3, ("k",))


def test_a_fused_node_is_made_of_the_nodes_that_it_replaced():
    fused = graph("[fused] d2 = RMSNormalization <axis = -1> (x, w)", "[last] y = Neg (d2)")
    renamed = IMPORTED.replace("y = Neg", "[last] y = Neg")
    made_of = imported_nodes((renamed, fused))
    assert made_of == {"fused": {"scale", "mean", "a (b)", "norm"}, "last": {"last"}}


def test_added_nodes_that_pass_values_to_one_another_are_made_of_the_same():
    split = graph("[one] p = RMSNormalization (x, w)", "[two] d = Mul (p, g)", "y = Neg (d)")
    made_of = imported_nodes((IMPORTED, split))
    assert made_of["one"] == made_of["two"] == {"scale", "mean", "a (b)", "norm"}


def test_nodes_that_stay_are_not_origins_of_added_ones():
    """The mean is a result of the graph in both stages."""
    both = ("(float[n] y)", "(float[n] y, float[n] m)")
    fused = graph(
        "[scale] t = Mul (x, x)", "[mean] m = ReduceMean <keepdims = 1> (t)", "[f] d = Norm (x, m)", "y = Neg (d)"
    )
    made_of = imported_nodes(tuple(text.replace(*both) for text in (IMPORTED, fused)))
    assert made_of["f"] == {"a (b)", "norm"}
    assert made_of["mean"] == {"mean"}


@pytest.mark.parametrize("stages", [1, 3])
def test_stages_that_change_nothing_keep_each_node(stages):
    assert imported_nodes((IMPORTED,) * stages) == {name: {name} for name in nodes_of(IMPORTED)}
