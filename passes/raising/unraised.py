"""Reports of likely mixtures of experts without a block to try, so that they are not passed over in silence.

These reports decide nothing; they inform the reader of remarks. Two patterns are searched for. The first is a selection
that data of several products with constant weights meets, or that such products follow. The second has no selection:
scores of a projection that weigh the results of as many experts or mix their matrices, and sums of results that data
weighs (:mod:`moec.passes.raising.weighted_sums`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.dialect import is_moec
from moec.ir.movement import MOVEMENTS
from moec.passes.framework.base import Unraised
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import width
from moec.passes.raising.candidates import SELECTIONS, find_logits, router_chain
from moec.passes.raising.contractions import factors, is_contraction
from moec.passes.raising.dataflow import DataFlow, follow_data
from moec.passes.raising.weighted_sums import near_nodes, weighted_sums

SCORES = frozenset({"Exp", "HardSigmoid", "Hardmax", "Relu", "Sigmoid", "Softmax", "Softplus"})
MEETINGS = frozenset({"Einsum", "Gemm", "MatMul", "Mul"})
MOST_NODES = 4096
"""Largest number of nodes in a search for products."""
MOST_EXPERTS = 1024
"""Largest number of experts; more scores are activations of hidden units."""


def has_weight(dataflow: DataFlow, node: ir.Node) -> bool:
    """Whether a node multiplies data with constant weights: a matrix, or several."""
    if not is_contraction(node):
        return False
    return any(len(_matrix(dataflow, operand)) >= 2 for operand in factors(node))


def _matrix(dataflow: DataFlow, operand: ir.Value) -> tuple[int, ...]:
    """The sizes beyond 1 of the constant that an operand is, or is taken from; empty for data."""
    weight = follow_data(operand, dataflow.constant)
    return () if weight is None else tuple(size for size in dataflow.shape(weight) if size > 1)


def router_of(dataflow: DataFlow, scores: ir.Value) -> ir.Value | None:
    """The result of the product of data with a constant matrix that scores come from; None if they have another
    source."""
    chain, products = router_chain(dataflow, scores)
    return chain[0] if any(has_weight(dataflow, node) for node in products) else None


def why_no_candidate(dataflow: DataFlow, anchor: ir.Node) -> str | None:
    """The reason why no block is found around a selection that looks like one of experts; None if it does not."""
    scores = anchor.inputs[0]
    router = None if scores is None else router_of(dataflow, scores)
    if scores is None or router is None or not _meets_products(dataflow, anchor, scores):
        return None
    if router not in find_logits(dataflow, anchor):
        return "other operators than scores stand between its router's product and it, so that no logits were found"
    further = _further_selection(dataflow, anchor)
    if further is not None:
        node = f"{further.op_type} node {node_name(further)}"
        return f"experts are chosen by a further selection among what it chose ({node})"
    return "no part of the graph behind it makes one row per token from one row per token"


def _further_selection(dataflow: DataFlow, anchor: ir.Node) -> ir.Node | None:
    """A selection among the results of another one, without a product between the two."""
    nodes = dataflow.readers(anchor.outputs, through=lambda node: not is_contraction(node))
    return next((node for node in nodes if is_op(node, *SELECTIONS)), None)


def _meets_products(dataflow: DataFlow, anchor: ir.Node, scores: ir.Value) -> bool:
    """Whether the selection chooses among two products with constant weights or more: after it, or before the place
    where its result meets other data."""
    return len(list(itertools.islice(_products_met(dataflow, anchor, scores), 2))) == 2


def _products_met(dataflow: DataFlow, anchor: ir.Node, scores: ir.Value) -> Iterator[ir.Node]:
    """These products, each once."""
    behind = []
    for node in itertools.islice(dataflow.readers(anchor.outputs), MOST_NODES):
        behind.append(node)
        if has_weight(dataflow, node):
            yield node
    seen = {*_upstream(scores), *behind}
    reached = {value for node in behind for value in node.outputs}.union(anchor.outputs)
    for node in behind:
        if node.op_type in MEETINGS or node.op_type in MOVEMENTS:
            others = [value for value in node.inputs if value is not None and value not in reached]
            products = [n for value in others for n in _upstream(value) if n not in seen and has_weight(dataflow, n)]
            seen.update(products)
            yield from products


def _upstream(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that compute a value's data, nearest first."""
    pending, seen = [value], set[ir.Node]()
    while pending and len(seen) < MOST_NODES:
        node = pending.pop(0).producer()
        if node is None or node in seen or node.op_type == "Shape":
            continue
        seen.add(node)
        yield node
        pending.extend(operand for operand in node.inputs if operand is not None)


