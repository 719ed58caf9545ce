"""Mixtures whose weights come from no router of the dialect: what makes the weights stays as it is.

A value with a weight for every expert of every token [T,E] takes the place of the logits, and every expert that it
gives a weight is chosen. Thresholds, shares of a probability, two routers whose products or sums weigh, tables of
tokens, places that run out: whatever it is, the experts behind it are raised.

If experts compute the tokens at their places (GShard, arXiv 2006.16668), weights are [T,E,C]. A token has at most one
place of an expert, so that the sums [T,E] are its weights. Here the logits stay where they are: not every [T,E,C] is of
this kind, and the check shows whether the router's is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moec.common.budgets import FOLLOWED_ZEROS, NESTED_FACTORS, Budget
from moec.ir.dialect import RouteSpec
from moec.ir.intervals import MOST_BOUNDS, intervals
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block, experts_of, width
from moec.passes.raising.candidates import Tried, candidate_blocks
from moec.passes.raising.contractions import is_contraction
from moec.passes.raising.dataflow import Array, DataFlow
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import RoutingProposal, sample_logits
from moec.passes.raising.unraised import MOST_EXPERTS
from moec.passes.raising.weighing import Weighing

MOST_VALUES = 4
"""Largest number of values after a router that are tried as weights."""
MOST_BEHIND = 64
"""Largest number of values after a router that are visited."""
MOST_REGIONS = 2


def weighed_blocks(
    dataflow: DataFlow, source: ir.Value, anchor: ir.Node, tried: Tried | None = None
) -> Iterator[Block]:
    """Blocks whose logits are weights [T,E] that everything computed from ``source`` comes through: those of as many
    experts as the source has first, and of these those nearest to the experts."""
    determined = dataflow.determined_by([source])
    behind = itertools.islice(dataflow.post_dominators([source], determined), MOST_BEHIND)
    weights = [value for value in (source, *behind) if _may_weigh(value)]
    likely = sorted(reversed(weights), key=lambda value: experts_of(value) != experts_of(source))
    for value in likely[:MOST_VALUES]:
        yield from blocks_weighed_by(dataflow, value, anchor, tried)


def blocks_weighed_by(
    dataflow: DataFlow, weights: ir.Value, anchor: ir.Node, tried: Tried | None = None
) -> Iterator[Block]:
    """Blocks whose logits are these weights [T,E]."""
    node = weights.producer()
    by_tokens = node.inputs[0] if width(weights) is None and is_op(node, "Transpose") else weights
    exceeded = dict[Budget, None]()
    most = None if by_tokens is None or width(by_tokens) is None else most_chosen(dataflow, by_tokens, exceeded)
    beyond = () if most else tuple(exceeded)
    weighing = Weighing(_never_negative(dataflow, weights), most or experts_of(weights) or 0, beyond)
    for block in itertools.islice(candidate_blocks(dataflow, anchor, weights, tried), MOST_REGIONS):
        yield dataclasses.replace(block, weighing=weighing)


def given_routing(block: Block) -> RoutingProposal:
    """The routing that weighs experts by the logits themselves. Raises NotUnderstoodError where experts compute the
    tokens that are chosen for them and all tokens might be chosen, or where others use the experts' results, too: then
    more would be computed than before."""
    inside = set(block.nodes)
    for node in block.expert_nodes():
        if node.outputs[0] not in block.selected and any(
            value.is_graph_output() or any(u not in inside and u.op_type != "Shape" for u in value.consumers())
            for value in node.outputs
        ):
            raise NotUnderstoodError("its experts' results are used by more than y")
    weighing = block.weighing
    if weighing is not None and weighing.never_negative:
        every = weighing.most == block.E
        return RoutingProposal(RouteSpec(weighing.most, "relu", "all" if every else "topk", threshold=0.0))
    if any(value in block.selected for projection in block.projections() for value in projection.node.inputs):
        raise NotUnderstoodError("its weights may be negative, so they do not show which experts are chosen")
    return RoutingProposal(RouteSpec(block.E, "identity", "all"))


def placed_routings(block: Block) -> list[RoutingProposal]:
    """Routings that weigh experts by weights [T,E,C] of the router, those that experts' results meet last first."""
    if block.experts_first:
        return []
    met = dict.fromkeys(value for node in reversed(block.expert_nodes()) for value in node.inputs if value is not None)
    return [
        _placed_routing(block, value)
        for value in met
        if value in block.selected
        and value not in block.from_x  # hidden units, times their expert's weight, are no weights
        and _has_places(value, block.logits)
        and _never_negative(block.dataflow, value)
    ]


