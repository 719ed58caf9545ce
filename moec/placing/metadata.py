"""The plan of experts in the metadata of a model and its nodes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.dialect import has_experts
from moec.ir.expert_weights import ExpertWeights
from moec.placing.plan import ExpertPlan, LayerPlan, parse_plan
from moec.profiles.keys import key_of, numbered

PLAN_KEY = "moec.plan"
"""Key of a model's metadata: the plan of its layers of experts, in their order, in JSON."""
LAYER_KEY = "moec.layer"
"""Key of a node's metadata: the number of its experts' layer in the plan."""


def set_plan(model: ir.Model, plan: ExpertPlan) -> None:
    """Record the plan in a model's metadata."""
    model.metadata_props[PLAN_KEY] = plan.text()


def plan_of(model: ir.Model) -> ExpertPlan | None:
    """Read the plan of a model's experts; None where all are in the memory of one process. Raises MoecError if the
    metadata is no plan."""
    text = model.metadata_props.get(PLAN_KEY)
    return None if text is None else parse_plan(text, f"metadata {PLAN_KEY}")


def layers_of(model: ir.Model) -> list[ir.Node]:
    """List the nodes that a plan is about: layers of experts in the graph of the model itself."""
    return [node for node in model.graph if has_experts(node)]


def listed(model: ir.Model) -> ExpertPlan:
    """Return the model's plan. Where it has none, record one that lists its layers and says nothing of them. Raises
    MoecError for metadata with a plan of other layers."""
    plan, layers = plan_of(model), layers_of(model)
    if plan is None:
        plan = ExpertPlan(planned_layers(layers))
        number_layers(model, plan)
    if len(plan.layers) != len(layers):
        raise MoecError(
            f"metadata {PLAN_KEY} is of {len(plan.layers)} layers; expected {len(layers)}; remove it from the model"
        )
    return plan


def planned_layers(nodes: Sequence[ir.Node]) -> tuple[LayerPlan, ...]:
    """Make the entries of all layers of experts of a model, which say nothing of them. Raises UnsupportedError for
    weights that are not stored in the model."""
    keys = numbered(map(key_of, nodes))
    return tuple(
        LayerPlan(key, node_name(node), ExpertWeights(node).experts) for key, node in zip(keys, nodes, strict=True)
    )


def number_layers(model: ir.Model, plan: ExpertPlan) -> None:
    """Record a plan of the model's layers, in their order, and their numbers."""
    set_plan(model, plan)
    for number, node in enumerate(layers_of(model)):
        node.metadata_props[LAYER_KEY] = str(number)


def layer_of(node: ir.Node) -> int | None:
    """Read the number of a node's layer in the plan; None for experts that no plan is about. Raises MoecError for
    metadata of another form."""
    text = node.metadata_props.get(LAYER_KEY)
    if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise MoecError(f"metadata {LAYER_KEY!r} is {text[:80]!r}; expected a number; remove it from the model")
    return None if text is None else int(text)
