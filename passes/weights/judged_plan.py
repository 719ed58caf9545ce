"""Selection of a plan of formats: the one with the least predicted error, or one format for all if that is better.

The errors behind a plan are predictions. The plan is therefore tried against the best single format within the same
budget. Both are applied to copies of the model, which run on the data that the profile holds back. The one with the
smaller Kullback-Leibler divergence from the present model is taken.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.dialect import has_experts
from moec.ir.interpreter import EvaluationError
from moec.ir.weights.format import WeightFormat
from moec.passes.framework.base import Report
from moec.passes.framework.shorthand import parse_format
from moec.passes.weights.bits import WeightBudget, items_of, lacking, least_error, plans_of, uniform
from moec.passes.weights.calibration import Method
from moec.passes.weights.change_formats import change_formats, readable_layer
from moec.passes.weights.linears import MINIMUM, make_linears
from moec.passes.weights.loss import Layer
from moec.passes.weights.output_change import OutputChange
from moec.placing.plan import KEEP, LayerPlan
from moec.profiles import Profile
from moec.profiles.keys import key_of, numbered


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The plan's and the rival's divergence from the model, in nats per position; ``rival`` has one format for all."""

    rival: str
    plan: float
    uniform: float

    @property
    def taken(self) -> str:
        return self.rival if self.uniform < self.plan else "plan"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The selected plans. ``judgement``: None if there was nothing to compare with, or no data; ``remarks``: the
    decision, and comparisons that were not possible."""

    plans: list[LayerPlan]
    judgement: Judgement | None
    remarks: list[str]


def choose(
    model: ir.Model,
    linears: bool,
    profile: Profile,
    forms: Sequence[WeightFormat],
    budget: WeightBudget,
    sensitivities: str | os.PathLike[str] | None,
    method: Method,
    per_layer: bool = False,
) -> Chosen:
    """The formats of a model's weights within a budget; ``linears``: those of dense products, too. Options and errors
    as those of :func:`moec.passes.weights.bits.items_of`."""
    nodes = assignable(model.graph, linears)
    items = items_of(nodes, profile, forms, sensitivities, method, per_layer)
    plans, remarks = least_error(items, forms, budget), []
    if sensitivities is None and (unknown := lacking(nodes, profile)):
        more = f"{len(unknown)} of {len(nodes)} layers, {node_name(unknown[0])} first"
        remarks.append(f"errors of all layers count alike: the profile holds no sensitivity of {more}")
    if budget.average is not None and len({form.elements for form in forms}) < len(forms):
        remarks.append(
            "avg counts no scales and no zero points: with megabytes or microseconds groups cost their bytes"
        )
    rival = uniform(items, forms, budget) if items else None
    if rival is None:
        return Chosen(plans, None, remarks)
    alternative = plans_of(items, [rival] * len(items))
    if alternative == plans:
        return Chosen(plans, None, [*remarks, f"{rival} for all is the plan with the least error"])
    try:
        judgement = Judgement(str(rival), *_divergences(model, linears, profile, (plans, alternative), method))
    except (ValueError, EvaluationError) as error:
        return Chosen(plans, None, [*remarks, f"the plan was not judged against {rival} for all: {error}"])
    taken = f"{rival} for all is taken" if judgement.taken != "plan" else "the plan is taken"
    comparison = f"{judgement.plan:.4g} nats, {rival} for all by {judgement.uniform:.4g}"
    remarks.append(f"on data held back the plan moves the output by {comparison}: {taken}")
    return Chosen(alternative if judgement.taken != "plan" else plans, judgement, remarks)


def _divergences(
    model: ir.Model, linears: bool, profile: Profile, variants: Sequence[Sequence[LayerPlan]], method: Method
) -> list[float]:
    """Measure how far each variant's output is from the model's on data that was held back. Raises ValueError
    where it holds none, or the model cannot be run on it, and as :class:`OutputChange`."""
    batches = profile.held_back()
    if not batches or not profile.head.output:
        raise ValueError("the profile holds no data back; make it anew with 8 rows of data or more")
    change, divergences = OutputChange(model, batches, profile.head.output), []
    for plans in variants:
        variant = model.clone()
        by_key = {plan.layer: plan for plan in plans}
        nodes = assignable(variant.graph, linears)
        for node, key in zip(nodes, numbered(map(key_of, nodes)), strict=True):
            apply_plan("judging", node, by_key.get(key), profile, method, Report(), "judging")
        divergences.append(change.of(variant))
    return divergences


def assignable(graph: ir.Graph, linears: bool) -> list[ir.Node]:
    """The nodes whose weights get formats: layers of experts and, with ``linears``, dense products."""
    layers = [node for node in graph if has_experts(node)]
    return [*layers, *make_linears(graph, MINIMUM, routers=False)] if linears else layers


def apply_plan(
    pass_name: str,
    node: ir.Node,
    plan: LayerPlan | None,
    profile: Profile | None,
    method: Method,
    report: Report,
    where: str,
) -> bool:
    """Store a layer's weights by its plan, if there is one; return whether anything changed. ``where``: the start of
    messages about errors in the plan."""
    before = None if plan is None else readable_layer(pass_name, node, report)
    if plan is None or before is None:
        return False
    return change_formats(pass_name, before, _wanted(before, plan, where), profile, method, report)


def _wanted(layer: Layer, plan: LayerPlan, where: str) -> dict[str, list[WeightFormat]]:
    """The formats of a layer's experts, by operand, as a plan has them."""
    formats_of, place = {}, f"{where}: layer {plan.layer} ({node_name(layer.node)})"
    for name, texts in plan.formats.items():
        if name not in layer.weights:
            raise MoecError(f"{place}: has no weight {name!r}; expected {' or '.join(layer.weights)}")
        old = layer.weights[name].formats
        if len(texts) != len(old):
            raise MoecError(f"{place}: {name}: {len(texts)} formats for {len(old)} experts; give one for each")
        formats_of[name] = [
            form if text == KEEP else parse_format(f"{place}: {name}", text)
            for form, text in zip(old, texts, strict=True)
        ]
    return formats_of