def _placed_routing(block: Block, places: ir.Value) -> RoutingProposal:
    """Routing to as many experts as a token has places at, alone or among others; whether these are enough shows in the
    check."""
    routing = RoutingProposal(RouteSpec(block.E, "relu", "all", threshold=0.0), places=places)
    logits = sample_logits(block.E)
    k = max(int((routing.run(block, part)[1] >= 0).sum(axis=1).max()) for part in (logits[:1], logits))
    return routing if k == block.E else dataclasses.replace(routing, spec=RouteSpec(k, "relu", threshold=0.0))


def _has_places(value: ir.Value, logits: ir.Value) -> bool:
    """Whether a value may be weights [...,E,C] for logits [...,E], of more than one place."""
    if value.shape is None or logits.shape is None or value.dtype is None or not value.dtype.is_floating_point():
        return False
    return value.shape[-1] != 1 and list(value.shape)[:-1] == list(logits.shape)


def _may_weigh(value: ir.Value) -> bool:
    E = experts_of(value)
    return E is not None and 2 <= E <= MOST_EXPERTS and value.dtype is not None and value.dtype.is_floating_point()


def _never_negative(dataflow: DataFlow, value: ir.Value) -> bool:
    """Whether weights are 0 or more, whatever the router's projection gives."""

    def constant(bound: ir.Value) -> Array | None:
        return dataflow.array(bound) if dataflow.constant(bound) and _elements(dataflow, bound) <= MOST_BOUNDS else None

    def is_leaf(leaf: ir.Value) -> bool:
        return leaf in dataflow.bounds or dataflow.constant(leaf) or _is_projection(dataflow, leaf.producer())

    nodes = dataflow.between([value], is_leaf)
    dataflow.bounds = intervals(nodes, dataflow.bounds, constant)
    return value in dataflow.bounds and bool(dataflow.bounds[value].whole.low >= 0)


def _is_projection(dataflow: DataFlow, node: ir.Node | None) -> bool:
    """Whether a node multiplies data with a constant, as routers do, not with other data, as dispatch masks do."""
    return node is not None and is_contraction(node) and any(map(dataflow.constant, node.inputs))


def most_chosen(
    dataflow: DataFlow, value: ir.Value | None, exceeded: dict[Budget, None], nested: int = 0
) -> int | None:
    """The most weights [...,E] of a token that are not 0; None where that is not to be seen. Budgets that ran out are
    added to ``exceeded``. ``nested``: of how many factors of factors the value is one."""
    node = None if value is None else value.producer()
    rank = 0 if value is None or value.shape is None else len(value.shape)
    if node is None or value is None:
        return None
    if not NESTED_FACTORS.allows(nested):
        exceeded[NESTED_FACTORS] = None
        return None
    if node.op_type == "ScatterElements" and node.attributes.get_int("axis", 0) in (-1, rank - 1):
        data, ids = node.inputs[:2]
        return width(ids) if ids is not None and data is not None and _is_zero(dataflow, data, exceeded) else None
    if node.op_type == "OneHot" and node.attributes.get_int("axis", -1) in (-1, rank - 1):
        off_on = node.inputs[2]
        return 1 if dataflow.constant(off_on) and off_on is not None and dataflow.array(off_on)[0] == 0 else None
    if node.op_type == "Equal":
        return 1 if any(v is not None and _are_ids(dataflow, v) for v in node.inputs) else None
    if node.op_type == "Greater":
        bound = dataflow.scalar(node.inputs[1])
        return most_chosen(dataflow, node.inputs[0], exceeded, nested + 1) if bound is not None and bound >= 0 else None
    factors = node.inputs if node.op_type in ("And", "Mul") else node.inputs[:1] if node.op_type == "Cast" else ()
    different = dict.fromkeys(v for v in factors if v is not None and width(v) == width(value))
    counts = [most_chosen(dataflow, v, exceeded, nested + 1) for v in different]
    return min((count for count in counts if count is not None), default=None)


def _is_zero(dataflow: DataFlow, value: ir.Value, exceeded: dict[Budget, None]) -> bool:
    """Whether a value is 0 throughout, such as the data that flags are scattered into."""
    most = FOLLOWED_ZEROS.limit
    nodes = dataflow.few_between([value], lambda v: dataflow.constant(v) or is_op(v.producer(), "Shape"), most)
    if nodes is None:
        exceeded[FOLLOWED_ZEROS] = None
        return False
    if not nodes:
        return dataflow.constant(value) and not dataflow.array(value).any()
    interval_of = intervals(nodes, {}, lambda v: dataflow.array(v) if dataflow.constant(v) else None)
    return interval_of[value].whole == (0.0, 0.0)


def _are_ids(dataflow: DataFlow, value: ir.Value) -> bool:
    """Whether a constant holds different numbers along its last axis."""
    if not dataflow.constant(value):
        return False
    array = dataflow.array(value)
    return array.ndim > 0 and array.size == array.shape[-1] == np.unique(array).size


def _elements(dataflow: DataFlow, value: ir.Value) -> int:
    count = 1
    for size in dataflow.shape(value):
        count *= size
    return count