def resemblances(
    dataflow: DataFlow, nodes: Collection[ir.Node], understood: Collection[ir.Node]
) -> Iterator[tuple[ir.Node, Unraised]]:
    """Mixtures without a selection by scores, each with the node that computes scores, weights or ids. ``understood``
    are the nodes of blocks that were raised."""
    reported = set[ir.Node]()
    for node in nodes:
        if node in understood:
            continue
        if _mixes_matrices(dataflow, node):
            reported.add(node)
            reason = "it mixes the matrices of its experts, not what they make of a token"
            yield node, Unraised(node_name(node), reason, width(node.outputs[0]))
        elif _is_mixture(dataflow, node):
            reported.add(node)
            reason = "it weighs all of its experts for every token, and nothing selects among them"
            yield node, Unraised(node_name(node), reason, width(node.outputs[0]))
        elif _is_table(dataflow, node):
            reported.add(node)
            yield node, Unraised(node_name(node), "a table gives the experts of a token, not a router's logits")
    for weights, E in weighted_sums(dataflow, nodes):
        maker = weights.producer()
        makers = {maker, *near_nodes(dataflow, weights)[0]}
        is_told = any(
            maker_before in reported or maker_before in understood or is_op(maker_before, *SELECTIONS)
            for maker_before in makers
        )
        if maker is not None and not is_told and not is_moec(maker):
            reported.add(maker)
            yield maker, Unraised(node_name(maker), f"it adds up {E} results that values of each token weigh", E)


def _is_mixture(dataflow: DataFlow, node: ir.Node) -> bool:
    """Whether a node's scores weigh the results of as many experts, each of which computes every token."""
    E = width(node.outputs[0]) if node.op_type in SCORES else None
    router = None if E is None or not 2 <= E <= MOST_EXPERTS else router_of(dataflow, node.outputs[0])
    if E is None or router is None:
        return False
    if any(is_op(inner, *SELECTIONS) for inner in dataflow.between(node.outputs, {router}.__contains__)):
        return False  # the weights of those that were chosen
    before = set(_upstream(node.outputs[0]))
    return _weighed(dataflow, node.outputs[0], E, before, strict=node.op_type != "Softmax")


def _mixes_matrices(dataflow: DataFlow, node: ir.Node) -> bool:
    """Whether a node's scores weigh constant matrices, whose sum then multiplies data."""
    E = width(node.outputs[0]) if is_op(node, "Sigmoid", "Softmax") else None
    if E is None or not 2 <= E <= MOST_EXPERTS:
        return False
    mixes = any(_multiplies_data(dataflow, mixed) for mixed in _mixed(dataflow, node.outputs[0]))
    return mixes and router_of(dataflow, node.outputs[0]) is not None  # the longer search, for few nodes alone


def _mixed(dataflow: DataFlow, scores: ir.Value) -> Iterator[ir.Value]:
    """Products of scores with a constant, after operators that only move the scores."""
    pending = [scores]
    while pending:
        for node in pending.pop().consumers():
            if is_contraction(node) and any(map(dataflow.constant, factors(node))):
                yield node.outputs[0]
            elif is_op(node, "Reshape", "Squeeze", "Transpose", "Unsqueeze"):
                pending += node.outputs


