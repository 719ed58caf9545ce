"""Shared experts are found by the graph."""

from __future__ import annotations

from moec.exploring.model_nodes import ModelNodes, read_model
from moec.predicting.beside import beside

HEAD = '<\n   ir_version: 10,\n   opset_import: ["" : 24]\n>\n'


def graph(*nodes: str) -> ModelNodes:
    """Read a model of nodes on the values x and w, whose result is y."""
    lines = "".join(f"   {node}\n" for node in nodes)
    return read_model(f"{HEAD}main_graph (float[n] x, float[n] w) => (float[n] y)\n<\n>\n{{\n{lines}}}\n")


BLOCK = ("[norm] h = Abs (x)", "[router] l = MatMul (h, w)", "[block] e = moec.MoE (h, l)")


def test_a_shared_expert_reads_what_the_block_reads_and_joins_its_result():
    model = graph(
        *BLOCK, "[up] u = MatMul (h, w)", "[down] d = Gemm (u, w)", "[sum] s = Add (e, d)", "[last] y = Add (s, x)"
    )
    assert beside(model, "block") == {"up", "down"}


def test_joins_of_sizes_and_of_what_came_before_do_not_count():
    model = graph(
        *BLOCK,
        "[size] z = Shape (w)",
        "[reshape] r = Reshape (e, z)",
        "[residual] s = Add (r, x)",
        "[up] u = MatMul (x, w)",
        "[last] y = Add (s, u)",
    )
    assert beside(model, "block") == {"up"}


def test_what_needs_the_block_is_not_beside_it():
    model = graph(*BLOCK, "[up] u = MatMul (e, w)", "[last] y = Add (u, e)")
    assert beside(model, "block") == frozenset()
    assert beside(model, "another") == frozenset()
