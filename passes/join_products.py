"""Products of the same rows as one product, whose columns they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import LinearSpec
from moec.ir.graphs import add_constant
from moec.ir.weights.stored import constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import FreshNames, is_op, remove_unused, replace_value
from moec.passes.graph.heads import head_size, in_heads, split_before_transpose, split_in_heads
from moec.passes.weights.linears import is_dense_product, is_transposed

_READERS = ("Add", "Cast", "Clip", "Div", "Gelu", "Mul", "Neg", "Relu", "Sigmoid", "Sub", "Swish", "Tanh", "Transpose")
"""Readers that are computed from a part of the columns as well as from a tensor of its own."""
_STORED = ("Cast", "DequantizeLinear")
"""Operators between a weight as it is stored and its product."""


@dataclasses.dataclass(frozen=True)
class JoinProducts:
    """Makes one product of several that multiply the same rows by matrices of one form, such as those for queries, keys
    and values, or for gate and up. A GPU so launches one kernel, which also reads more of the weights at a time.

    1. Products (MatMul, Gemm, ``moec.Linear``) with the same left operand, equal attributes and constant matrices of
       one element type or format become one. Its matrix has the columns of all, and a bias, which all or none have.
       Each column is a sum of the same products, in the order of the kernel for the wider matrix.
    2. Results that are split into heads of one size are parts of the joint result split into heads.
    3. Other results are parts of the columns, if elementwise operators read them.
    4. The result of one product that the graph itself splits, such as a stored matrix for queries, keys and values, is
       split into heads, too; operators of single elements between, such as Clip, are applied to the parts. A Split of
       heads after their Transpose goes before it.
    5. A product stays apart if its weight has another reader, if its result is one of the model, or if its result is
       read by an operator for which the part would have to be copied.

    ::

        (float[B,S,8] x) => (float[B,2,S,4] q, float[B,1,S,4] k)
            <float[8,8] a, float[8,4] b, int64[4] m = {0, 0, 2, 4}, int64[4] n = {0, 0, 1, 4}> {
           p = MatMul (x, a)
           r = Reshape (p, m)
           q = Transpose <perm = [0, 2, 1, 3]> (r)
           s = MatMul (x, b)
           t = Reshape (s, n)
           k = Transpose <perm = [0, 2, 1, 3]> (t)
        }
            infer-shapes,join-products ->
        (float[B,S,8] x) => (float[B,2,S,4] q, float[B,1,S,4] k)
            <float[8,12] a_joined, int64[4] a_joined_heads = {0, 0, 3, 4}, int64[2] a_joined_parts = {2, 1}> {
           p_joined = MatMul (x, a_joined)
           p_joined_heads = Reshape (p_joined, a_joined_heads)
           r, t = Split <axis = -2> (p_joined_heads, a_joined_parts)
           q = Transpose <perm = [0, 2, 1, 3]> (r)
           k = Transpose <perm = [0, 2, 1, 3]> (t)
        }
    """

    name: ClassVar[str] = "join-products"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        names = FreshNames(model.graph)
        groups = [group for group in _groups(model.graph) if len(group) > 1]
        for group in groups:
            _join(model.graph, group, names)
            first = group[0].node.name or group[0].node.op_type
            report.note(self.name, first, f"{len(group)} products of the same rows are one")
        splits = [node for node in model.graph if is_op(node, "Split")]
        divided = [
            split_in_heads(model.graph, split, names) or split_before_transpose(model.graph, split, names)
            for split in splits
        ]
        return bool(groups) or any(divided)


@dataclasses.dataclass(frozen=True)
class _Product:
    """A product that can be joined to others. ``axis``: of the columns in its matrix; ``columns``: their number;
    ``heads``: the Reshape to heads that reads it, if that is all, and ``size``: of each of these."""

    node: ir.Node
    axis: int
    columns: int
    heads: ir.Node | None = None
    size: int = 0


def _groups(graph: ir.Graph) -> Iterator[list[_Product]]:
    """The products that may be one, in their order."""
    groups: dict[Any, list[_Product]] = {}
    for node in graph:
        product = _product(node)
        if product is not None:
            key = (
                node.inputs[0],
                node.domain,
                node.op_type,
                product.size,
                _attributes(node),
                _form(node, product.axis),
            )
            groups.setdefault(key, []).append(product)
    yield from groups.values()


def _product(node: ir.Node) -> _Product | None:
    is_linear = dialect.is_moec(node, "Linear")
    if not (is_linear or is_dense_product(node)) or node.outputs[0].is_graph_output():
        return None
    axis = int(dialect.spec_of(node, LinearSpec).transposed if is_linear else is_transposed(node))
    shape = None if node.inputs[1] is None else node.inputs[1].shape
    columns = None if shape is None or len(shape) != 2 else shape[axis]
    result = node.outputs[0]
    if not isinstance(columns, int) or result.shape is None or len(result.shape) < 2:
        return None
    users = [user for user, _ in result.uses()]
    if len(users) == 1 and is_op(users[0], "Reshape"):
        size = head_size(result, users[0])
        return None if size is None else _Product(node, axis, columns, users[0], size)
    return _Product(node, axis, columns) if users and all(is_op(user, *_READERS) for user in users) else None


def _attributes(node: ir.Node) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()))


def _form(node: ir.Node, axis: int) -> Any:
    """All that has to be equal in the operands of products that are joined; a new object where nothing may be."""
    operands = [_operand_form(value, axis) for value in node.inputs[1:2]]
    operands += [None if bias is None else _bias_form(bias) for bias in node.inputs[2:]]
    return object() if any(form is False for form in operands) else tuple(operands)


def _operand_form(value: ir.Value | None, axis: int) -> Any:
    """The properties that matrices have in common whose columns are joined; False for one that cannot be joined."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return False
    tensor = constant(value)
    if tensor is not None:
        return (str(tensor.dtype), tensor.shape[1 - axis]) if len(tensor.shape) == 2 else False
    node = value.producer()
    if not is_op(node, *_STORED):
        return False
    inputs = [None if each is None else _operand_form(each, axis) for each in node.inputs]
    return False if any(form is False for form in inputs) else (node.op_type, _attributes(node), *inputs)


