"""Routing and experts as one operator, so that a target can route, sort, multiply and combine in one go."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec, RouteSpec
from moec.ir.expert_ids import other_user, routing_of
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import replace_value


@dataclasses.dataclass(frozen=True)
class FuseRouteDispatch:
    """Makes one ``moec.MoE`` of a ``moec.Route`` and the ``moec.Experts`` it feeds.

    1. The Experts node takes weights and experts, in this order, from one Route.
    2. Nothing else uses them: no second Experts node, no graph output, no node that rescales the weights. Otherwise
       both nodes stay and a note says who the other user is. They stay, too, where experts share weights, by a table
       of ids between the two (:mod:`moec.ir.expert_ids`), and where the Route has a tolerance.

    ::

        (float[T,6] x, float[T,4] logits) => (float[T,6] y) <float[4,10,6] up, float[4,6,5] down> {
           w, e = moec.Route <k = 2> (logits)
           y = moec.Experts <activation = "silu"> (x, w, e, up, down)
        }
            ->
        (float[T,6] x, float[T,4] logits) => (float[T,6] y) <float[4,10,6] up, float[4,6,5] down> {
           y = moec.MoE <k = 2> (x, logits, , up, down)
        }
    """

    name: ClassVar[str] = "fuse-route-dispatch"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in list(model.graph):
            if not dialect.is_moec(node, "Experts"):
                continue
            reason = _obstacle(node)
            if reason is None:
                _fuse(model.graph, node)
                changed = True
            else:
                report.note(self.name, node_name(node), reason)
        return changed


def _obstacle(experts_node: ir.Node) -> str | None:
    """Why this Experts node keeps its Route apart; None when they can be fused."""
    try:
        routing = routing_of(experts_node)
    except UnsupportedError as error:
        return f"not fused with a router: {error}"
    if routing.table is not None:
        return "not fused with its router: a table of ids says which experts share weights"
    if dialect.inputs_of(routing.route)["tolerance"] is not None:
        return "not fused with its router: a tolerance says which experts others may replace"
    user = other_user(experts_node, routing.route)
    return None if user is None else f"not fused with its router: {user}"


def _fuse(graph: ir.Graph, experts_node: ir.Node) -> None:
    inputs = dialect.inputs_of(experts_node)
    route = routing_of(experts_node).route
    routing = dialect.inputs_of(route)
    fused = dialect.make_node(
        "MoE",
        {
            "x": inputs["x"],
            "logits": routing["logits"],
            "correction_bias": routing["correction_bias"],
            **{name: inputs[name] for name in EXPERT_WEIGHTS},
        },
        dialect.spec_of(route, RouteSpec),
        dialect.spec_of(experts_node, ExpertsSpec),
        name=experts_node.name,
    )
    old, new = experts_node.outputs[0], fused.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    fused.metadata_props.update(experts_node.metadata_props)
    graph.insert_before(experts_node, fused)
    if old.is_graph_output():
        replace_value(old, new)
    else:
        old.name = f"{old.name}_replaced"
        old.replace_all_uses_with(new)
    graph.remove([experts_node, route], safe=True)
