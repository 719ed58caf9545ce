"""What every format of every weight costs, by a profile, and the plan with the least error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.errors import MoecError
from moec.ir.dialect import is_moec
from moec.ir.names import node_name
from moec.ir.weights.experts import ExpertWeights
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stored import StoredWeight, stored_weights
from moec.passes.weights.allocation import allocate
from moec.passes.weights.plan import KEEP, LayerPlan
from moec.profile import Profile
from moec.profile.keys import key_of

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Item:
    """The matrix of one expert in one operand. ``errors`` [formats]: what each adds to the sum over all tokens of the
    squared error of the layer's output; ``elements`` it has."""

    node: ir.Node
    operand: str
    expert: int
    elements: int
    errors: Array


def plan_bits(
    nodes: Sequence[ir.Node], profile: Profile, forms: Sequence[WeightFormat], average: float
) -> list[LayerPlan]:
    """Formats for all floating-point weights of the nodes, whose elements have ``average`` bits at most together, not
    counting scales. Weights that are quantised already keep their format, and count for nothing.

    Raises MoecError where the profile lacks a node or the errors of a format, and for an average that cannot be had.
    """
    items = [item for node in nodes for item in _items(node, profile, forms)]
    if not items:
        return []
    sizes = np.array([item.elements for item in items], np.float64)
    bits = np.array([form.elements.bits for form in forms], np.float64)
    errors = np.stack([item.errors for item in items])
    try:
        chosen = allocate(errors, sizes[:, None] * bits, average * float(sizes.sum()))
    except ValueError as error:
        least = math.ceil(float(str(error)) / float(sizes.sum()) * 100) / 100
        listed = "+".join(map(str, forms))
        raise MoecError(f"avg={average:g} cannot be met with {listed}; the least is {least:g}") from error
    return _plans(items, [forms[choice] for choice in chosen])


def _plans(items: Sequence[Item], chosen: Sequence[WeightFormat]) -> list[LayerPlan]:
    plans: dict[int, LayerPlan] = {}
    for item, form in zip(items, chosen, strict=True):
        empty = LayerPlan(key_of(item.node), node_name(item.node), {})
        plan = plans.setdefault(id(item.node), empty)
        experts = stored_weights(item.node)[item.operand].experts
        plan.formats.setdefault(item.operand, [KEEP] * experts)[item.expert] = str(form)
    return list(plans.values())


def _items(node: ir.Node, profile: Profile, forms: Sequence[WeightFormat]) -> Iterator[Item]:
    if is_moec(node, "Linear"):
        yield from _linear_items(node, profile, forms)
        return
    measures, weights = profile.experts(node), ExpertWeights(node)
    found = [measures.error(str(form)) for form in forms]
    errors = np.stack([_known(profile, form, error) for form, error in zip(forms, found, strict=True)])
    errors = errors * _scale(measures.count, np.array([len(measures.rows(e)) for e in range(weights.experts)]))[:, None]
    errors[:, measures.count == 0] = _unseen(errors, measures.count)
    for operand, weight in weights.operands.items():
        columns = [at for at, part in enumerate(weights.parts) if weights.operand(part) is weight]
        for expert in _floats(weight):
            yield Item(node, operand, expert, math.prod(weight.shape), errors[:, expert, columns].sum(axis=1))


def _linear_items(node: ir.Node, profile: Profile, forms: Sequence[WeightFormat]) -> Iterator[Item]:
    measures, weight = profile.linear(node), stored_weights(node)["weight"]
    found = [measures.error(str(form)) for form in forms]
    errors = np.array([_known(profile, form, error) for form, error in zip(forms, found, strict=True)])
    for expert in _floats(weight):
        yield Item(node, "weight", expert, math.prod(weight.shape), errors * measures.tokens / len(measures.rows()))


def _floats(weight: StoredWeight) -> Iterator[int]:
    return (expert for expert, form in enumerate(weight.formats) if not form.quantized)


def _known(profile: Profile, form: WeightFormat, error: Any) -> Any:
    if error is None:
        formats = ", ".join(profile.head.formats)
        raise MoecError(f"{profile.path}: holds no errors of {form}, only of {formats}; profile with --formats {form}")
    return np.where(np.isnan(error), np.inf, error)


def _scale(count: Array, kept: Array) -> Array:
    """From the rows that were kept of an expert to all that it saw."""
    return np.divide(count, kept, out=np.zeros(len(count)), where=kept > 0)


def _unseen(errors: Array, count: Array) -> Array:
    """[formats, 1, parts]: for an expert that saw nothing, what one token costs the others on average."""
    return errors.sum(axis=1, keepdims=True) / max(1, int(count.sum()))
