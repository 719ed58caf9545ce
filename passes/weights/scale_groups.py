"""Scales as DequantizeLinear may have them, in the groups of inputs that stored weights have."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import add_constant
from moec.ir.weights.format import ELEMENTS, name_of
from moec.ir.weights.stored import constant
from moec.passes.graph.edits import fresh_name, remove_unused

Array = np.ndarray[Any, Any]


def put_in_groups(graph: ir.Graph, product: ir.Node, input_axis: int) -> bool:
    """Rewrite the ``DequantizeLinear`` that makes the constant matrix of a product, whose inputs lie along
    ``input_axis``: a scale (and zero point) per output or for the whole matrix becomes one per group of inputs, and
    zero points of a signed type that are all zero go. Returns whether anything changed.
    """
    weight = product.inputs[1]
    decode = None if weight is None else weight.producer()
    assert decode is not None
    operands = [constant(value) for value in decode.inputs]
    data, tables = operands[0], [table.numpy() for table in operands[1:] if table is not None]
    if data is None or len(data.shape) != 2 or len(tables) < len(operands) - 1:
        return False
    useless = len(tables) == 2 and data.dtype.is_signed() and not tables[1].any()
    tables = tables[:1] if useless else tables
    if len(tables) != (1 if data.dtype.is_signed() else 2):  # no kernel reads these
        return False
    attributes = {key: attribute.value for key, attribute in decode.attributes.items()}
    if not attributes.get("block_size"):
        per_output = tables[0].ndim == 1 and attributes.get("axis", 1) % 2 == 1 - input_axis
        if tables[0].size != 1 and not per_output:
            return False
        block, shape = _groups(data, input_axis)
        tables = [_expanded(table, shape, input_axis) for table in tables]
        attributes |= {"axis": input_axis, "block_size": block}
    elif not useless:
        return False
    _replace(graph, product, decode, tables, attributes)
    return True


def _groups(data: ir.TensorProtocol, input_axis: int) -> tuple[int, tuple[int, ...]]:
    """The largest groups that the elements may have, and the shape of their scales."""
    name, shape = name_of(data.dtype), [int(size) for size in data.shape.numpy()]
    size = max(shape[input_axis], 1)
    block = min(size, max(ELEMENTS[name].groups, default=size) if name is not None else size)
    shape[input_axis] = -(-shape[input_axis] // block)
    return block, tuple(shape)


def _expanded(table: Array, shape: tuple[int, ...], input_axis: int) -> Array:
    """A number per output, or one for all, repeated for the groups of its inputs."""
    repeated = np.broadcast_to(np.expand_dims(table.reshape(-1), input_axis), shape)
    return np.ascontiguousarray(repeated)


def _replace(
    graph: ir.Graph, product: ir.Node, decode: ir.Node, tables: list[Array], attributes: dict[str, Any]
) -> None:
    old = decode.outputs[0]
    constants = [
        add_constant(graph, ir.tensor(table), fresh_name(graph, f"{old.name}_{what}"))
        for table, what in zip(tables, ("scale", "zero_point"), strict=False)
    ]
    new = ir.node("DequantizeLinear", [decode.inputs[0], *constants], attributes)
    new.outputs[0].name, new.outputs[0].type = fresh_name(graph, f"{old.name}_in_groups"), old.type
    new.outputs[0].shape = old.shape
    graph.insert_before(product, new)
    product.replace_input_with(1, new.outputs[0])
    remove_unused(graph, old)
