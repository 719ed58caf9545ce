"""Columns of rows as heads of one size: what reads them so, and splits of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import add_constant
from moec.passes.graph.edits import FreshNames, constant, is_op, remove_unused, replace_node, replace_value

_OF_ELEMENTS = ("Cast", "Clip", "Neg", "Relu", "Sigmoid", "Tanh")
"""Operators whose result at a place follows from the first operand there, and from constants of one element."""


def head_size(columns: ir.Value, reshape: ir.Node) -> int | None:
    """The size of the heads that a Reshape makes of the last axis; None for any other Reshape."""
    heads = reshape.outputs[0]
    if heads.shape is None or columns.shape is None or not len(columns.shape) or heads.is_graph_output():
        return None
    *first, count, size = heads.shape
    is_split = isinstance(count, int) and isinstance(size, int) and count * size == columns.shape[-1]
    return size if is_split and list(first) == list(columns.shape[:-1]) else None  # type: ignore[return-value]


def in_heads(graph: ir.Graph, rows: ir.Value, name: str, size: int, place: ir.Node, names: FreshNames) -> ir.Value:
    """The rows [..., columns] as [..., heads, size], made before ``place``."""
    assert rows.shape is not None
    *first, columns = rows.shape
    assert isinstance(columns, int)
    target = np.array([*(0 for _ in first), columns // size, size], np.int64)
    reshape = ir.node("Reshape", [rows, add_constant(graph, ir.tensor(target), names.new(f"{name}_heads"))])
    heads = reshape.outputs[0]
    heads.name, heads.type = names.new(f"{rows.name}_heads"), rows.type
    heads.shape = ir.Shape([*first, columns // size, size])
    graph.insert_before(place, reshape)
    return heads


def split_in_heads(graph: ir.Graph, split: ir.Node, names: FreshNames) -> bool:
    """Let a Split of columns, whose parts become heads of one size, be a Split of heads. Operators of single elements
    before it are applied to its parts. Returns whether the Split is one of these."""
    readers = [_reader(part) for part in split.outputs]
    reshapes = [reader for reader in readers if reader is not None and is_op(reader, "Reshape")]
    sizes = {head_size(part, reshape) for part, reshape in zip(split.outputs, reshapes, strict=False)}
    rows = split.inputs[0]
    if len(reshapes) != len(readers) or len(sizes) != 1 or None in sizes or rows is None or rows.shape is None:
        return False
    if split.attributes.get_int("axis", 0) not in (-1, len(rows.shape) - 1):
        return False
    (size,) = (size for size in sizes if size is not None)
    source, operators = _without_operators(rows)
    whole = in_heads(graph, source, str(source.name), size, split, names)
    counts = np.array([int(part.shape[-1]) // size for part in split.outputs], np.int64)  # type: ignore[arg-type, index]
    counted = add_constant(graph, ir.tensor(counts), names.new(f"{source.name}_parts"))
    node = ir.node("Split", [whole, counted], {"axis": -2}, num_outputs=len(counts))
    graph.insert_before(split, node)
    for part, reshape in zip(node.outputs, reshapes, strict=True):
        heads = reshape.outputs[0]
        part.name, part.shape, part.type = names.new(f"{heads.name}_part"), heads.shape, whole.type
        replace_value(heads, _applied(graph, operators, part, split, names))
    replaced = [*reshapes, split, *reversed(operators)]
    constants = dict.fromkeys(each for each_node in replaced for each in each_node.inputs[1:] if each is not None)
    graph.remove(replaced, safe=True)
    for each in constants:
        remove_unused(graph, each)
    return True


def split_before_transpose(graph: ir.Graph, split: ir.Node, names: FreshNames) -> bool:
    """Let a Split, the only reader of a Transpose, be before it, so that each part is read where it lies. Returns
    whether the Split is one of these."""
    whole = split.inputs[0]
    turn = None if whole is None else whole.producer()
    if whole is None or turn is None or not is_op(turn, "Transpose") or _reader(whole) is not split:
        return False
    order = turn.attributes.get_ints("perm")
    source = turn.inputs[0]
    if order is None or source is None or any(part.shape is None for part in split.outputs):
        return False
    axis = split.attributes.get_int("axis", 0) % len(order)
    node = ir.node("Split", [source, *split.inputs[1:]], {"axis": order[axis]}, num_outputs=len(split.outputs))
    graph.insert_before(split, node)
    turned = []
    for part, old in zip(node.outputs, split.outputs, strict=True):
        assert old.shape is not None
        sizes = dict(zip(order, old.shape, strict=True))
        part.name, part.type = names.new(f"{old.name}_part"), whole.type
        part.shape = ir.Shape([sizes[place] for place in range(len(order))])
        after = ir.node("Transpose", [part], {"perm": list(order)})
        graph.insert_before(split, after)
        turned.append(after.outputs[0])
    replace_node(split, turned)
    graph.remove(turn, safe=True)
    return True


def _reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value."""
    readers = [node for node, _ in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _without_operators(rows: ir.Value) -> tuple[ir.Value, Sequence[ir.Node]]:
    """The value of which operators of single elements make ``rows``, and these operators in order."""
    operators: list[ir.Node] = []
    node = rows.producer()
    while node is not None and is_op(node, *_OF_ELEMENTS) and _reader(rows) is not None:
        source = node.inputs[0]
        bounds = [constant(each, 1) for each in node.inputs[1:] if each is not None]
        if source is None or source.shape is None or any(bound is None for bound in bounds):
            break
        operators.insert(0, node)
        rows, node = source, source.producer()
    return rows, operators


def _applied(
    graph: ir.Graph, operators: Sequence[ir.Node], part: ir.Value, place: ir.Node, names: FreshNames
) -> ir.Value:
    for operator in operators:
        node = ir.Node(operator.domain, operator.op_type, [part, *operator.inputs[1:]], operator.attributes.values())
        result = node.outputs[0]
        result.name, result.shape = names.new(f"{part.name}_{operator.op_type}"), part.shape
        result.type = operator.outputs[0].type
        graph.insert_before(place, node)
        part = result
    return part