def _bias_form(bias: ir.Value) -> Any:
    tensor = constant(bias)
    return False if tensor is None or len(tensor.shape) != 1 or len(bias.uses()) != 1 else str(tensor.dtype)


def _join(graph: ir.Graph, group: Sequence[_Product], names: FreshNames) -> None:
    """Put one product in the place of the first of the group, and its parts in the places of all results."""
    first = group[0]
    axis, place = first.axis, first.node
    nodes = [product.node for product in group]
    weights = [node.inputs[1] for node in nodes]
    matrix = _joined(graph, weights, axis, place, names)
    biases = [[node.inputs[i] for node in nodes] for i in range(2, len(place.inputs))]
    others = [None if same[0] is None else _joined(graph, same, 0, place, names) for same in biases]
    joined = ir.Node(place.domain, place.op_type, [place.inputs[0], matrix, *others], place.attributes.values())
    joined.name = place.name
    result, columns = joined.outputs[0], sum(product.columns for product in group)
    old = place.outputs[0]
    result.name, result.type = names.new(f"{old.name}_joined"), old.type
    result.shape = None if old.shape is None else ir.Shape([*old.shape[:-1], columns])
    graph.insert_before(place, joined)
    parts = [product.columns // (product.size or 1) for product in group]
    whole = in_heads(graph, result, str(matrix.name), first.size, place, names) if first.size else result
    split = add_constant(graph, ir.tensor(np.array(parts, np.int64)), names.new(f"{matrix.name}_parts"))
    node = ir.node("Split", [whole, split], {"axis": -2 if first.size else -1}, num_outputs=len(parts))
    graph.insert_before(place, node)
    for product, part in zip(group, node.outputs, strict=True):
        _replace(graph, product, part)


def _replace(graph: ir.Graph, product: _Product, part: ir.Value) -> None:
    """Let a part of the joint result take the place of a product's result."""
    replaced = product.node if product.heads is None else product.heads
    value = replaced.outputs[0]
    part.type, part.shape, name = value.type, value.shape, value.name
    value.name = f"{name}_replaced"
    part.name = name
    replace_value(value, part)
    nodes = dict.fromkeys([replaced, product.node])
    operands = dict.fromkeys(each for each_node in nodes for each in each_node.inputs[1:] if each is not None)
    graph.remove(list(nodes), safe=True)
    for operand in operands:
        remove_unused(graph, operand)


def _joined(
    graph: ir.Graph, values: Sequence[ir.Value | None], axis: int, place: ir.Node, names: FreshNames
) -> ir.Value:
    """One operand of those of one form, with the columns of all."""
    present = [value for value in values if value is not None]
    name = names.new(f"{present[0].name}_joined")
    tensors = [tensor for value in present if (tensor := constant(value)) is not None]
    if tensors:
        return add_constant(graph, _concatenated(tensors, axis, name), name)
    producers = [value.producer() for value in present]
    first = producers[0]
    assert first is not None
    operands = []
    for i, operand in enumerate(first.inputs):
        same = [None if producer is None else producer.inputs[i] for producer in producers]
        operands.append(None if operand is None else _joined(graph, same, axis, place, names))
    node = ir.Node(first.domain, first.op_type, operands, first.attributes.values())
    result = node.outputs[0]
    result.name, result.type = name, present[0].type
    shapes = [value.shape for value in present]
    if all(shape is not None for shape in shapes):
        sizes = list(shapes[0])  # type: ignore[arg-type]
        sizes[axis] = sum(int(shape[axis]) for shape in shapes)  # type: ignore[index, arg-type]
        result.shape = ir.Shape(sizes)
    graph.insert_before(place, node)
    return result


def _concatenated(tensors: Sequence[ir.TensorProtocol], axis: int, name: str) -> ir.TensorProtocol:
    """The tensors one after another along an axis, read when they are needed."""
    sizes = [int(size) for size in tensors[0].shape.numpy()]
    sizes[axis] = sum(int(tensor.shape.numpy()[axis]) for tensor in tensors)
    dtype = tensors[0].dtype
    load: Callable[[], ir.TensorProtocol] = lambda: ir.Tensor(  # noqa: E731
        np.concatenate([tensor.numpy() for tensor in tensors], axis), dtype=dtype, name=name
    )
    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(sizes), name=name)