def _multiplies_data(dataflow: DataFlow, value: ir.Value) -> bool:
    """Whether a value is a matrix of fixed size that multiplies data, after operators that only move it."""
    pending = [value]
    while pending:
        matrix = pending.pop()
        sizes = [] if matrix.shape is None else list(matrix.shape)[-2:]
        is_matrix = len(sizes) == 2 and all(isinstance(size, int) and size > 1 for size in sizes)
        for node in matrix.consumers():
            others = [factor for factor in factors(node) if factor is not matrix and not dataflow.constant(factor)]
            if is_matrix and others and is_op(node, "Conv", "Einsum", "MatMul"):
                return True
            if is_op(node, "Reshape", "Squeeze", "Transpose", "Unsqueeze"):
                pending += node.outputs
    return False


def _is_table(dataflow: DataFlow, node: ir.Node) -> bool:
    """Whether a node gathers ids from a constant table, and these select products with constant weights."""
    if node.op_type not in ("Gather", "GatherND"):
        return False
    table, places = node.inputs
    if table is None or places is None or dataflow.constant(places) or not dataflow.constant(table):
        return False
    if table.dtype != ir.DataType.INT64 or len(dataflow.shape(table)) != 1:
        return False
    return _meets_products(dataflow, node, places)


def _weighed(dataflow: DataFlow, scores: ir.Value, E: int, before: set[ir.Node], *, strict: bool) -> bool:
    """Whether scores meet E experts: one stack of results, or several in turn. ``strict``: as many products as experts
    have, in one stack, because gates of other kinds (of heads of attention, of cells) are written alike."""
    turns = 0
    pending, seen = [scores], {scores}
    while pending and len(seen) < MOST_NODES:
        value = pending.pop()
        for node in value.consumers():
            if node.op_type in SELECTIONS or is_moec(node):
                return False
            others = [v for v in node.inputs if v is not None and v not in seen and not dataflow.constant(v)]
            data = [v for v in others if not _comes_from(v, scores, before)]
            if node.op_type in MEETINGS and data:
                stacked, products = _products_behind(dataflow, data[0], E, before)
                has_experts = _has_axis(data[0], E) or _has_columns(dataflow, data[0], E)
                if stacked or (products >= (2 * E if strict else 2) and has_experts):
                    return True
                turns += products >= 1 and width(value) in (1, None)
            elif node.op_type in MOVEMENTS or node.op_type in ("Div", "Mul", "Where", "ReduceSum", "Cast", "Greater"):
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                pending.extend(fresh)
    return turns >= E and not strict


def _comes_from(value: ir.Value, scores: ir.Value, before: set[ir.Node]) -> bool:
    """Whether a value is computed from the scores, or from their sources, without any further product."""
    return not any(
        is_contraction(node) for node in _upstream(value) if node not in before and node is not scores.producer()
    )


def _products_behind(dataflow: DataFlow, value: ir.Value, E: int, before: set[ir.Node]) -> tuple[bool, int]:
    """Whether a product before a value has weights of E experts in one constant, and the number of such products."""
    products = [node for node in _upstream(value) if node not in before and has_weight(dataflow, node)]
    shapes = [_matrix(dataflow, operand) for node in products for operand in factors(node)]
    return any(len(shape) >= 3 and E in shape for shape in shapes), len(products)


def _has_axis(value: ir.Value, E: int) -> bool:
    return value.shape is not None and E in list(value.shape)[:-1]


def _has_columns(dataflow: DataFlow, value: ir.Value, E: int) -> bool:
    """Whether the last axis has an entry for each expert, each computed by a product of its own."""
    node = value.producer()
    while is_op(node, *(MOVEMENTS.keys() - {"Concat"})) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    parts = [part for part in node.inputs if part is not None] if is_op(node, "Concat") else []
    products = [{product for product in _upstream(part) if has_weight(dataflow, product)} for part in parts]
    return len(parts) == E and width(value) == E and all(own - set.intersection(*products) for own in products)
