"""The experts of a layer as a set that can be rewritten: the experts, the router, and the layer's metadata about
both."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import EXPERT_WEIGHTS, INPUTS, RouteSpec
from moec.ir.expert_ids import other_user, routing_of, table_node
from moec.ir.expert_weights import ExpertWeights
from moec.ir.graphs import add_constant
from moec.ir.origins import origins_of, set_origins
from moec.ir.weights.stored import constant
from moec.passes.framework.base import Report
from moec.passes.graph.columns import keep_columns
from moec.passes.graph.edits import fresh_name, remove_unused
from moec.passes.weights.selection import ExpertSelection, select
from moec.profiles.keys import keep_experts, keep_layer


class ExpertSet:
    """The experts of a ``moec.MoE`` node, or of a ``moec.Route`` and the one ``moec.Experts`` node that it feeds.

    ``routed``: the number of experts that the router knows. The last ``identity`` of them return their input. The
    others are stored in this order, unless a table (:mod:`moec.ir.expert_ids`) maps them.

    Raises UnsupportedError for experts whose weights are not stored in one of the ways of
    :mod:`moec.ir.weights.stored`, whose biases are not constant, or whose routing is not a ``moec.Route`` or has other
    users.
    """

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.weights = ExpertWeights(node)
        for name in EXPERT_WEIGHTS:
            value = dialect.inputs_of(node)[name]
            if name.endswith("_bias") and value is not None and constant(value) is None:
                raise UnsupportedError(f"{name} is computed when the model runs")
        routing = routing_of(node)
        self.route, self.table = routing.route, routing.table
        if (user := other_user(node, self.route)) is not None:
            raise UnsupportedError(user)
        self.identity = self.weights.spec.identity_experts
        self.stored = self.weights.experts
        self.routed = self.stored + self.identity if self.table is None else len(self.table)

    @property
    def routing(self) -> RouteSpec:
        return dialect.spec_of(self.route, RouteSpec)

    @property
    def logits(self) -> ir.Value:
        """[T, routed]."""
        value = dialect.inputs_of(self.route)["logits"]
        assert value is not None
        return value

    @property
    def correction_bias(self) -> ir.Value | None:
        """[routed]."""
        return dialect.inputs_of(self.route)["correction_bias"]

    def feasible(self, kept: Sequence[int]) -> str | None:
        """The reason why the layer cannot have only the experts ``kept``; None if it can. Results may change either
        way."""
        spec = self.routing
        if self.table is not None:
            return "its experts share weights; remove experts before merge-equal-experts and fold-trivial-experts"
        if spec.selection == "expert_choice":
            return "experts choose tokens, which then choose among the others"
        if spec.capacity > 0:
            return f"the capacity of {spec.capacity} is that of {self.routed} experts"
        if spec.selection == "topk" and len(kept) < spec.k:
            return f"{len(kept)} experts are left, of which {spec.k} are chosen"
        if not any(expert < self.stored for expert in kept):
            return "no expert with weights is left"
        if any(before >= self.stored > expert for before, expert in itertools.pairwise(kept)):
            return "identity experts come behind the others"
        return self._groups_of(kept) if spec.groups > 1 else None

    def _groups_of(self, kept: Sequence[int]) -> str | None:
        """The reason why the experts ``kept`` do not form groups like before; None if they do."""
        spec, size = self.routing, self.routed // self.routing.groups
        groups = [expert // size for expert in kept]
        counts = {group: groups.count(group) for group in groups}
        if len(set(counts.values())) > 1 or groups != sorted(groups):
            return f"of {spec.groups} groups, the experts left are {list(counts.values())}; expected equal groups"
        if len(counts) < spec.groups_kept:
            return f"{len(counts)} groups are left, of which {spec.groups_kept} are kept"
        candidates = counts[groups[0]] * spec.groups_kept
        return (
            f"the groups kept hold {candidates} experts, of which {spec.k} are chosen" if candidates < spec.k else None
        )

    def keep(
        self, graph: ir.Graph, kept: Sequence[int], why: Mapping[int, str], joined: Mapping[int, int] | None = None
    ) -> None:
        """Rewrite the layer so that it has only the experts ``kept``, in this order, and the router selects among them.

        ``why``: the reason for removing each of the others, by its id. ``joined``: maps the id of each expert that
        became part of a kept one to that one. Raises UnsupportedError if :meth:`feasible` returns a reason.
        """
        reason = self.feasible(kept)
        if reason is not None:
            raise UnsupportedError(reason)
        origins = origins_of(self.node, self.routed)
        self._cut_router(graph, kept)
        self._store(graph, [expert for expert in kept if expert < self.stored])
        identity = sum(expert >= self.stored for expert in kept)
        _set(self.node, "identity_experts", identity, 0)
        groups = [[expert, *(other for other, to in (joined or {}).items() if to == expert)] for expert in kept]
        set_origins(self.node, origins.regrouped(groups, why))
        self._note_measured(groups)

    def share(self, graph: ir.Graph, stored_as: Sequence[int], why: Mapping[int, str]) -> None:
        """Let stored expert e use the weights of stored expert ``stored_as[e]``, or contribute nothing where that is
        -1. Store only the weights in use. The router selects as before; a table maps its ids.

        ``why``: the reason for removing each expert that contributes nothing. Raises UnsupportedError for ``moec.MoE``.
        """
        if self.route is self.node:
            raise UnsupportedError("routing and experts are one operator; this belongs before fuse-route-dispatch")
        origins = origins_of(self.node, self.stored + self.identity)
        needed = sorted({expert for expert in stored_as if expert >= 0})
        place = {expert: number for number, expert in enumerate(needed)} | {-1: -1}
        identity = range(self.stored, self.stored + self.identity)
        place |= {expert: len(needed) + number for number, expert in enumerate(identity)}
        targets = [place[expert] for expert in (*stored_as, *identity)]
        table = range(self.routed) if self.table is None else self.table
        self._insert_table(graph, [-1 if expert < 0 else targets[expert] for expert in table])
        self._store(graph, needed)
        groups = [[expert for expert, to in enumerate(targets) if to == target] for target in range(len(place) - 1)]
        set_origins(self.node, origins.regrouped(groups, why))
        self._note_measured(groups)

    def _note_measured(self, groups: Sequence[Sequence[int]]) -> None:
        """Record for profiles which stored experts are left; only the layer if an expert was made of several."""
        stored = [group for group in groups if min(group) < self.stored]
        if all(len(group) == 1 for group in stored):
            keep_experts(self.node, [expert for (expert,) in stored])
        else:
            keep_layer(self.node)

    def _cut_router(self, graph: ir.Graph, kept: Sequence[int]) -> None:
        spec, names = self.routing, INPUTS[self.route.op_type]
        keep_columns(graph, self.route, names.index("logits"), kept)
        if self.correction_bias is not None:
            keep_columns(graph, self.route, names.index("correction_bias"), kept)
        if spec.selection == "all":
            _set(self.route, "k", len(kept), None)
        if spec.groups > 1:
            size = self.routed // spec.groups
            _set(self.route, "groups", len({expert // size for expert in kept}), 1)

    def _store(self, graph: ir.Graph, experts: Sequence[int]) -> None:
        """Store only these experts, in this order."""
        if list(experts) == list(range(self.stored)):
            return
        sizes = self.weights.spec.hidden_sizes
        for name in EXPERT_WEIGHTS:
            select(graph, self.node, name, ExpertSelection(experts))
        if sizes:
            _set(self.node, "hidden_sizes", [sizes[expert] for expert in experts], None)

    def _insert_table(self, graph: ir.Graph, table: Sequence[int]) -> None:
        place = INPUTS["Experts"].index("experts")
        replaced, ids = self.node.inputs[place], self.route.outputs[1]
        assert replaced is not None
        entries = ir.tensor(np.array([*table, -1], np.int32))
        mapping = table_node(ids, add_constant(graph, entries, fresh_name(graph, f"{ids.name}_table")))
        mapping.outputs[0].name = fresh_name(graph, f"{ids.name}_stored")
        graph.insert_before(self.node, mapping)
        self.node.replace_input_with(place, mapping.outputs[0])
        remove_unused(graph, replaced)


def _set(node: ir.Node, name: str, value: Any, default: Any) -> None:
    """Set an attribute of a node, or remove it if the value is the default."""
    node.attributes.pop(name, None)
    if value != default:
        node.attributes[name] = ir.convenience.convert_attribute(name, value)


def expert_sets(graph: ir.Graph) -> Iterator[ExpertSet]:
    """The sets of experts of a graph's layers, without layers that have no router of their own; fuse-route-dispatch
    reports these."""
    for node in [node for node in graph if dialect.has_experts(node)]:
        try:
            experts = ExpertSet(node)
        except UnsupportedError:
            continue
        yield experts


def share_weights(
    name: str,
    graph: ir.Graph,
    report: Report,
    stored_as: Callable[[ExpertSet], Sequence[int]],
    why: str = "",
) -> bool:
    """Apply :meth:`ExpertSet.share` to each layer of a graph and report it; return whether any changed. For passes that
    only change where experts are stored. ``why``: the reason for removing experts that are stored as -1."""
    changed = False
    for experts in expert_sets(graph):
        node = experts.node
        targets = stored_as(experts)
        needed = len({target for target in targets if target >= 0})
        if needed == experts.stored:
            continue
        summary = f"of {experts.stored} experts, {needed} need to be stored"
        if experts.route is node:
            report.note(name, node_name(node), f"{summary}; run this pass before fuse-route-dispatch")
            continue
        experts.share(graph, targets, {expert: f"{name}: {why}" for expert, to in enumerate(targets) if to < 0})
        report.note(name, node_name(node), f"{summary}; the others are gone")
        changed = True
    return changed
