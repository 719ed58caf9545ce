"""The pass that stores large constants once."""

from __future__ import annotations

import numpy as np
import pytest

from moec.passes import pipeline

from ..before_after import check

TABLE = "float[600,256] table, int64[1] zero = {0}, int64[1] half = {300}"
"""Larger than the constants that fold-constants computes at once."""
EMBEDDING = "e = Gather (table, ids)"
TURNED = "t = Transpose <perm = [1, 0]> (table)"


def elements(model) -> int:
    """The elements of the large constants."""
    sizes = (value.const_value.size for value in model.graph.initializers.values())
    return sum(size for size in sizes if size > 16)


def graph(*nodes: str, outputs: str = "float[T,600] y, float[T,256] e") -> str:
    return f"(float[T,256] x, int64[T] ids) => ({outputs}) <{TABLE}> {{ {' '.join(nodes)} }}"


@pytest.mark.parametrize("by", ["share-tables,remove-dead-nodes", pipeline.FOR_ONNXRUNTIME])
@pytest.mark.parametrize(
    "nodes",
    [
        (EMBEDDING, TURNED, "y = MatMul (x, t)"),
        (EMBEDDING, TURNED, "a = MatMul (x, t)", "u = Transpose <perm = [1, 0]> (table)", "b = MatMul (e, u)",
         "y = Add (a, b)"),
        (TURNED, "u = Transpose <perm = [1, 0]> (t)", "e = Gather (u, ids)", "y = MatMul (x, t)"),
    ],
    ids=["one model", "two models", "the transpose of the transpose"],
)  # fmt: skip
def test_a_table_and_its_transpose_are_one_constant(exported, normal, nodes, by):
    model, _ = exported(graph(*nodes), {"x": normal(3, 256), "ids": np.arange(3)}, passes="fold-constants", by=by)
    assert elements(model) == 600 * 256


def test_parts_of_a_stored_table_are_not_stored_again(exported, normal):
    nodes = (EMBEDDING, "part = Slice (table, zero, half)", "t = Transpose <perm = [1, 0]> (part)", "y = MatMul (x, t)")
    text = graph(*nodes, outputs="float[T,300] y, float[T,256] e")
    case = {"x": normal(3, 256), "ids": np.arange(3)}
    model, _ = exported(text, case, passes="fold-constants", by="share-tables,remove-dead-nodes")
    assert elements(model) == 600 * 256


def test_a_transpose_whose_table_nothing_else_reads_is_stored_alone():
    before = "(float[T,256] x) => (float[T,600] y) <float[600,256] table> { %s y = MatMul (x, t) }"
    after = "(float[T,256] x) => (float[T,600] y) <float[256,600] t> { y = MatMul (x, t) }"
    check("fold-constants,remove-dead-nodes,share-tables", before % TURNED, after)


def test_two_tables_stay():
    check(
        "fold-constants,remove-dead-nodes,share-tables",
        "(float[T,256] x, int64[T] ids) => (float[T,600] y, float[T,256] e) <float[600,256] table, float[600,256] head>"
        " { e = Gather (table, ids) t = Transpose <perm = [1, 0]> (head) y = MatMul (x, t) }",
        "(float[T,256] x, int64[T] ids) => (float[T,600] y, float[T,256] e) <float[600,256] table, float[256,600] t>"
        " { e = Gather (table, ids) y = MatMul (x, t) }",
    )
