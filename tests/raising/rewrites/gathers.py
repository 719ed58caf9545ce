"""Gathering rows and scattering them back, otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..edit import Writer, array_of, attribute, ints, is_float, nodes, rank, some, substitute
from ..registry import Rewrite, rewrite

Spelling = Callable[[Writer, ir.Value, ir.Value], ir.Value]


def _of_row_gathers(spelling: Spelling, allowed: Callable[[ir.Node], bool]) -> Rewrite:
    """Another spelling of some Gathers of rows (axis 0, indices of one dimension)."""

    def is_place(node: ir.Node) -> bool:
        data, indices = node.inputs
        return attribute(node, "axis", 0) == 0 and rank(indices) == 1 and is_float(data) and allowed(node)

    def apply(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
        chosen = some(random, filter(is_place, nodes(model, "Gather")))
        for node in chosen:
            data, indices = node.inputs
            assert data is not None and indices is not None
            substitute(node, spelling(Writer(model, node), data, indices))
        return model if chosen else None

    apply.__name__ = spelling.__name__
    return apply


def _of_weights(node: ir.Node) -> bool:
    return array_of(node.inputs[0]) is not None


def _of_any_rows(node: ir.Node) -> bool:
    return rank(node.inputs[0]) in (2, 3)


def gather_of_weights_as_one_hot_product(write: Writer, data: ir.Value, indices: ir.Value) -> ir.Value:
    array = array_of(data)
    assert array is not None
    hot = write.op("OneHot", indices, np.array(len(array)), np.array([0, 1], np.float32))
    rows = write.op("MatMul", hot, array.reshape(len(array), -1))
    return write.op("Reshape", rows, ints(-1, *array.shape[1:]))


def gather_of_weights_as_equal_and_product(write: Writer, data: ir.Value, indices: ir.Value) -> ir.Value:
    """The mask made by comparisons, the product as an Einsum."""
    array = array_of(data)
    assert array is not None
    hits = write.op("Equal", write.op("Unsqueeze", indices, ints(1)), np.arange(len(array)))
    hot = write.op("Cast", hits, to=ir.DataType.FLOAT)
    rows = write.op("Einsum", hot, array.reshape(len(array), -1), equation="pe,ew->pw")
    return write.op("Reshape", rows, ints(-1, *array.shape[1:]))


def gather_of_flattened_weights(write: Writer, data: ir.Value, indices: ir.Value) -> ir.Value:
    """Weights are rows of a table, as an embedding stores them."""
    array = array_of(data)
    assert array is not None
    table = write.constant(array.reshape(len(array), -1))
    return write.op("Reshape", write.op("Gather", table, indices, axis=0), ints(-1, *array.shape[1:]))


def gather_as_gather_nd(write: Writer, data: ir.Value, indices: ir.Value) -> ir.Value:
    return write.op("GatherND", data, write.op("Unsqueeze", indices, ints(1)))


def gather_as_gather_elements(write: Writer, data: ir.Value, indices: ir.Value) -> ir.Value:
    axes = ints(*range(1, rank(data) or 0))
    shape = write.op("Concat", write.op("Shape", indices), write.op("Shape", data, start=1), axis=0)
    return write.op("GatherElements", data, write.op("Expand", write.op("Unsqueeze", indices, axes), shape), axis=0)


for _spelling, _where in (
    (gather_of_weights_as_one_hot_product, _of_weights),
    (gather_of_weights_as_equal_and_product, _of_weights),
    (gather_of_flattened_weights, _of_weights),
    (gather_as_gather_nd, _of_any_rows),
    (gather_as_gather_elements, _of_any_rows),
):
    rewrite(_of_row_gathers(_spelling, _where))


def _row_scatters(model: ir.Model) -> list[ir.Node]:
    """ScatterND that adds rows [n,d] at places [n,1]."""
    return [
        node
        for node in nodes(model, "ScatterND")
        if attribute(node, "reduction", "none") == "add" and rank(node.inputs[2]) == 2 and rank(node.inputs[1]) == 2
    ]


Scatter = Callable[[Writer, ir.Value, ir.Value, ir.Value], ir.Value]


def _of_row_scatters(spelling: Scatter) -> Rewrite:
    def apply(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
        chosen = some(random, _row_scatters(model))
        for node in chosen:
            y, places, rows = node.inputs
            assert y is not None and places is not None and rows is not None
            substitute(node, spelling(Writer(model, node), y, places, rows))
        return model if chosen else None

    apply.__name__ = spelling.__name__
    return apply


def scatter_of_rows_as_scatter_of_elements(write: Writer, y: ir.Value, places: ir.Value, rows: ir.Value) -> ir.Value:
    wide = write.op("Expand", places, write.op("Shape", rows))
    return write.op("ScatterElements", y, wide, rows, axis=0, reduction="add")


def scatter_on_zeros_and_add(write: Writer, y: ir.Value, places: ir.Value, rows: ir.Value) -> ir.Value:
    """No token twice, so nothing needs to be added up."""
    zeros = write.op("ConstantOfShape", write.op("Shape", y))
    return write.op("Add", y, write.op("ScatterND", zeros, places, rows))


def gather_add_and_scatter_back(write: Writer, y: ir.Value, places: ir.Value, rows: ir.Value) -> ir.Value:
    before = write.op("GatherND", y, places)
    return write.op("ScatterND", y, places, write.op("Add", before, rows))


def scatter_as_product_with_a_mask(write: Writer, y: ir.Value, places: ir.Value, rows: ir.Value) -> ir.Value:
    """A mask [T,n] of which place is whose, times the rows."""
    count = write.op("Squeeze", write.op("Shape", y, start=0, end=1), ints(0))
    tokens = write.op("Range", np.array(0), count, np.array(1))
    hits = write.op("Equal", write.op("Unsqueeze", tokens, ints(1)), write.op("Transpose", places, perm=[1, 0]))
    return write.op("Add", y, write.op("MatMul", write.op("Cast", hits, to=ir.DataType.FLOAT), rows))


for _scatter in (
    scatter_of_rows_as_scatter_of_elements,
    scatter_on_zeros_and_add,
    gather_add_and_scatter_back,
    scatter_as_product_with_a_mask,
):
    rewrite(_of_row_scatters(_scatter))
