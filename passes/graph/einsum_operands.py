"""Einsum of three operands as one of two."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import add_constant
from moec.passes.graph.edits import FreshNames


def multiply_first(node: ir.Node, names: FreshNames) -> bool:
    """Two operands of an Einsum of three become their product, as large as one of them."""
    terms, arrow, result = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    letters = terms.split(",")
    if len(letters) != 3 or not arrow or "." in terms or any(len(set(term)) < len(term) for term in letters):
        return False
    for few, many in itertools.permutations(range(3), 2):
        third = 3 - few - many
        kept = [letter for letter in letters[many] if letter in letters[few]]
        if kept != list(letters[few]) or len(letters[third]) <= len(letters[many]):
            continue
        absent = [axis for axis, letter in enumerate(letters[many]) if letter not in kept]
        product = _product(node, node.inputs[many], node.inputs[few], absent, names)
        operands = [product, node.inputs[third]]
        node.resize_inputs(2)
        for place, operand in enumerate(operands):
            node.replace_input_with(place, operand)
        node.attributes["equation"] = ir.AttrString("equation", f"{letters[many]},{letters[third]}->{result}")
        return True
    return False


def _product(
    node: ir.Node, many: ir.Value | None, few: ir.Value | None, absent: list[int], names: FreshNames
) -> ir.Value:
    """A value times another that lacks some of its axes, in front of ``node``."""
    graph = node.graph
    assert isinstance(graph, ir.Graph) and many is not None and few is not None
    name = names.new(f"{few.name}_spread")
    if absent:
        axes = add_constant(graph, ir.tensor(np.array(absent, np.int64)), names.new(f"{name}_axes"))
        unsqueeze = ir.node("Unsqueeze", [few, axes])
        unsqueeze.outputs[0].name, unsqueeze.outputs[0].type = name, few.type
        graph.insert_before(node, unsqueeze)
        few = unsqueeze.outputs[0]
    times = ir.node("Mul", [many, few])
    (product,) = times.outputs
    product.name, product.type, product.shape = names.new(f"{many.name}_times"), many.type, many.shape
    graph.insert_before(node, times)
    return product
