"""Sums of several results that data weighs: the form of a mixture of experts, whatever computes its weights.

1. A tree of sums of products, each of a weight [...,1] and what an expert makes: ``w_1 r_1 + w_2 r_2 + ...``.
2. A sum along the axis of experts of such a product, or a contraction of that axis: ``sum_e w[...,e] r[...,e,:]``.

Results are those of experts where each comes from products of its own with constant weights, of the same sizes, or all
come from one product with a stack of matrices. Their weights have to depend on other data than they do: what divides a
result by its own norm is no weight of an expert.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from moec.ir.movement import MOVEMENTS
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import width
from moec.passes.raising.contractions import factors, is_contraction
from moec.passes.raising.dataflow import DataFlow, follow_data

MOST_NODES = 128
"""Largest number of nodes in the search for the products of a value."""
MOST_EXPERTS = 1024
Stack = tuple[ir.Value, int]
"""The results of so many experts, side by side or in turns."""


def weighted_sums(dataflow: DataFlow, nodes: Iterable[ir.Node]) -> Iterator[tuple[ir.Value, int]]:
    """The weights of each such sum, as far back as they stand together, and of how many experts it is."""
    for node in nodes:
        if is_op(node, "Add") and not _is_summand(node):
            yield from _of_terms(dataflow, [_operands(dataflow, value) for value in _summands(node)])
        elif is_op(node, "Sum"):
            yield from _of_terms(dataflow, [_operands(dataflow, value) for value in node.inputs])
        elif is_op(node, "Einsum", "MatMul", "ReduceMean", "ReduceSum"):
            yield from _of_stack(dataflow, node)


def near_nodes(dataflow: DataFlow, value: ir.Value) -> tuple[list[ir.Node], list[ir.Node]]:
    """The nodes after the nearest products with constant weights that a value comes from, and these products."""
    between, products, pending, seen = list[ir.Node](), list[ir.Node](), [value], set[ir.Node]()
    while pending and len(seen) < MOST_NODES:
        node = pending.pop().producer()
        if node is None or node in seen or node.op_type == "Shape":
            continue
        seen.add(node)
        if _sizes(dataflow, node):
            products.append(node)
            continue
        between.append(node)
        pending += [operand for operand in node.inputs if operand is not None and not dataflow.constant(operand)]
    return between, products


def _sizes(dataflow: DataFlow, node: ir.Node) -> list[tuple[int, ...]]:
    """The sizes of the constant matrices, or stacks of them, that a node multiplies data with."""
    if not is_contraction(node):
        return []
    weights = [follow_data(operand, dataflow.constant) for operand in factors(node)]
    sizes = [tuple(size for size in dataflow.shape(weight) if size > 1) for weight in weights if weight is not None]
    return [shape for shape in sizes if shape and len(weights) > 1]


def _operands(dataflow: DataFlow, value: ir.Value | None) -> list[ir.Value]:
    """The two operands of the product that a value is, both of them data; else none."""
    node = None if value is None else value.producer()
    if not is_op(node, "Mul") or value is None or len(value.uses()) != 1:
        return []
    return [
        operand
        for operand in node.inputs
        if operand is not None and operand.shape is not None and not dataflow.constant(operand)
    ]


def _of_terms(dataflow: DataFlow, terms: list[list[ir.Value]]) -> Iterator[tuple[ir.Value, int]]:
    """The sum of terms that weigh results with a number for each token."""
    pairs = [pair for pair in terms if len(pair) == 2]
    if not 2 <= len(pairs) <= MOST_EXPERTS:
        return
    for example in pairs[0]:
        results = [_like(dataflow, example, pair) for pair in pairs]
        weights = [pair[pair[0] is result] for pair, result in zip(pairs, results, strict=True)]
        if {width(weight) for weight in weights} != {1} or len(set(weights)) < len(weights):
            continue
        if _are_alike(dataflow, results) and _are_foreign(dataflow, weights, results):
            whole = {_whole(weight) for weight in weights}
            yield whole.pop() if len(whole) == 1 else weights[0], len(pairs)
            return


def _like(dataflow: DataFlow, example: ir.Value, pair: list[ir.Value]) -> ir.Value:
    """The operand that comes from products of the same sizes as the example; the first where both do."""
    kind = _kind(dataflow, near_nodes(dataflow, example)[1])
    return next((operand for operand in pair if _kind(dataflow, near_nodes(dataflow, operand)[1]) == kind), pair[0])


def _kind(dataflow: DataFlow, products: Iterable[ir.Node]) -> tuple[object, ...]:
    return tuple(sorted((node.op_type, *_sizes(dataflow, node)) for node in products))


def _of_stack(dataflow: DataFlow, node: ir.Node) -> Iterator[tuple[ir.Value, int]]:
    """The sum along an axis of experts: of a product, or as a contraction."""
    is_sum = is_op(node, "ReduceMean", "ReduceSum")
    pair = _operands(dataflow, node.inputs[0]) if is_sum else [v for v in node.inputs if v is not None]
    if len(pair) != 2 or any(dataflow.constant(operand) for operand in pair):
        return
    added = _added(dataflow, node)
    for weights, results in (pair, pair[::-1]):
        E = _experts_of(dataflow, results)
        if E is None or E not in added or weights.shape is None or E not in list(weights.shape):
            continue
        if _are_foreign(dataflow, [weights], [results]):
            yield _whole(weights), E
            return


def _added(dataflow: DataFlow, node: ir.Node) -> set[int]:
    """The sizes of the axes along which a node adds up, where they are known."""
    shapes = [[] if value is None or value.shape is None else list(value.shape) for value in node.inputs]
    if node.op_type == "MatMul":
        sizes = [shape[at] for shape, at in zip(shapes, (-1, -2), strict=True) if len(shape) >= 2]
    elif node.op_type == "Einsum":
        terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
        labels = zip(terms.split(","), shapes, strict=False)
        sizes = [
            size for term, shape in labels for label, size in zip(term, shape, strict=False) if label not in result
        ]
    else:
        operand = node.inputs[1] if len(node.inputs) > 1 else None
        axes = [] if operand is None or not dataflow.constant(operand) else dataflow.array(operand).reshape(-1).tolist()
        sizes = [shapes[0][axis] for axis in axes if -len(shapes[0]) <= axis < len(shapes[0])]
    return {size for size in sizes if isinstance(size, int)}


def _experts_of(dataflow: DataFlow, results: ir.Value) -> int | None:
    """The number of experts that have made a value; None where it is no stack of results."""
    node = results.producer()
    while node is not None and (is_op(node, *MOVEMENTS) or _adds_constant(dataflow, node)):
        data = [operand for operand in node.inputs if operand is not None and not dataflow.constant(operand)]
        node = data[0].producer() if data else None
    if is_op(node, "Concat"):
        parts = [part for part in node.inputs if part is not None]
        return len(parts) if 2 <= len(parts) <= MOST_EXPERTS and _are_alike(dataflow, parts) else None
    sizes = [] if node is None else _sizes(dataflow, node)
    return next((shape[0] for shape in sizes if len(shape) >= 3 and shape[0] <= MOST_EXPERTS), None)


def _adds_constant(dataflow: DataFlow, node: ir.Node) -> bool:
    return is_op(node, "Add") and any(dataflow.constant(operand) for operand in node.inputs)


def _are_alike(dataflow: DataFlow, results: Collection[ir.Value]) -> bool:
    """Whether each of these comes from products of its own, all of them of the same sizes."""
    products = [near_nodes(dataflow, result)[1] for result in results]
    common = set.intersection(*map(set, products))
    own = [[node for node in nodes if node not in common] for nodes in products]
    kinds = {_kind(dataflow, nodes) for nodes in own}
    apart = len(set(itertools.chain(*own))) == sum(map(len, own))
    return apart and len(kinds) == 1 and kinds != {()}


def _are_foreign(dataflow: DataFlow, weights: Iterable[ir.Value], results: Iterable[ir.Value]) -> bool:
    """Whether every weight depends on other data than the results come from."""
    experts = {node for result in results for node in near_nodes(dataflow, result)[1]}
    return all(_has_other_source(dataflow, weight, experts) for weight in weights)


def _has_other_source(dataflow: DataFlow, weight: ir.Value, experts: set[ir.Node]) -> bool:
    between, products = near_nodes(dataflow, weight)
    inputs = (
        operand for node in between for operand in node.inputs if operand is not None and not dataflow.constant(operand)
    )
    return not experts.issuperset(products) or any(operand.is_graph_input() for operand in inputs)


def _whole(weight: ir.Value) -> ir.Value:
    """The value that weights are taken from."""
    node = weight.producer()
    while is_op(node, *MOVEMENTS) and node.inputs[0] is not None:
        weight = node.inputs[0]
        node = weight.producer()
    return weight


def _is_summand(node: ir.Node) -> bool:
    users = list(node.outputs[0].consumers())
    return len(node.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output() and is_op(users[0], "Add")


def _summands(root: ir.Node) -> Iterator[ir.Value]:
    """The terms of a tree of sums, in any order."""
    pending = [*root.inputs]
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if is_op(node, "Add") and _is_summand(node):
            pending += node.inputs
        elif value is not None:
            yield value
